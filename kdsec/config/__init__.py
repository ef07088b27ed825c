"""The chapters of the book by name, and their settings at each scale.

One chapter is one module here, with a frozen dataclass of settings, and one TOML file beside it, with a table
of values per profile; ``second`` is ``small`` on another data set, or with another teacher. ``shared.toml``
has what all chapters have in common at one profile: with the same data, network and recipe, a teacher is
trained once for all of them. A chapter is registered by one line in ``CHAPTERS``; the runner, the command
line and the notebooks know it by that name.
"""

from __future__ import annotations

import functools
import importlib
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdsec.errors import KdsecError, check_choice

PROFILES = ("quick", "small", "second", "paper")
FIVE_SEEDS = ("opening", "sparse-teacher", "purification")  # at small and second; three elsewhere


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
        Chapter("opening", 1, "How does distillation steal a model?"),
        Chapter("sparse-teacher", 2, "Can a teacher refuse to teach?"),
        Chapter("poisoned-distillation", 3, "Can a clean teacher pass on a backdoor?"),
        Chapter("reversed-maximization", 4, "Can the knowledge in wrong classes be hidden?"),
        Chapter("purification", 5, "Can a purifier stop an attacker who knows it?"),
        Chapter("differentiators", 6, "Is a public teacher a way to attack its students?"),
        Chapter("crossing", 7, "Which defence survives every attack?"),
    )
}


def settings(chapter: str, profile: str, overrides: Mapping[str, Any] | None = None) -> Any:
    """The frozen settings of ``chapter`` at ``profile``, with single fields overridden.

    At the ``paper`` profile another data set brings along the settings that its papers use with it, where the
    chapter's file has a table of ``companions`` for it; what is overridden by name stays as given. Of a
    nested table such as ``recipe``, single fields can be given: ``{"recipe": {"lr": 0.05}}``.

    Raises:
        KdsecError: unknown chapter, profile or field, or an impossible value.
    """
    tables = _tables(check_choice("chapter", chapter, CHAPTERS))
    check_choice("profile", profile, PROFILES)
    check_choice(f"profile of chapter {chapter}", profile, profiles(chapter))
    given = dict(overrides or {})
    # With torch and pydantic: not for lists of chapters.
    from kdsec.config.checks import check_together
    from kdsec.config.fields import build

    kind = getattr(
        importlib.import_module(f"kdsec.config.{_stem(chapter)}"), chapter.title().replace("-", "")
    )
    for name in given:
        check_choice(f"setting of chapter {chapter}", name, kind.__dataclass_fields__)
    shared = {name: value for name, value in _shared(profile).items() if name in kind.__dataclass_fields__}
    values = _merged(shared, _inherited(tables, profile))
    if profile == "paper" and str(given.get("dataset")) in companions(chapter):
        values = _merged(values, tables["companions"][given["dataset"]])
    try:
        made = build(kind, _merged(values, given))
        check_together(chapter, made)
        return made
    except KdsecError as error:
        raise KdsecError(f"chapter {chapter}: {error}") from None


def profiles(chapter: str) -> tuple[str, ...]:
    """The profiles that ``chapter`` has settings for, in the order of ``PROFILES``."""
    return tuple(name for name in PROFILES if name in _tables(chapter))


def seeds(chapter: str, profile: str) -> tuple[int, ...]:
    """The seeds that decide claims, fixed before the first run; runs at others are exploratory."""
    five = chapter in FIVE_SEEDS and profile != "paper"
    five = five or (chapter, profile) == ("differentiators", "second")
    most = 10 if profile == "quick" else 5 if five else 3
    return tuple(range(most))


def companions(chapter: str) -> tuple[str, ...]:
    """Data sets that bring settings of their own along at the ``paper`` profile."""
    return tuple(_tables(chapter).get("companions", {}))


def _stem(chapter: str) -> str:
    return chapter.replace("-", "_")


@functools.lru_cache
def _tables(chapter: str) -> dict[str, Any]:
    """The chapter's TOML file."""
    import tomllib

    return tomllib.loads(pathlib.Path(__file__).with_name(f"{_stem(chapter)}.toml").read_text("utf-8"))


def _shared(profile: str) -> dict[str, Any]:
    """What every chapter that has such settings takes at this profile, unless its own file says otherwise."""
    tables = _tables("shared")
    return _inherited(tables, profile) if profile in tables else {}


def _inherited(tables: Mapping[str, Any], profile: str) -> dict[str, Any]:
    """A profile's values, on top of those of the profile that it inherits from."""
    own = dict(tables[profile])
    base = own.pop("inherits", None)
    return _merged(_inherited(tables, base), own) if base else own


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes``; tables are merged field by field, everything else is replaced."""
    both = {
        name: _merged(base[name], value)
        for name, value in changes.items()
        if isinstance(value, Mapping) and isinstance(base.get(name), Mapping)
    }
    return {**base, **changes, **both}
