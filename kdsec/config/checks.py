"""What settings that are allowed one by one must have in common."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch

from kdsec import models
from kdsec.config.fields import SHAPES
from kdsec.data.names import CLASS_NAMES
from kdsec.errors import KdsecError
from kdsec.train import Recipe

MOST_POISONS = 0.5  # as a share of a set


def check_together(chapter: str, settings: Any) -> None:
    """Refuse settings of a chapter that do not go together; nothing is trained for it.

    Raises:
        KdsecError: names the settings and what to choose.
    """
    _check_same_images(settings)
    _check_rates(settings)
    _check_decay(settings)
    _check_heads(chapter, settings)
    for teacher, student in _attention_pairs(chapter, settings):
        if not _share_a_size(teacher, student, settings.dataset):
            raise KdsecError(
                f"attention transfer pairs stages of equal height and width, and teacher={teacher} has none "
                f"in common with student={student}; choose convolutional nets of one family"
            )


def _check_same_images(settings: Any) -> None:
    if getattr(settings, "same_images", False):
        name = "theft" if hasattr(settings, "theft") else "distill"
        if (count := getattr(settings, name)) > settings.owner:
            raise KdsecError(
                f"with same_images the images are the owner's, so {name}={count} must be at most "
                f"owner={settings.owner}"
            )


def _check_rates(settings: Any) -> None:
    """Poisons are made of images of other classes than the target, and these must be enough."""
    if hasattr(settings, "crafting"):
        for rate in (settings.rate, *getattr(settings, "rates", ())):
            if rate > MOST_POISONS:
                raise KdsecError(
                    f"rate={rate:g} of poisons must be at most {MOST_POISONS}, half of the images"
                )


def _check_decay(settings: Any) -> None:
    """Each step of SGD takes the share ``lr * weight_decay`` off a weight; with 1 or more it explodes."""
    for name, recipe in _recipes(settings):
        if recipe.optimizer == "sgd" and recipe.lr * recipe.weight_decay >= 1:
            raise KdsecError(
                f"{name}: lr={recipe.lr:g} times weight_decay={recipe.weight_decay:g} must be below 1"
            )


def _check_heads(chapter: str, settings: Any) -> None:
    """Students of a public teacher may train their head alone, which has no convolution for Muon."""
    name = {"crossing": "private_recipe", "differentiators": "student_recipe"}.get(chapter)
    if name and getattr(settings, name).optimizer == "muon":
        raise KdsecError(f"{name}: muon trains convolutions, and a student's head has none; take sgd or adam")


def _recipes(settings: Any, before: str = "") -> Iterator[tuple[str, Recipe]]:
    """All recipes of ``settings``, also within others, by name: ``making.recipe``."""
    for field in dataclasses.fields(settings):
        value, name = getattr(settings, field.name), before + field.name
        if isinstance(value, Recipe):
            yield name, value
        elif dataclasses.is_dataclass(value):
            yield from _recipes(value, f"{name}.")


def _attention_pairs(chapter: str, settings: Any) -> Iterator[tuple[str, str]]:
    """The networks between which a chapter transfers attention: teacher, student."""
    if chapter == "opening":
        yield settings.teacher, settings.student
    elif chapter == "poisoned-distillation":
        yield settings.student, settings.student  # neural attention distillation: a student and its copy
    elif "features" in getattr(settings, "thieves", ()):
        yield settings.teacher, getattr(settings, "student", None) or settings.students[0]


@functools.lru_cache
def _share_a_size(teacher: str, student: str, dataset: str) -> bool:
    with torch.device("meta"):
        images = torch.empty(1, *SHAPES[dataset])
        nets = [models.build(name, len(CLASS_NAMES[dataset]), SHAPES[dataset]) for name in (teacher, student)]
        ours, theirs = (
            {maps.shape[2:] for maps in net.eval().features(images) if maps.ndim == 4} for net in nets
        )
    return bool(ours & theirs)
