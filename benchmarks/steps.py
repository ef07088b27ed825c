"""Training steps: ``kdsec.train.fit`` against the textbook loop, block by block in turns."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import textbook
from kdsec import models
from kdsec.data import Augment, Batch, ImageSet
from kdsec.distill import KD
from kdsec.train import CrossEntropy, Loss, Recipe, autocast_dtype, fit

NET = "resnet20"
# Steps before the clock counts: memory is allocated, kernels are chosen, and the batches that DataLoader's
# workers had ready before the first step are used up, so that a block shows what can be kept up.
WARM_UP = 6
WORKERS = (0, 1, 2)
RECIPE = Recipe(epochs=1, lr=0.1, augment=Augment(crop=4, flip=True))


def measure(*, distil: bool, rounds: int, steps: int, batch: int) -> dict[str, Any]:
    """Images per second of both loops, and how many times faster ours is.

    Args:
        distil: KD with a ResNet-20 teacher asked on line; else cross-entropy.
        rounds: how often each loop has its turn.
        steps: timed steps of a turn.
        batch: images a step.
    """
    data = random_images((WARM_UP + steps + 1) * batch)
    ours = functools.partial(kdsec_block, data, distil, batch)
    theirs = {workers: functools.partial(textbook_block, data, distil, batch, workers) for workers in WORKERS}
    ours()  # the first block in a process also pays for loading code
    tried = {workers: block() for workers, block in theirs.items()}
    best = min(tried, key=lambda workers: tried[workers])
    turns = [(ours(), theirs[best]()) for _ in range(rounds)]
    return {
        "ratio": statistics.median(textbook / kdsec for kdsec, textbook in turns),
        "kdsec_images_per_second": batch / statistics.median(kdsec for kdsec, _ in turns),
        "textbook_images_per_second": batch / statistics.median(textbook for _, textbook in turns),
        "ratios": [textbook / kdsec for kdsec, textbook in turns],
        "textbook_workers": best,
        "textbook_images_per_second_by_workers": {n: batch / seconds for n, seconds in tried.items()},
        "precision": str(autocast_dtype(RECIPE.precision, torch.device("cpu")) or torch.float32)[6:],
        "net": NET,
        "batch": batch,
        "steps": steps,
    }


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
        self.started.append(time.perf_counter())
        return self.loss(model, batch)


def kdsec_block(data: ImageSet, distil: bool, batch: int) -> float:
    """Seconds a step of ``kdsec.train.fit``, as the chapters call it."""
    mean, std = data.mean_std()
    build = functools.partial(models.build, NET, data.num_classes, data.shape, mean=mean, std=std)
    teacher = build(seed=1).to(memory_format=torch.channels_last).eval()  # as ``fit`` leaves a trained one
    clocked = Clocked(KD(teacher) if distil else CrossEntropy())
    fit(build(seed=0), data, dataclasses.replace(RECIPE, batch_size=batch), clocked)
    return per_step(clocked.started)


def textbook_block(data: ImageSet, distil: bool, batch: int, workers: int) -> float:
    """Seconds a step of the textbook loop. Its workers live for the block only: ours has the cores alone."""
    mean, std = data.mean_std()
    student, teacher = (models.build(NET, data.num_classes, data.shape, seed=seed) for seed in (0, 1))
    for net in (student, teacher):
        net.normalize = nn.Identity()
    pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()
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
