"""The Colab edition: what a reader of plain Markdown sees of each chapter."""

from __future__ import annotations

import copy
import functools
import pathlib
import re
from typing import Any

import address
import edition
import nbformat
import pytest
import sync

from kdsec.config import CHAPTERS, Chapter

ROOT = pathlib.Path(__file__).resolve().parent.parent
STATES = {
    "published": ("https://github.com/owner/name", "https://book.example.org/"),
    "not published": ("", ""),
}
CHAPTER = CHAPTERS["opening"]


def _settings(state: str) -> dict[str, Any]:
    settings = address.config()
    settings["repository"]["url"], settings["html"]["baseurl"] = STATES[state]
    return settings


@functools.cache
def _notebooks() -> dict[str, Any]:
    return {name: nbformat.read(ROOT / "notebooks" / each.notebook, 4) for name, each in CHAPTERS.items()}


def _made(chapter: Chapter, state: str) -> Any:
    return edition.Edition.of(_settings(state), _notebooks()).chapter(_notebooks()[chapter.name], chapter)


def _text(text: str, state: str = "published") -> str:
    """What a cell of the first chapter becomes; its cells joined by a line."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell(each) for each in text.split("%%")]
    )
    made = edition.Edition.of(_settings(state), {"opening": notebook}).chapter(notebook, CHAPTER)
    nbformat.validate(made)
    cells = [cell for cell in made.cells if "This notebook is" not in cell.source]
    return "\n%%\n".join(cell.source for cell in cells)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda chapter: chapter.name)
def test_each_notebook_opens_and_shows_no_raw_markup(chapter: Chapter, state: str) -> None:
    made = _made(chapter, state)
    nbformat.validate(made)
    text = [cell.source for cell in made.cells if cell.cell_type == "markdown"]
    for shown in text:
        assert edition.raw(shown) == [], shown
        assert not re.search(
            r"\{(?:figure|term|cite|numref|ref|doc|exercise|solution|admonition)\b", shown
        ), shown
    whole = "\n".join(text)
    source = "\n".join(cell.source for cell in _notebooks()[chapter.name].cells)
    asked = len(re.findall(r"^`{3,}\{exercise\}", source, re.MULTILINE))
    numbers = re.findall(r"^### Exercise (\d)\.(\d+)", whole, re.MULTILINE)
    assert numbers == [(str(chapter.number), str(1 + place)) for place in range(asked)]
    # Solutions begin collapsed, and nothing but a heading ends what is collapsed.
    collapsed = made.metadata["colab"]["collapsed_sections"]
    assert len(collapsed) == whole.count("#### Solution to Exercise") == asked
    for cell, after in zip(made.cells, made.cells[1:], strict=False):
        if edition.SOLUTION in cell.metadata.get("tags", []) and edition.SOLUTION not in after.metadata.get(
            "tags", []
        ):
            assert re.match(r"#{1,4} ", after.source), after.source
    figures = sum("figure" in cell.metadata.get("mystnb", {}) for cell in _notebooks()[chapter.name].cells)
    assert whole.count("**Figure ") >= figures
    outside = set(re.findall(r"\]\((https?://[^/)]+)", whole))
    known = {"https://arxiv.org", "https://doi.org"}
    if state == "published":
        known |= {"https://colab.research.google.com", "https://book.example.org"}
    assert {each for each in outside if "colab" in each or "example" in each} <= known
    assert not re.search(r"\]\((?!https?:|data:)", whole), "a link that leads nowhere on Colab"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("chapter", CHAPTERS.values(), ids=lambda chapter: chapter.name)
def test_code_is_that_of_the_book_after_a_cell_that_installs(chapter: Chapter, state: str) -> None:
    first, *code = [cell.source for cell in _made(chapter, state).cells if cell.cell_type == "code"]
    assert first == sync.first_cell(STATES[state][0])
    source = [cell.source for cell in _notebooks()[chapter.name].cells if cell.cell_type == "code"]
    assert [re.sub(r"^# @title .*\n", "", each) for each in code] == source[1:]


def test_pictures_stay_and_what_makes_them_live_goes() -> None:
    v4 = nbformat.v4
    data = {"image/png": "iVBO", "text/html": "<script>", "text/plain": "a figure"}
    cell = v4.new_code_cell("draw()", outputs=[v4.new_output("display_data", data)])
    cell.metadata["mystnb"] = {"figure": {"caption": "It falls at $x$."}, "image": {"alt": "a line"}}
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# One"), cell])
    before = copy.deepcopy(notebook)
    made = edition.Edition.of(_settings("published"), {"opening": notebook}).chapter(notebook, CHAPTER)
    assert notebook == before
    assert set(made.cells[2].outputs[0].data) == {"image/png", "text/plain"}
    assert made.cells[3].source == "**Figure 1.1.** It falls at $x$."


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (
            "See {cite}`hinton2015distilling`.",
            "See ([Hinton et al., 2015](https://arxiv.org/abs/1503.02531)).",
        ),
        ("{cite:t}`yilmaz2024ast` say", "[Yilmaz and Keles (2024)](https://arxiv.org/abs/2403.05181) say"),
        ("a {term}`teacher`, {term}`students <student>`", "a teacher, students"),
        ("[](../notation)", "[Notation](https://book.example.org/notation.html)"),
        ("[all](../scoreboard.md#opening-a)", "[all](https://book.example.org/scoreboard.html#opening-a)"),
        ("`{cite}` and `[](x)` stay", "`{cite}` and `[](x)` stay"),
        ("(a-label)=\n## Head <!-- given: 3 -->\n\n{ref}`a-label`", "## Head \n\nHead"),
        ("$$x = 1$$ (eq)\n\nby {eq}`eq`", "$$x = 1$$\n\nby Equation 1.1"),
        (":::{note}\nMind {term}`it`.\n:::", "> **Note**\n>\n> Mind it."),
        (
            "::::{admonition} In one minute\n:class: tip\n\nA.\n\n:::{div} x\nB.\n:::\n::::",
            "> **In one minute**\n>\n> A.\n>\n> B.",
        ),
        ("```{unheard-of} Title\n:option: 1\nbody\n```", "**Title**\n\nbody"),
        ("```{index} single: a\n```\ntext", "text"),
        ("```python\n{term}`code`\n```", "```python\n{term}`code`\n```"),
        (
            "```{figure} https://a.org/b.png\n:alt: a [b]\n:name: fig-b\n\nCaption.\n```\n{numref}`fig-b`",
            "![a (b)](https://a.org/b.png)\n\n**Figure 1.1.** Caption.\n\nFigure 1.1",
        ),
        (
            "```{exercise} One\n:label: e\n\nDo.\n```%%```{solution-start} e\n:class: dropdown\n```\n\nSo."
            "%%```{solution-end}\n```\n\n## Next",
            "### Exercise 1.1: One\n\nDo.\n%%\n#### Solution to Exercise 1.1\n\nSo.\n%%\n## Next",
        ),
    ],
)
def test_markup_becomes_markdown(written: str, read: str) -> None:
    assert _text(written) == read


def test_without_addresses_nothing_is_linked() -> None:
    text = _text("[](../notation), [next](02-sparse-teacher.ipynb), [](../index.md)", "not published")
    assert text == "Notation, next, Is knowledge distillation safe?"
    assert "02-sparse-teacher.ipynb)" in _text("[next](02-sparse-teacher.ipynb)")


def test_a_drawing_of_the_book_travels_with_the_notebook() -> None:
    text = _text("```{figure} ../_static/logo.svg\n:alt: a lock\n```")
    assert text.startswith("![a lock](data:image/svg+xml;base64,")
    assert _text("![a lock](../book/_static/logo.svg)") == text


@pytest.mark.parametrize(
    "mark", ["```{note}", ":::", "{term}`x`", "(label)=", "<!-- given: 3 -->", "[](page)"]
)
def test_raw_markup_is_found(mark: str) -> None:
    assert edition.raw(f"text\n{mark}\ntext")
    assert not edition.raw("`{term}` and ``[](page)``, $a_{x}$, {braces}")
