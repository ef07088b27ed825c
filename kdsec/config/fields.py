"""Types of settings with their bounds, and how tables of values become settings.

A bound is stated once, on the field: ``alpha: Share``. What a value must be is checked when a dataclass of
settings is made, and a wrong one ends in a ``KdsecError`` of one line.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar

import pydantic
import torch
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter

from kdsec import models
from kdsec.attacks.extraction import EXTRACTION_ATTACKS, RECOVERY
from kdsec.data import DATASETS
from kdsec.data.names import CLASS_NAMES
from kdsec.data.published import SETS
from kdsec.errors import KdsecError, check_choice
from kdsec.train import PRECISIONS, Recipe

T = TypeVar("T")

_CONFIG = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
_TRAINING_IMAGES = {name: each.train for name, each in SETS.items()} | {"digits": 1_198}  # scikit-learn's
SHAPES = {name: (each.shape[2], *each.shape[:2]) for name, each in SETS.items()} | {"digits": (1, 8, 8)}


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if twice := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"names {twice[0]!r} twice; give each value once")
    return values


def one_of(kind: str, names: Callable[[], Iterable[str]]) -> AfterValidator:
    """A check that a value is among ``names()``; ``kind`` says in the message what is named."""
    return AfterValidator(lambda value: check_choice(kind, value, names()))


Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
BetweenShares = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Maybe = Annotated[tuple[T, ...], AfterValidator(_distinct)]  # any number of values, each once
Several = Annotated[tuple[T, ...], Field(min_length=1), AfterValidator(_distinct)]

# Bounds of settings that mean the same under one name, beside those of their fields: what the functions that
# take them refuse (``kdsec.entry.BOUNDS``), and what stands in tables whose dataclasses check nothing.
BY_NAME: dict[str, Any] = {
    "smoothing": Annotated[float, Field(ge=0, lt=1)],
    "precision": Annotated[str, one_of("precision", lambda: PRECISIONS)],
    **dict.fromkeys(("nasty_temperature", "sparse_temperature", "reversal_temperature"), Positive),
    **dict.fromkeys(("nasty_weight", "stabilizer"), NotNegative),
    **dict.fromkeys(("stingy_keep", "sparse_keep", "robust_steps"), Count),
    "eps": Share,
    "steps": Annotated[int | None, Field(ge=1)],
    "step_size": Annotated[float | None, Field(ge=0)],
    "levels": Count | tuple[str, ...],  # of an image's sizes, or names
    "sparse_alpha": Share,
    "reversal_weight": Positive,
    **dict.fromkeys(("temperatures", "rates"), Maybe[Positive]),
}
MOST = 10**9  # of any whole number: a larger one can only overflow, or never end

Dataset = Annotated[str, one_of("dataset", lambda: DATASETS)]
Network = Annotated[str, one_of("model", models.names)]
Foreign = Annotated[str, one_of("foreign set", lambda: ("rotated", *DATASETS))]
Autoencoder = Annotated[str, one_of("autoencoder", models.autoencoder_names)]
Attack = Annotated[str, one_of("thief", lambda: (*EXTRACTION_ATTACKS, RECOVERY))]


@typing.dataclass_transform(frozen_default=True)
def settings_of_chapter(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass that checks its fields."""
    made: Any = pydantic.dataclasses.dataclass(cls, frozen=True, config=_CONFIG)
    checked = made.__init__

    @functools.wraps(checked)
    def __init__(self: Any, *values: Any, **named: Any) -> None:
        try:
            checked(self, *values, **named)
        except pydantic.ValidationError as error:
            raise KdsecError(_one_line(error)) from None

    made.__init__ = __init__
    return typing.cast(type[T], made)


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from a table: lists become tuples, ``"8/255"`` a number, inner tables dataclasses.

    Raises:
        KdsecError: an unknown name, or a value of the wrong type or out of bounds.
    """
    hints: dict[str, Any] = _hints(typing.cast(Any, cls))
    made = {}
    for name, value in values.items():
        check_choice(f"setting of {cls.__name__}", name, hints)
        made[name] = _value(name, value, hints[name], checked=hasattr(cls, "__pydantic_validator__"))
    return cls(**made)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=_CONFIG)


def _value(name: str, value: Any, hint: Any, checked: bool) -> Any:
    options = [each for each in (hint, *typing.get_args(hint)) if isinstance(each, type)]
    kinds = [each for each in options if dataclasses.is_dataclass(each)]
    if isinstance(value, Mapping) and kinds:
        return build(kinds[0], value)
    value = _plain(value)
    # The first is needed where a dataclass does not check the types of its fields.
    hints = [hint] * (not checked and not kinds) + [BY_NAME.get(name, Any)]
    try:
        for each in hints:
            value = _adapter(each).validate_python(value)
    except pydantic.ValidationError as error:
        raise KdsecError(_one_line(error, name)) from None
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and number > MOST:
            raise KdsecError(f"setting {name}={value!r} must be at most {MOST}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, str) and (parts := re.fullmatch(r"(\d+)/(\d*[1-9]\d*)", value)):
        return int(parts[1]) / int(parts[2])
    return value


def _one_line(error: pydantic.ValidationError, name: str = "") -> str:
    """The first of pydantic's complaints: name, value, what is allowed."""
    first = error.errors()[0]
    path, *inner = [name] * bool(name) + list(first["loc"])
    where = f"setting {path}" + "".join(f"[{each}]" for each in inner if isinstance(each, int))
    if first["type"] == "missing":
        return f"{where} is missing"
    if first["type"] == "too_short":
        return f"{where} is empty; give at least one"
    text = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    text = text.replace("must be a valid tuple", "has the wrong type, it must be a list such as [1, 2]")
    text = text.replace("must be a valid integer", "has the wrong type, it must be an int")
    text = re.sub(
        "must be an instance of .*", "has the wrong type, it must be a table, {'name': value}", text
    )
    text = re.sub("^must be a valid (number|string|boolean)", r"has the wrong type, it must be a \1", text)
    return f"{where}={first['input']!r} {text}"


def check_images(dataset: str, validation: float, dealt: int, **parts: tuple[int, Recipe]) -> None:
    """Refuse more images than a data set has, and training sets too small for a batch or for all classes.

    Args:
        dataset: its name.
        validation: share set aside.
        dealt: how many training images are dealt out.
        parts: name of a setting, its number of images, and how a network is trained on them.

    Raises:
        KdsecError: names the numbers.
    """
    total, classes = _TRAINING_IMAGES.get(dataset), len(CLASS_NAMES[dataset])
    if total is not None:
        held_out = round(total * validation)
        if dealt > total - held_out:
            raise KdsecError(
                f"the chapter deals out {dealt} training images with these settings and {dataset} has "
                f"{total - held_out} beside {held_out} for validation; lower the numbers of images"
            )
        if held_out < classes:
            raise KdsecError(
                f"setting validation={validation} keeps {held_out} of {total} images, fewer than the "
                f"{classes} classes of {dataset}; raise it"
            )
    for name, (images, recipe) in parts.items():
        if images < (least := max(recipe.batch_size, classes)):
            raise KdsecError(
                f"setting {name}={images} must be {least} or more: a batch, and an image of every class"
            )


def check_kept(dataset: str, **kept: int) -> None:
    """Refuse to keep more logits than ``dataset`` has classes.

    Raises:
        KdsecError: names the setting.
    """
    for name, number in kept.items():
        if number > (classes := len(CLASS_NAMES[dataset])):
            raise KdsecError(f"setting {name}={number} must be at most {classes}, the classes of {dataset}")


@functools.lru_cache
def check_network(name: str, dataset: str) -> None:
    """Refuse a network that cannot be built for the images of ``dataset``; no memory is taken.

    Raises:
        KdsecError: names both.
    """
    if name not in models.imagenet_names():
        with torch.device("meta"):
            models.build(name, len(CLASS_NAMES[dataset]), SHAPES[dataset])


def same_steps(recipe: Recipe, steps: int, images: int) -> Recipe:
    """``recipe`` with exactly so many training steps on any number of images; milestones keep their share.

    Args:
        recipe: everything but the number of steps.
        steps: how many.
        images: in the training set; gives the number of epochs, begun ones included.
    """
    epochs = -(-steps // max(1, images // recipe.batch_size))
    milestones = tuple(round(each * epochs / recipe.epochs) for each in recipe.milestones)
    return dataclasses.replace(recipe, epochs=epochs, steps=steps, milestones=milestones)
