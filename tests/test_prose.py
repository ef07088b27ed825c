"""No number in the text was typed: what was measured is computed, or read from the records, by a cell.

A decimal number, a percentage or a number of points in the prose of a notebook or a page must be a choice,
and be recognised as one: it is a setting of the chapter, a constant in the notebook's own code, or what a
claim of the chapter asks for. Anything else needs a marker in the same cell or page, ``<!-- given: 0.73 12
% -->``, whose author answers for it: a definition, a version, a number quoted from a paper.
"""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import nbformat
import pytest

from kdsec import chapters
from kdsec.report import claims

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "book").glob("*.md"))

SHARE = r"\d+(?:\.\d+)?\s?(?:%|per cent\b|percent\b|(?:percentage )?points?\b)"
NUMBER = re.compile(rf"(?<![\w./-]){SHARE}|(?<![\w./-])\d+\.\d+(?!\w|\.\d)")
MARKER = re.compile(r"<!-- given: (.*?) -->", re.DOTALL)
# No prose: code, whose fence names a language (that of a directive does not), addresses and comments.
NOT_PROSE = re.compile(
    r"^[ :]*(?P<fence>`{3,}|~{3,})\w[^\n]*\n.*?^ *(?P=fence)|`[^`\n]+`|\]\([^)]*\)|<!--.*?-->",
    re.DOTALL | re.MULTILINE,
)
CONVENTIONS = ("95 % interval",)


def typed(text: str, chosen: Iterable[float] = ()) -> list[str]:
    """Numbers of a Markdown text that are neither ``chosen`` (as shares: 5 % is 0.05) nor marked."""
    given = " ".join(MARKER.findall(text))
    for convention in CONVENTIONS:
        text = text.replace(convention, "")
    found = NUMBER.findall(NOT_PROSE.sub(" ", text))
    return [number for number in found if not _chosen(number, chosen) and number not in given]


def _chosen(number: str, values: Iterable[float]) -> bool:
    value = float(re.match(r"[\d.]+", number)[0])  # type: ignore[index]
    share = not re.fullmatch(r"[\d.]+", number)
    return any(abs((value / 100 if share else value) - each) < 1e-9 for each in values)


def numbers_in(value: Any) -> Iterator[float]:
    """All numbers in settings, however deep."""
    if dataclasses.is_dataclass(value):
        value = [getattr(value, each.name) for each in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        for each in value:
            yield from numbers_in(each)
    elif isinstance(value, int | float):
        yield float(value)


def constants(cells: Iterable[Any]) -> Iterator[float]:
    """All numbers that stand in the code of a notebook, where a reader can see and change them."""
    for cell in cells:
        if cell.cell_type == "code" and "colab" not in cell.metadata.get("tags", []):
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
                    yield float(node.value)


@pytest.mark.parametrize("chapter", chapters.CHAPTERS)
def test_no_number_in_a_chapters_prose_was_measured(chapter: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / chapters.CHAPTERS[chapter].notebook, as_version=4)
    values = set(constants(notebook.cells))
    for profile in chapters.profiles(chapter):
        values |= set(numbers_in(chapters.settings(chapter, profile)))
    values |= {claim.least for claim in claims.papers()[chapter].claims}
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert {cell.id: found for cell in prose if (found := typed(cell.source, values))} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_number_on_a_page_was_measured(page: pathlib.Path) -> None:
    assert typed(page.read_text(encoding="utf-8")) == []


def test_no_marker_is_left_over() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        given = re.findall(NUMBER, " ".join(MARKER.findall(text)))
        assert set(given) <= set(NUMBER.findall(NOT_PROSE.sub(" ", text))), page.name


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The student reaches 97.2 % of it.", ["97.2 %"]),
        ("It loses 12 points, or 0.12.", ["12 points", "0.12"]),
        ("more than 40 per cent", ["40 per cent"]),
        ("```{exercise} A\n:label: b\n\nIs it 73.1 %?\n```", ["73.1 %"]),
        ("an accuracy of 0.93.", ["0.93"]),
        ("```python\nx = 0.93\n```\nand `0.93`, [here](a-0.93.md) <!-- 0.93 -->", []),
        ("```{index} a\n```\n0.1\n\nCall\n: ```python\n  x = 0.93\n  ```\n\n0.2", ["0.1", "0.2"]),
        ("Section 3 of arXiv 1904.05181v2 has 8×8 digits in 2 tables.", []),
        ("a budget of 0.25, that is 25 %, at 5 % loss", ["5 %"]),
        ("the 95 % interval, and 95 % else", ["95 %"]),
        ("Python 3.11 <!-- given: 3.11 -->", []),
    ],
)
def test_a_typed_number_is_seen(text: str, found: list[str]) -> None:
    assert typed(text, chosen=[0.25]) == found
