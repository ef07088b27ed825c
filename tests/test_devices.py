"""No mix-up of CPU and GPU: every network, loss, attack and defence runs with tensors of another device.

There need be no GPU; see ``tests.pretend_gpu``. Covered are forward and backward passes, trainings and whole
attacks on a few images of 8 x 8 pixels (``tests.device_cases``), and forward and backward passes of every
network. Not covered: what only a GPU does differently (autocast, kernels, memory), ``torch.compile``, the
audit, and attacks of packages that need not be installed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import pathlib
import pkgutil
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import kdsec.attacks
import kdsec.defenses
from kdsec import models, run
from kdsec.cache import Cache
from kdsec.data import Batch, Splits
from kdsec.distill import KD
from kdsec.pgd import pgd
from kdsec.train import cross_entropy
from tests.device_cases import CASES, EPS, RECIPE, World
from tests.pretend_gpu import MixedDevices, OnGPU, pretended
from tests.small import trained

# What no case reaches, and why.
LEFT_OUT = {
    "attacks.library.library": "is for a package that need not be installed",
}
TENSORS = ("Tensor", "nn.Module", "ImageSet", "Batch", "Classifier")
ENTERED: set[types.CodeType] = set()
DONE: set[str] = set()


@pytest.fixture
def gpu(digits: Splits) -> Iterator[World]:
    trained(digits)
    with pretended():
        yield World(digits, "cuda")


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Notes which functions are entered."""
    sys.setprofile(lambda frame, event, _: ENTERED.add(frame.f_code) if event == "call" else None)
    try:
        yield
    finally:
        sys.setprofile(None)


def tensors(found: Any) -> Iterator[Tensor]:
    """The tensors in a result."""
    if isinstance(found, Tensor):
        yield found
    elif dataclasses.is_dataclass(found):
        yield from tensors(vars(found))
    elif isinstance(found, dict):
        yield from tensors(list(found.values()))
    elif isinstance(found, list | tuple):
        for each in found:
            yield from tensors(each)


@pytest.mark.parametrize("name", CASES)
def test_nothing_mixes_devices(name: str, gpu: World) -> None:
    with noted():
        found = CASES[name](gpu)
    assert all(isinstance(each, OnGPU) for each in tensors(found)), "a result is not where its images are"
    DONE.add(name)


def test_nothing_is_left_out() -> None:
    """Every public function and method that takes tensors is entered by a case."""
    if len(DONE) < len(CASES):
        pytest.skip("not all cases were run in this process, or some failed")
    packages = (kdsec.attacks, kdsec.defenses)
    inside = [
        f"{each.__name__}.{name}" for each in packages for _, name, _ in pkgutil.iter_modules(each.__path__)
    ]
    alone = [f"kdsec.{name}" for name in ("distill", "layered", "logits", "optim", "oracle", "pgd", "train")]
    missing = set()
    for module in map(importlib.import_module, [*inside, *alone]):
        for name, function in functions(module):
            given = str([each.annotation for each in inspect.signature(function).parameters.values()])
            if inspect.unwrap(function).__code__ not in ENTERED and any(each in given for each in TENSORS):
                missing.add(f"{module.__name__.removeprefix('kdsec.')}.{name}")
    assert missing == set(LEFT_OUT), f"give a case to {', '.join(sorted(missing - set(LEFT_OUT)))}"


def functions(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """The public functions of a module, and the methods of its public classes."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and not getattr(value, "_is_protocol", False):
            for method, code in vars(value).items():
                if inspect.isfunction(code) and (not method.startswith("_") or method == "__call__"):
                    yield f"{name}.{method}", code


# Networks


def network(name: str) -> tuple[nn.Module, Tensor]:
    shape = (1, 8, 8) if name.startswith("digits") else (3, 32, 32)
    constants = {"mean": [0.4] * shape[0], "std": [0.2] * shape[0]}
    return models.build(name, 5, shape, seed=0, **constants), torch.rand(2, *shape)


@pytest.mark.parametrize("name", models.names())
def test_a_network_runs_there(name: str) -> None:
    model, images = network(name)
    with pretended():
        models.whiten(model, images)
        model, images = model.to("cuda"), images.to("cuda").requires_grad_()
        model(images).square().sum().backward()
        features = model.eval().features(images)
        found = [images.grad, *features, *(each.grad for each in model.parameters() if each.requires_grad)]
    assert all(isinstance(each, OnGPU) for each in found)


@pytest.mark.parametrize("name", models.autoencoder_names())
def test_a_purifier_runs_there(name: str) -> None:
    purifier = models.build_autoencoder(name, (3, 8, 8), seed=0)
    with pretended():
        purifier.to("cuda")(torch.rand(2, 3, 8, 8).to("cuda")).sum().backward()
        assert all(isinstance(each.grad, OnGPU) for each in purifier.parameters())


@pytest.mark.parametrize("name", models.names())
def test_a_network_runs_with_the_fake_tensors_of_pytorch(name: str) -> None:
    """The forward pass: without a GPU they have no other."""
    model, images = network(name)
    with FakeTensorMode(), torch.no_grad():
        for layer in model.modules():
            for tensors in (layer._parameters, layer._buffers):
                for key, each in tensors.items():
                    if each is not None:
                        made = torch.empty(each.shape, dtype=each.dtype, device="cuda")
                        tensors[key] = nn.Parameter(made) if tensors is layer._parameters else made
        logits = model.eval()(torch.empty(images.shape, device="cuda"))
    assert logits.shape == (2, 5) and logits.device.type == "cuda"


# What a chapter does around them


def test_a_training_is_kept_and_fetched(gpu: World, tmp_path: pathlib.Path) -> None:
    for kept in (False, True):
        cache = Cache(tmp_path)
        student = cache.fit(gpu.new(), gpu.data, RECIPE, KD(gpu.teacher))
        assert cache.hits == kept and isinstance(student(gpu.images), OnGPU)
        found = cache.tensors("x", ["x"], torch.device("cuda"), lambda: {"x": gpu.logits}, {"x": None})
        assert isinstance(found["x"], OnGPU)


def test_a_run_deals_builds_and_scores_there(monkeypatch: pytest.MonkeyPatch, digits: Splits) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "none")
    with pretended():
        chapter = run.start("opening", device="cuda")
        owner, thief = chapter.deal(40, 20, overlap=True)
        student = chapter.build("digits-small", "student")
        found = [
            owner.images,
            thief.labels,
            chapter.foreign("rotated", thief).images,
            student(owner.float_images()),
        ]
        chapter.score("student", "digits-small", student)
        assert all(isinstance(each, OnGPU) for each in found) and len(chapter.records) == 2


# The check itself


def _numbers(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers on ``device`` and on the CPU, and positions on ``device``."""
    return torch.ones(3, 4).to(device), torch.ones(3, 4), torch.zeros(3, dtype=torch.int64).to(device)


REFUSED: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "sum": lambda a, c, i: a + c,
    "product in place": lambda a, c, i: c.mul_(a),
    "more than a number": lambda a, c, i: a * torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "matrix product": lambda a, c, i: c @ a.T,
    "layer": lambda a, c, i: F.linear(a, c),
    "condition": lambda a, c, i: torch.where(c > 0, a, a),
    "joined": lambda a, c, i: torch.cat([a, c]),
    "labels": lambda a, c, i: F.cross_entropy(c, i),
    "one-hot": lambda a, c, i: F.one_hot(i, 4) + F.one_hot(i.cpu(), 4),
    "gathered": lambda a, c, i: a.gather(1, i.cpu()[:, None]),
    "selected": lambda a, c, i: c.index_select(0, i),
    "scattered": lambda a, c, i: a.scatter(1, i.cpu()[:, None], 1.0),
    "masked": lambda a, c, i: a.masked_fill(c > 0, 0.0),
    "set by a mask": lambda a, c, i: a.__setitem__(a > 0, c.flatten()),
    "gradient": lambda a, c, i: F.kl_div(a.requires_grad_(), c, reduction="sum"),
}
REFUSED_HERE = {  # by a GPU too, but not by fake tensors
    "index": lambda a, c, i: c[i],
    "stacked numbers": lambda a, c, i: torch.stack([a.sum(), c.sum()]),
    "mask": lambda a, c, i: c[a > 0],
    "same": lambda a, c, i: torch.equal(a, c),
    "drawn": lambda a, c, i: torch.rand(3, generator=torch.Generator(), device=a.device),
    "drawn in place": lambda a, c, i: a.uniform_(generator=torch.Generator()),
    "array": lambda a, c, i: a.numpy(),
}
ALLOWED: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "a number from the CPU": lambda a, c, i: a * torch.tensor(2.0),
    "index from the CPU": lambda a, c, i: a[i.cpu()],
    "copy": lambda a, c, i: a.copy_(c),
    "part set": lambda a, c, i: a.__setitem__(slice(0, 1), c[:1]),
    "moved": lambda a, c, i: a + c.to(a.device) + c.to(a),
    "back": lambda a, c, i: a.cpu() + c,
    "made there": lambda a, c, i: a + torch.arange(4, device=a.device) + torch.zeros_like(a) + a.new_ones(4),
}


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_HERE])
def test_a_mix_up_is_refused(name: str) -> None:
    call = {**REFUSED, **REFUSED_HERE}[name]
    call(*_numbers("cpu"))  # nothing else is wrong with it
    with pretended(), pytest.raises(MixedDevices):
        call(*_numbers("cuda"))
    if name in REFUSED:
        with FakeTensorMode(), pytest.raises(RuntimeError, match=r"device"):
            call(*_numbers("cuda"))


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_gpu_allows_is_allowed(name: str) -> None:
    with pretended():
        ALLOWED[name](*_numbers("cuda"))
    with FakeTensorMode():
        ALLOWED[name](*_numbers("cuda"))


class Unregistered(nn.Module):
    """A wrapper whose tensor stays where it was made: it is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.zeros(10)

    def forward(self, logits: Tensor) -> Tensor:
        return logits - self.offset


def evened(model: nn.Module, batch: Batch) -> Tensor:
    """A loss whose target is made on the CPU."""
    logits = model(batch.images)
    return cross_entropy(logits, batch.labels) + F.mse_loss(logits, torch.full((len(logits), 10), 0.1))


class Elsewhere(nn.Module):
    """A teacher that answers on the CPU, wherever the images are."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 10)


PLANTED: dict[str, Callable[[World], Any]] = {
    "a wrapper": lambda w: Unregistered().to(w.device)(w.logits),
    "a protected teacher": lambda w: w.attacked(
        lambda student, teacher, data, recipe: pgd(
            nn.Sequential(teacher, Unregistered()).to(w.device), w.images, w.labels, eps=EPS, steps=2
        )
    ),
    "a loss": lambda w: w.learns(evened),
    "a teacher": lambda w: w.learns(KD(Elsewhere())),
    "labels": lambda w: (
        pgd(w.teacher, w.images, w.labels, eps=EPS, steps=1) + w.digits.test.float_images(slice(0, 8))
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mix_up_is_found(name: str, gpu: World, digits: Splits) -> None:
    with pytest.raises(MixedDevices):
        PLANTED[name](gpu)


def test_the_numbers_are_those_of_the_cpu(gpu: World, digits: Splits) -> None:
    name = "pgd.pgd, linf"
    there = CASES[name](gpu).cpu()
    assert torch.equal(there, CASES[name](World(digits, "cpu")))
