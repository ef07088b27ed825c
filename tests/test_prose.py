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

from kdsec import config
from kdsec.report import claims, quote

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
    text = quote.MARK.sub(" ", text)  # with what the records filled in
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


@pytest.mark.parametrize("chapter", config.CHAPTERS)
def test_no_number_in_a_chapters_prose_was_measured(chapter: str) -> None:
    notebook = nbformat.read(ROOT / "notebooks" / config.CHAPTERS[chapter].notebook, as_version=4)
    values = set(constants(notebook.cells))
    for profile in config.profiles(chapter):
        values |= set(numbers_in(config.settings(chapter, profile)))
    values |= {claim.threshold for claim in claims.papers()[chapter].claims}
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert {cell.id: found for cell in prose if (found := typed(cell.source, values))} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_number_on_a_page_was_measured(page: pathlib.Path) -> None:
    assert typed(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The student reaches 97.2 % of it.", ["97.2 %"]),
        ("It loses 12 points, or 0.12.", ["12 points", "0.12"]),
        ("```{exercise} A\n:label: b\n\nIs it 73.1 %?\n```", ["73.1 %"]),
        ("```python\nx = 0.93\n```\nand `0.93`, [here](a-0.93.md) <!-- 0.93 -->", []),
        ("```{index} a\n```\n0.1\n\nCall\n: ```python\n  x = 0.93\n  ```\n\n0.2", ["0.1", "0.2"]),
        ("a budget of 0.25, that is 25 %, at 5 % loss", ["5 %"]),
        ("the 95 % interval, and 95 % else", ["95 %"]),
        ("Python 3.11 <!-- given: 3.11 -->", []),
        ("It is 4.5. <!-- finding opening -->It is 1.5 points.<!-- end --> And 5 %.", ["4.5", "5 %"]),
    ],
)
def test_a_typed_number_is_seen(text: str, found: list[str]) -> None:
    assert typed(text, chosen=[0.25]) == found


# Captions, alternative texts: a comparison belongs into a figure's title, which is computed, or to a claim.

COMPARISON = re.compile(
    r"\b(?:more|less|fewer|most|least|better|best|worse|larger|largest|smaller|smallest|higher|highest|lower"
    r"|lowest|falls?|rises?|beats?|wins?|hardly|nearly|far|well|badly|always|never|only|none|nothing)\b",
    re.IGNORECASE,
)
NOT_COMPARED = re.compile(
    r"worst case|trigger only|perturbation only|to no poison|from no\w*|knows? (?:no|every)\w*"
)
COLOUR = re.compile(
    r"\b(?:red|blue|green|orange|yellow|pink|violet|purple|black)\b|\bgrey (?!box)", re.IGNORECASE
)
RECORDED = re.compile(r"panels\.\w+\((?:book\.main\()?recordings\)")


@pytest.mark.parametrize("chapter", ["poisoned-distillation", "purification", "differentiators"])
def test_captions_of_recorded_figures_claim_nothing(chapter: str) -> None:
    """New records change a figure and not its caption; a colour is that of an arm, which a legend names."""
    notebook = nbformat.read(ROOT / "notebooks" / config.CHAPTERS[chapter].notebook, as_version=4)
    drawn = [cell for cell in notebook.cells if cell.metadata.get("mystnb") and RECORDED.search(cell.source)]
    assert len(drawn) > 3
    for cell in drawn:
        about = cell.metadata["mystnb"]
        for text in (about["figure"]["caption"], about["image"]["alt"]):
            text = NOT_COMPARED.sub("", text)
            assert not COMPARISON.findall(text) and not COLOUR.findall(text), text


@pytest.mark.parametrize("chapter", config.CHAPTERS)
def test_every_claim_has_its_place_in_the_verdict(chapter: str) -> None:
    """Where a chapter asks question by question, no claim is forgotten and none is told twice."""
    notebook = nbformat.read(ROOT / "notebooks" / config.CHAPTERS[chapter].notebook, as_version=4)
    code = [
        ast.parse(cell.source)
        for cell in notebook.cells
        if cell.cell_type == "code" and "claims(" in cell.source
    ]
    told = [
        argument.value
        for tree in code
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "claims"
        for argument in call.args
        if isinstance(argument, ast.Constant)
    ]
    known = [claim.id for claim in claims.papers()[chapter].claims]
    assert not told or sorted(told) == sorted(known)
