"""The chapters of the book by name, and their settings at each scale.

One chapter is one module here: a frozen dataclass of settings and one value of it per profile; ``second`` is
``small`` on another data set, in the chapters that ask whether a result is one of its data. A chapter is
registered by one line in ``CHAPTERS``; the runner, the command line and the notebooks know it by that name.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdsec.errors import KdsecError, choose

PROFILES = ("quick", "small", "second", "paper")


@dataclass(frozen=True)
class Chapter:
    """A chapter: its name everywhere, its place in the book, its title."""

    name: str
    number: int
    title: str

    @property
    def notebook(self) -> str:
        """File name inside ``notebooks/``."""
        return f"{self.number:02d}-{self.name}.ipynb"


CHAPTERS = {
    chapter.name: chapter
    for chapter in (
        Chapter("opening", 1, "Distillation, and how it steals"),
        Chapter("sparse-teacher", 2, "The adversarial sparse teacher"),
        Chapter("poisoned-distillation", 3, "A clean teacher, poisoned images, a backdoored student"),
        Chapter("reversed-maximization", 4, "Reversed maximization, and thieves without data"),
        Chapter("purification", 5, "Purification by distillation"),
        Chapter("differentiators", 6, "Attacks through a public teacher, and distilled differentiators"),
        Chapter("crossing", 7, "Crossing the papers"),
    )
}


def settings(chapter: str, profile: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """The frozen settings of ``chapter`` at ``profile``, with single fields overridden.

    At the ``paper`` profile another data set brings the settings along that its papers use with it, where the
    chapter's module has them in ``COMPANIONS``; what is overridden by name stays as given.

    Raises:
        KdsecError: unknown chapter, profile or field, or a value of the wrong type.
    """
    module = _module(choose("chapter", chapter, CHAPTERS))
    choose("profile", profile, PROFILES)
    base = module.PROFILES[choose(f"profile of chapter {chapter}", profile, module.PROFILES)]
    types_of = typing.get_type_hints(type(base))
    chosen = {
        name: tuple(value) if isinstance(value, list) else value for name, value in (overrides or {}).items()
    }
    for name, value in chosen.items():
        choose(
            f"setting of chapter {chapter}",
            name,
            [field.name for field in dataclasses.fields(base)],
        )
        _check_type(name, value, types_of[name])
    if profile == "paper":
        chosen = getattr(module, "COMPANIONS", {}).get(chosen.get("dataset"), {}) | chosen
    return dataclasses.replace(base, **chosen)


def profiles(chapter: str) -> tuple[str, ...]:
    """The profiles that ``chapter`` has settings for, in the order of ``PROFILES``."""
    return tuple(name for name in PROFILES if name in _module(chapter).PROFILES)


def _module(chapter: str) -> types.ModuleType:
    return importlib.import_module(f"kdsec.chapters.{chapter.replace('-', '_')}")


def _check_type(name: str, value: Any, kind: Any) -> None:
    """Accept an int for a float, as Python does; refuse everything else that is not what the field says."""
    allowed = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    plain = tuple(typing.get_origin(each) or each for each in allowed)
    if isinstance(value, bool) and bool not in plain:
        fits = False
    else:
        fits = isinstance(value, plain) or (float in plain and isinstance(value, int))
    if fits and isinstance(value, tuple):
        entry = typing.get_args(next(each for each in allowed if typing.get_origin(each) is tuple))[0]
        for item in value:
            _check_type(f"{name}: entry", item, entry)
    if not fits:
        wanted = " or ".join(
            "a list such as [1, 2]" if each is tuple else getattr(each, "__name__", str(each))
            for each in plain
        )
        raise KdsecError(f"setting {name}={value!r} has the wrong type, it must be: {wanted}")
