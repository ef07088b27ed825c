"""The two schedules of the sparse teacher's chapter: what the short one saves, and what it costs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import pandas as pd

from kdsec import data, models
from kdsec.config.sparse_teacher import SparseTeacher
from kdsec.data import Splits
from kdsec.errors import KdsecError
from kdsec.report import summary
from kdsec.run import resolve_device
from kdsec.train import Recipe, evaluate, fit


def measure(settings: SparseTeacher, *, rounds: int, net: str, images: int) -> dict[str, Any]:
    """Seconds of the papers' schedule over those of the short one, and the test accuracy after each.

    Both train the same network from the same weights on the same images; a round is a seed.

    Args:
        settings: of the chapter, with both schedules.
        rounds: seeds; one alone has no interval.
        net: the teacher; the papers' is ``resnet18``.
        images: how many the owner has.

    Raises:
        KdsecError: unknown network, more images than there are, the data set is not here, or the settings
            have one schedule only.
    """
    device = resolve_device("auto")
    if settings.fast is None:
        raise KdsecError("these settings have one schedule; take those of the paper profile, which has two")
    recipes = {"full": settings.recipe, "fast": settings.fast}
    seconds: dict[str, list[float]] = {name: [] for name in recipes}
    accuracy: dict[str, list[float]] = {name: [] for name in recipes}
    for seed in range(rounds):
        parts = data.load(settings.dataset, validation=settings.validation, seed=seed, device=device)
        for name, recipe in recipes.items():
            began = time.perf_counter()
            accuracy[name].append(_train(parts, net, images, recipe, seed))
            seconds[name].append(time.perf_counter() - began)
    gap = summary.interval(pd.Series(accuracy["fast"]) - pd.Series(accuracy["full"]))
    return {
        "ratio": statistics.median(full / fast for full, fast in zip(*seconds.values(), strict=True)),
        "full_accuracy": accuracy["full"],
        "fast_accuracy": accuracy["fast"],
        "difference": [gap.mean, *((gap.low, gap.high) if rounds > 1 else (None, None))],
        "full_seconds": seconds["full"],
        "fast_seconds": seconds["fast"],
        "net": net,
        "images": images,
        "dataset": settings.dataset,
        "recipes": {name: dataclasses.asdict(recipe) for name, recipe in recipes.items()},
    }


def _train(parts: Splits, net: str, images: int, recipe: Recipe, seed: int) -> float:
    """Test accuracy after ``recipe``, at its last epoch."""
    owner = parts.train.stratified(images, seed)
    mean, std = owner.mean_std()
    model = models.build(net, owner.num_classes, owner.shape, mean=mean, std=std, seed=seed)
    fit(model.to(owner.images.device), owner, recipe, seed=seed)
    return evaluate(model, parts.test).accuracy
