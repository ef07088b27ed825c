"""Four times as much: does it take more than four times as long? Of images, classes, students and seeds."""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.attacks import network, timed
from benchmarks.steps import random_images
from kdsec.cache import Cache
from kdsec.data import Augment, ImageSet
from kdsec.distill import KD, teacher_labels
from kdsec.run import start
from kdsec.train import Recipe, fit

TIMES = 4
NET = "resnet8"
RECIPE = Recipe(epochs=1, batch_size=128, lr=0.1, augment=Augment(crop=4, flip=True))


def measure(*, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of four times as much over four times the seconds; 1 is linear, less is better.

    Args:
        rounds: how often each pair has its turn; medians are reported.
        steps: training steps of the smaller amount.
    """
    parts: dict[str, Callable[[int], float]] = {
        "images": functools.partial(images, steps),
        "classes": functools.partial(classes, steps),
        "students": functools.partial(students, steps),
        "seeds": seeds,
    }
    for part in parts.values():
        part(1)  # the first of a kind also pays for loading code
    turns = {name: [part(TIMES) / (TIMES * part(1)) for _ in range(rounds)] for name, part in parts.items()}
    growth = {name: statistics.median(found) for name, found in turns.items()}
    worst = max(growth, key=lambda name: growth[name])
    return {"ratio": growth[worst], "worst": worst, "times": TIMES, **growth, "turns": turns}


def images(steps: int, times: int) -> float:
    """Seconds of an epoch of distillation over ``times`` as many images."""
    data = random_images(times * steps * RECIPE.batch_size)
    return timed(functools.partial(distil, data))


def classes(steps: int, times: int) -> float:
    """Seconds of the same epoch with ``times`` as many classes, from 50 on."""
    data = random_images(steps * RECIPE.batch_size)
    data = ImageSet(data.images, data.labels, tuple(map(str, range(50 * times))), data.name)
    return timed(functools.partial(distil, data))


def distil(data: ImageSet) -> None:
    fit(fast(network(NET, data)), data, RECIPE, KD(fast(network(NET, data, seed=1))))


def fast(net: nn.Module) -> nn.Module:
    return net.to(memory_format=torch.channels_last)


def students(steps: int, times: int) -> float:
    """Seconds of as many students of one teacher, who is asked once."""
    data = random_images(steps * RECIPE.batch_size)
    teacher = fast(network(NET, data))

    def each() -> None:
        answers = teacher_labels(teacher, data)
        for student in range(times):
            fit(fast(network(NET, data, 1 + student)), data, RECIPE, KD(answers))

    return timed(each)


def seeds(times: int) -> float:
    """Seconds of as many runs of a teacher that share a cache and a folder of records."""
    with tempfile.TemporaryDirectory() as folder:

        def each() -> None:
            for seed in range(times):
                run = start("opening", seed=seed, out=f"{folder}/results")
                run.cache = Cache(pathlib.Path(folder) / "cache")
                at = run.settings
                teacher = run.fit("teacher", run.build(at.teacher), run.data.train, at.recipe)
                run.score("teacher", at.teacher, teacher)
                run.finish()

        with contextlib.redirect_stdout(io.StringIO()):
            return timed(each)
