"""Training steps: ``kdsec.train.fit`` against the textbook loop, block by block in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import statistics
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import textbook
from kdsec import models
from kdsec.data import Augment, Batch, ImageSet
from kdsec.distill import KD
from kdsec.oracle import Memory, recalling
from kdsec.run import resolve_device
from kdsec.train import CrossEntropy, Loss, Recipe, autocast_dtype, fit

NET = "resnet20"
STUDENT, STUDENTS = "resnet8", 6  # that share a teacher
# Steps before the clock counts: memory is allocated, kernels are chosen, and the batches that DataLoader's
# workers had ready before the first step are used up, so that a block shows what can be kept up.
WARM_UP = 6
WORKERS = (0, 1, 2)
RECIPE = Recipe(epochs=1, lr=0.1, augment=Augment(crop=4, flip=True))
SIDE = 4096  # of the matrices whose product shows what the hardware can do; a quarter of it on a CPU


def measure(*, distil: bool, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """Images per second of both loops, and how many times faster ours is.

    Args:
        distil: KD with a ResNet-20 teacher asked on line; else cross-entropy.
        rounds: how often each loop has its turn.
        steps: timed steps of a turn.
        batch: images a step.
    """
    device = resolve_device("auto")
    data = random_images((WARM_UP + steps + 1) * batch).to(device)
    ours = functools.partial(kdsec_block, data, distil, batch)
    ours()  # the first block in a process also pays for loading code
    best, tried = best_workers(data, distil, batch)
    turns = [(ours(), textbook_block(data, distil, batch, best)) for _ in range(rounds)]
    seconds = statistics.median(kdsec for kdsec, _ in turns)
    dtype = autocast_dtype(RECIPE.precision, device) or torch.float32
    reached, possible = step_flops(data, distil, batch) / seconds, product_flops(device, dtype)
    return {
        "ratio": statistics.median(textbook / kdsec for kdsec, textbook in turns),
        "kdsec_images_per_second": batch / seconds,
        "textbook_images_per_second": batch / statistics.median(textbook for _, textbook in turns),
        "ratios": [textbook / kdsec for kdsec, textbook in turns],
        "textbook_workers": best,
        "textbook_images_per_second_by_workers": {n: batch / seconds for n, seconds in tried.items()},
        "flops_per_second": reached,
        "flops_per_second_of_a_product": possible,
        "utilisation": reached / possible,
        "precision": str(dtype)[6:],
        "net": NET,
        "batch": batch,
        "steps": steps,
    }


def measure_students(*, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """Images per second of students that share a teacher, and how many times faster ours are.

    As in the small heat map of the sparse teacher's chapter: the same images, other losses. The textbook loop
    asks the teacher for every student, ours for the first.

    Args:
        rounds: how often each loop has its turn.
        steps: timed steps of a turn.
        batch: images a step.
    """
    data = random_images((WARM_UP + steps + 1) * batch).to(resolve_device("auto"))

    def ours(memory: Memory) -> float:
        return kdsec_block(data, True, batch, STUDENT, memory)

    ours(Memory())  # the first block in a process also pays for loading code
    best, _ = best_workers(data, True, batch, STUDENT)
    turns = []
    for _ in range(rounds):
        memory = Memory()
        turns.append((ours(memory), ours(memory), textbook_block(data, True, batch, best, STUDENT)))
    first, later, textbook_seconds = (statistics.median(column) for column in zip(*turns, strict=True))
    ratios = [STUDENTS * text / (one + (STUDENTS - 1) * other) for one, other, text in turns]
    return {
        "ratio": statistics.median(ratios),
        "first_images_per_second": batch / first,
        "later_images_per_second": batch / later,
        "textbook_images_per_second": batch / textbook_seconds,
        "ratios": ratios,
        "textbook_workers": best,
        "students": STUDENTS,
        "net": STUDENT,
        "teacher": NET,
        "batch": batch,
        "steps": steps,
    }


def best_workers(data: ImageSet, distil: bool, batch: int, net: str = NET) -> tuple[int, dict[int, float]]:
    """With how many workers the baseline is at its best, and its seconds a step with each number."""
    tried = {workers: textbook_block(data, distil, batch, workers, net) for workers in WORKERS}
    return min(tried, key=lambda workers: tried[workers]), tried


def step_flops(data: ImageSet, distil: bool, batch: int) -> int:
    """Floating-point operations of one step: all convolutions and matrix products, two a multiplication."""
    student, loss = pair(data, distil)
    images = data.float_images()[:batch]
    with FlopCounterMode(display=False) as counter:
        loss(student, Batch(images, data.labels[:batch], torch.arange(batch))).backward()
    return counter.get_total_flops()


def product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a product of two large matrices, the best of ten."""
    side = SIDE if device.type == "cuda" else SIDE // 4
    first, second = torch.randn(2, side, side, device=device).to(dtype)
    seconds = []
    for _ in range(10):
        began = textbook.clock(device)
        first @ second
        seconds.append(textbook.clock(device) - began)
    return 2 * side**3 / min(seconds)


def random_images(count: int) -> ImageSet:
    """Random bytes in the shape of CIFAR-10."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return ImageSet(images, labels, tuple(map(str, range(10))), "random bytes")


@dataclass(frozen=True)
class Clocked:
    """A loss that notes when it is asked: the start of a step, when its batch has arrived."""

    loss: Loss
    started: list[float] = field(default_factory=list)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        self.started.append(textbook.clock(batch.images.device))
        return self.loss(model, batch)


def kdsec_block(
    data: ImageSet, distil: bool, batch: int, net: str = NET, memory: Memory | None = None
) -> float:
    """Seconds a step of ``kdsec.train.fit``, as the chapters call it."""
    student, loss = pair(data, distil, net)
    clocked = Clocked(loss)
    with recalling(memory) if memory else contextlib.nullcontext():
        fit(student, data, dataclasses.replace(RECIPE, batch_size=batch), clocked)
    return per_step(clocked.started)


def pair(data: ImageSet, distil: bool, net: str = NET) -> tuple[nn.Module, Loss]:
    """A student, and what it learns by: the labels, or a teacher as ``fit`` leaves a trained one."""
    mean, std = data.mean_std()
    build = functools.partial(
        models.build, num_classes=data.num_classes, shape=data.shape, mean=mean, std=std
    )
    device = data.images.device
    teacher = build(NET, seed=1).to(device).to(memory_format=torch.channels_last).eval()
    return build(net, seed=0).to(device), KD(teacher) if distil else CrossEntropy()


def textbook_block(data: ImageSet, distil: bool, batch: int, workers: int, net: str = NET) -> float:
    """Seconds a step of the textbook loop. Its workers live for the block only: ours has the cores alone."""
    mean, std = data.mean_std()
    student, teacher = (
        models.build(name, data.num_classes, data.shape, seed=seed) for seed, name in enumerate((net, NET))
    )
    for each in (student, teacher):
        each.normalize = nn.Identity()
        each.to(data.images.device)
    pixels = data.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    loader = textbook.batches(textbook.Cifar(pixels, data.labels.tolist(), mean, std), batch, workers)
    started = textbook.train(
        student,
        loader,
        lr=RECIPE.lr,
        momentum=RECIPE.momentum,
        weight_decay=RECIPE.weight_decay,
        teacher=teacher if distil else None,
    )
    return per_step(list(started))


def per_step(started: list[float]) -> float:
    """Mean seconds from one step to the next after the warm-up.

    A mean, because with workers single steps alternate between waiting for a batch and finding one.
    """
    first, *_, last = itertools.islice(started, WARM_UP, None)
    return (last - first) / (len(started) - WARM_UP - 1)
