"""Several students at once, stacked into one network (``torch.func``) or in processes, and one by one."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from benchmarks.attacks import timed
from benchmarks.steps import RECIPE
from kdsec import models
from kdsec.runner import cores

STUDENTS = 4
# Students of the quick chapters and of the small ones: image shape and batch size as there.
SETTINGS = {"digits-small": ((1, 8, 8), 64), "cnn-small": ((3, 32, 32), 128)}


def measure(*, rounds: int, steps: int) -> dict[str, Any]:
    """How many times faster students are trained in processes than stacked, for the net where it is least.

    All start from weights of their own and see the same batch of random images, on one thread each. The
    processes, one a core, are there before the clock starts: starting them is reported, not counted.

    Args:
        rounds: how often each way has its turn; medians are reported.
        steps: training steps of a student and turn.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {name: _compare(name, rounds, steps) for name in SETTINGS}
    finally:
        torch.set_num_threads(threads)
    ratio = min(gains["processes"] / gains["stacked"] for gains in found.values())
    return {"ratio": ratio, "students": STUDENTS, "over_one_by_one": found}


def _compare(name: str, rounds: int, steps: int) -> dict[str, float]:
    """How many times faster than one by one each way is."""
    workers = min(STUDENTS, cores())
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(_one_by_one, [name] * workers, [1] * workers, [1] * workers))
        start_up = time.perf_counter() - began
        share = -(-STUDENTS // workers)
        ways: dict[str, Callable[[], Any]] = {
            "one by one": functools.partial(_one_by_one, name, STUDENTS, steps),
            "stacked": functools.partial(_stacked, name, STUDENTS, steps),
            "processes": lambda: list(
                pool.map(_one_by_one, [name] * workers, [share] * workers, [steps] * workers)
            ),
        }
        for way in ways.values():
            way()  # the first of a kind also pays for loading code
        turns = [{each: timed(way) for each, way in ways.items()} for _ in range(rounds)]
    gains = {
        way: statistics.median(turn["one by one"] / turn[way] for turn in turns)
        for way in ("stacked", "processes")
    }
    return {**gains, "start_up_seconds": start_up}


def batch_of(name: str) -> tuple[Tensor, Tensor]:
    shape, size = SETTINGS[name]
    images = torch.rand(size, *shape).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(10, (size,))


def students(name: str, count: int) -> list[nn.Module]:
    shape, _ = SETTINGS[name]
    nets = [models.build(name, 10, shape, seed=seed) for seed in range(count)]
    return [net.to(memory_format=torch.channels_last).train() for net in nets]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, RECIPE.lr, momentum=RECIPE.momentum, nesterov=True, fused=True)


def _one_by_one(name: str, count: int, steps: int) -> None:
    torch.set_num_threads(1)  # in a process of its own, too
    images, labels = batch_of(name)
    for net in students(name, count):
        optimizer = sgd(net.parameters())
        for _ in range(steps):
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _stacked(name: str, count: int, steps: int) -> None:
    images, labels = batch_of(name)
    step = stacked_step(students(name, count))
    for _ in range(steps):
        step(images, labels)


def stacked_step(nets: list[nn.Module]) -> Any:
    """A function of a batch that takes one step of every network at once; returns each one's loss.

    Weights and running statistics get a new first axis, over which ``vmap`` runs: a convolution becomes a
    grouped one.
    """
    weights, statistics_ = stack_module_state(nets)
    skeleton = copy.deepcopy(nets[0]).to("meta")
    optimizer = sgd(list(weights.values()))

    def loss_of(weights: Any, buffers: Any, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(skeleton, (weights, buffers), (images,)), labels)

    losses_of = torch.vmap(loss_of, in_dims=(0, 0, None, None))

    def step(images: Tensor, labels: Tensor) -> Tensor:
        losses: Tensor = losses_of(weights, statistics_, images, labels)
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        return losses.detach()

    return step
