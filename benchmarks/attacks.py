"""Attacks, and defences trained on attacks, against the loops that everybody writes, or a peer library's."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import textbook
from benchmarks.steps import NET, RECIPE, random_images
from kdsec import models
from kdsec.attacks.constrained_search import Dssim
from kdsec.attacks.data_free_fast import FastDFKD
from kdsec.attacks.mimicry import mimic
from kdsec.data import ImageSet
from kdsec.data.imageset import to_float
from kdsec.defenses.adversarial_training import PGDTraining
from kdsec.defenses.sparse_teacher import perturb
from kdsec.pgd import pgd
from kdsec.train import autocast, autocast_dtype, fit, predict

BATCH, EPS, STEP_SIZE = 250, 8 / 255, 2 / 255
OPTIONS: dict[str, Any] = {"eps": EPS, "step_size": STEP_SIZE, "batch_size": BATCH, "precision": "auto"}
PLAIN = "cnn"  # the small profiles' network where attacks take hundreds of steps


def compare(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int, work: float, unit: str, what: str
) -> dict[str, Any]:
    """Seconds of two ways to do the same, in turns after a first time each; the ratio is theirs over ours.

    Args:
        ours, theirs: each does it once and returns the seconds.
        rounds: how often each has its turn.
        work: how much of ``unit`` is done each time.
        unit, what: for the table.
    """
    ours(), theirs()
    turns = [(ours(), theirs()) for _ in range(rounds)]
    ratios = [slow / quick for quick, slow in turns]
    return {
        "ratio": statistics.median(ratios),
        "kdsec_per_second": work / statistics.median(quick for quick, _ in turns),
        "baseline_per_second": work / statistics.median(slow for _, slow in turns),
        "ratios": ratios,
        "unit": unit,
        "baseline": what,
    }


def timed(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def network(name: str, data: ImageSet, seed: int = 0) -> models.Classifier:
    mean, std = data.mean_std()
    return models.build(name, data.num_classes, data.shape, mean=mean, std=std, seed=seed).eval()


def measure_set(*, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of ``perturb`` over seconds of as many bare passes; the ratio says what it adds.

    Args:
        rounds: how often each has its turn.
        steps: of PGD, on two batches of images.
    """
    data = random_images(2 * BATCH)
    model = network(NET, data).to(memory_format=torch.channels_last)
    ours = functools.partial(perturb, model, data, steps=steps, **OPTIONS)
    bare = functools.partial(bare_passes, model, data, steps)
    ours(), bare()
    turns = [(timed(ours), timed(bare)) for _ in range(rounds)]
    return {
        "ratio": statistics.median(ours / bare for ours, bare in turns),
        "attack_seconds": statistics.median(ours for ours, _ in turns),
        "bare_seconds": statistics.median(bare for _, bare in turns),
        "ratios": [ours / bare for ours, bare in turns],
        "steps": steps,
    }


def bare_passes(model: nn.Module, data: ImageSet, steps: int) -> None:
    """As many forward passes and gradients by the images, and nothing done with them."""
    with torch.autocast(**autocast("auto", data.images.device)):
        for pixels, labels in zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True):
            images = to_float(pixels).contiguous(memory_format=torch.channels_last).requires_grad_()
            for _ in range(steps):
                torch.autograd.grad(F.cross_entropy(model(images).float(), labels, reduction="sum"), images)


def measure_pgd(*, rounds: int, steps: int) -> dict[str, Any]:
    """PGD on ResNet-20, all steps for every image: torchattacks where it is installed, else the textbook.

    Args:
        rounds: how often each has its turn.
        steps: of PGD.
    """
    data = random_images(2 * BATCH)
    model, plain = network(NET, data), network(NET, data)
    images = data.float_images()
    attack, name = library_pgd(plain, steps)

    def theirs() -> Tensor:
        parts = zip(images.split(BATCH), data.labels.split(BATCH), strict=True)
        return torch.cat([attack(part, labels) for part, labels in parts])

    fast = model.to(memory_format=torch.channels_last)
    ours = functools.partial(pgd, fast, data.images, data.labels, steps=steps, **OPTIONS)
    result = compare(lambda: timed(ours), lambda: timed(theirs), rounds, len(data), "images", name)
    for who, found in (("kdsec", ours()), ("baseline", theirs())):
        result[f"{who}_loss"] = F.cross_entropy(predict(plain, found), data.labels).item()
    return result | {"steps": steps, "net": NET}


def library_pgd(model: nn.Module, steps: int) -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
    """PGD of the library that ``make attacks`` installs, or the textbook's."""
    if importlib.util.find_spec("torchattacks"):
        made = importlib.import_module("torchattacks").PGD(model, eps=EPS, alpha=STEP_SIZE, steps=steps)
        return made, "torchattacks"
    return functools.partial(textbook.pgd, model, eps=EPS, step_size=STEP_SIZE, steps=steps), "textbook loop"


def measure_adversarial(*, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """Adversarial training of ResNet-20 with two inner steps, as chapter 5 does it at small scale.

    Args:
        rounds: how often each has its turn.
        steps: training steps of a turn.
        batch: images a step.
    """
    data = random_images(steps * batch)
    recipe = dataclasses.replace(RECIPE, batch_size=batch)
    mean, std = data.mean_std()
    pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()
    source = textbook.Cifar(pixels, data.labels.tolist(), mean, std)
    source.transform.transforms = source.transform.transforms[:3]  # the network normalises: eps in pixels

    def ours() -> None:
        fit(network(NET, data), data, recipe, PGDTraining(EPS, steps=2, step_size=STEP_SIZE))

    def theirs() -> None:
        loader = textbook.batches(source, batch, workers=0)
        textbook.train_adversarially(network(NET, data), loader, lr=RECIPE.lr, eps=EPS, step_size=STEP_SIZE)

    work = steps * batch
    result = compare(lambda: timed(ours), lambda: timed(theirs), rounds, work, "images", "textbook loop")
    return result | {"net": NET, "batch": batch, "steps": steps}


def measure_mimicry(*, rounds: int, steps: int, pairs: int = 80) -> dict[str, Any]:
    """Pairs a second of feature mimicry in one batch, against one pair at a time in textbook code.

    ``one_at_a_time_ratio`` compares with our own code on single pairs.

    Args:
        rounds: how often each has its turn.
        steps: of each search.
        pairs: in the batch; of the baselines a tenth is timed.
    """
    data = random_images(2 * pairs)
    teacher = network(PLAIN, data)
    layer = 4
    sources, targets = data.images[:pairs], data.images[pairs:]
    few = max(1, pairs // 10)
    budget = Dssim(steps=steps, penalty=1e6, stabilizer=1e-5, precision="auto")
    single = dataclasses.replace(budget, precision="float32")

    def ours() -> float:
        return timed(lambda: mimic(teacher, layer, sources, targets, budget, batch_size=pairs)) / pairs

    def theirs() -> float:
        body = nn.Sequential(teacher.normalize, teacher.stages)

        def each() -> None:
            for source, target in zip(to_float(sources[:few]), to_float(targets[:few]), strict=True):
                textbook.mimic_pair(body, source[None], target[None], budget=0.003, penalty=1e6, steps=steps)

        return timed(each) / few

    def alone() -> float:
        few_pairs = (sources[:few], targets[:few])
        return timed(lambda: mimic(teacher, layer, *few_pairs, single, batch_size=1)) / few

    result = compare(ours, theirs, rounds, 1, "pairs", "textbook loop, one pair at a time")
    result["one_at_a_time_ratio"] = statistics.median(alone() / ours() for _ in range(rounds))
    return result | {"net": PLAIN, "pairs": pairs, "steps": steps}


def measure_datafree(*, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """FastDFKD on ResNet-20, against the same loop in float32 and PyTorch's default memory format.

    Args:
        rounds: how often each has its turn.
        steps: of the student, in one round of drawing.
        batch: images a step.
    """
    data = random_images(8)
    plan = FastDFKD(rounds=2, warmup=1, student_steps=steps, batch_size=batch, latent=128, width=64)

    def run(precision: str, memory: torch.memory_format) -> float:
        student, teacher = (network(name, data).to(memory_format=memory) for name in ("resnet8", NET))
        chosen = dataclasses.replace(plan, precision=precision)
        return timed(lambda: chosen(student, teacher, data.shape))

    native = "float32" if autocast_dtype("auto", torch.device("cpu")) is None else "bf16"
    work = 2 * batch * plan.generator_steps + steps * batch
    result = compare(
        lambda: run(native, torch.channels_last),
        lambda: run("float32", torch.contiguous_format),
        rounds,
        work,
        "images",
        "the plain loop",
    )
    return result | {"net": NET, "batch": batch, "steps": steps}
