"""Making AST's adversarial images, against the bare forward and backward passes that it cannot do without."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.steps import NET, random_images
from kdsec import models
from kdsec.data import ImageSet
from kdsec.data.imageset import to_float
from kdsec.defenses.sparse_teacher import disturb
from kdsec.train import autocast

BATCH, EPS, STEP_SIZE = 250, 8 / 255, 2 / 255


def measure(*, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of ``disturb`` over seconds of as many bare passes, in turns.

    Args:
        rounds: how often each has its turn.
        steps: of PGD, on two batches of images.
    """
    data = random_images(2 * BATCH)
    mean, std = data.mean_std()
    model = models.build(NET, data.num_classes, data.shape, mean=mean, std=std, seed=0)
    model = model.to(memory_format=torch.channels_last).eval()
    ours_block(model, data, steps), bare_block(model, data, steps)
    turns = [(ours_block(model, data, steps), bare_block(model, data, steps)) for _ in range(rounds)]
    return {
        "ratio": statistics.median(ours / bare for ours, bare in turns),
        "attack_seconds": statistics.median(ours for ours, _ in turns),
        "bare_seconds": statistics.median(bare for _, bare in turns),
        "ratios": [ours / bare for ours, bare in turns],
        "steps": steps,
    }


def ours_block(model: models.Classifier, data: ImageSet, steps: int) -> float:
    """Seconds that the adversarial images of ``data`` take, checks and all."""
    started = time.perf_counter()
    disturb(model, data, eps=EPS, step_size=STEP_SIZE, steps=steps, batch_size=BATCH, precision="auto")
    return time.perf_counter() - started


def bare_block(model: nn.Module, data: ImageSet, steps: int) -> float:
    """Seconds of as many forward passes and gradients by the images, and nothing done with them."""
    started = time.perf_counter()
    with torch.autocast(**autocast("auto", data.images.device)):
        for pixels, labels in zip(data.images.split(BATCH), data.labels.split(BATCH), strict=True):
            images = to_float(pixels).contiguous(memory_format=torch.channels_last).requires_grad_()
            for _ in range(steps):
                torch.autograd.grad(F.cross_entropy(model(images).float(), labels, reduction="sum"), images)
    return time.perf_counter() - started
