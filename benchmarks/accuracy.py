"""Seconds to 93 % on CIFAR-10: the chapters' network and recipe, and the papers' ResNet-18 beside it."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

from benchmarks.steps import random_images, textbook_block
from kdsec import config, data, models
from kdsec.run import resolve_device
from kdsec.train import CrossEntropy, evaluate, fit

SMOOTHING = 0.2  # of the labels, as in arXiv:2404.00498
TEXTBOOK = {"net": "resnet18", "epochs": 160}  # the schedule of the authors' code: 80, 120, 160


def measure(*, rounds: int, validation: float = 2e-4) -> dict[str, Any]:
    """Seconds of one training on all of CIFAR-10's training images, and the test accuracy at its last epoch.

    The other side is not trained: its seconds are those of a measured step times the number of steps.

    Args:
        rounds: seeds.
        validation: share of the images that are not trained on; there must be one of each class.

    Raises:
        KdsecError: CIFAR-10 is not here.
    """
    chapter, device = config.settings("opening", "small"), resolve_device("auto")
    recipe = chapter.recipe
    seconds, accuracy = [], []
    for seed in range(rounds):
        parts = data.load(chapter.dataset, validation=validation, seed=seed, device=device)
        train = parts.train
        mean, std = train.mean_std()
        network = models.build(chapter.teacher, 10, train.shape, mean=mean, std=std, seed=seed)
        began = time.perf_counter()
        models.whiten(network, train.images[:5000].cpu())
        fit(network.to(device), train, recipe, CrossEntropy(SMOOTHING), seed=seed)
        seconds.append(time.perf_counter() - began)
        accuracy.append(evaluate(network, parts.test).accuracy)
    batch, passes = 128, int(str(TEXTBOOK["epochs"])) * len(train) // 128
    step = textbook_block(random_images(12 * batch).to(device), False, batch, 0, str(TEXTBOOK["net"]))
    return {
        "ratio": step * passes / statistics.median(seconds),
        "seconds_each": seconds,
        "test_accuracy": accuracy,
        "textbook_seconds": step * passes,
        "textbook": TEXTBOOK,
        "net": chapter.teacher,
        "images": len(train),
        "recipe": dataclasses.asdict(recipe),
    }
