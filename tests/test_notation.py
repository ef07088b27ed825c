"""One notation through the whole book, which ``book/notation.md`` lists, so that no letter is learnt twice.

The letters that chapters used for themselves once, and must not use again, are refused in every formula: of
the chapters, of the pages and of the package's docstrings. Text on figures is looked at as well.
"""

from __future__ import annotations

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

import nbformat
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "book").glob("*.md"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = sorted((ROOT / "kdsec").rglob("*.py"))

FENCE = re.compile(
    r"^[ :]*(?P<fence>`{3,})(?:python|bash|bibtex|json)\b.*?^ *(?P=fence)", re.DOTALL | re.MULTILINE
)
IN_MARKDOWN = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
IN_DOCSTRING = re.compile(r":math:`([^`]+)`|\.\. math::(.*?)(?:\n\s*\n|\Z)", re.DOTALL)
WORDS = re.compile(r"\\(?:text|mathrm|operatorname)\s*\{[^{}]*\}")
ALONE = r"(?<![A-Za-z\\_]){}(?![A-Za-z])"  # a letter of its own, no part of a word, a command or an index

REFUSED = {
    r"\\epsilon": r"a budget is \varepsilon, noise of a generator \xi",
    r"(?<!_\{)" + ALONE.format("T"): r"a temperature is \tau, a teacher f_T; T is an index only",
    r"\\sigma_\{?T": r"a temperature is \tau",
    r"(?<!_\{)" + ALONE.format("S"): "a student is f_S, a purifier g; S is an index only",
    ALONE.format("C") + "(?!_)": "the number of classes is K",
    ALONE.format("L") + r"(?=\s*=|_)": r"a loss is \mathcal{L}; L alone is a number of layers",
    ALONE.format("[fz]") + r"_\{?[ts](?![A-Za-z])": "teacher and student are f_T, f_S, z_T, z_S",
    r"f_\{?A|\^\{?A": "the honest network is f_H, and what it says has an H",
    ALONE.format("[pm]") + r"_\{?t(?![A-Za-z])": r"the right class's probability is p_y, a margin \gamma_t",
    ALONE.format("E") + r"_": r"a mean over draws is \mathbb{E}",
}
# On figures and in what cells print.
REFUSED_WORDS = re.compile(r"\bT\s*=\s|\bT²|temperature T\b|ϵ")


def markdown_math(text: str) -> list[str]:
    """The formulas of a Markdown text; dollar signs in code are none."""
    text = re.sub(r"`[^`\n]+`", "", FENCE.sub("", text))
    return [display or inline for display, inline in IN_MARKDOWN.findall(text)]


def docstring_math(source: str) -> Iterator[str]:
    """The formulas in the docstrings of a module."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(ast.parse(source)):
        text = ast.get_docstring(node) if isinstance(node, kinds) else None
        for inline, display in IN_DOCSTRING.findall(text or ""):
            yield inline or display


def refused(formula: str) -> list[str]:
    """What is to be written in place of the letters of ``formula`` that the book does not use."""
    formula = WORDS.sub(" ", formula)
    return [advice for pattern, advice in REFUSED.items() if re.search(pattern, formula)]


@functools.cache
def cells(path: pathlib.Path, kind: str) -> list[str]:
    notebook = nbformat.read(path, as_version=4)
    found = [cell for cell in notebook.cells if cell.cell_type == kind]
    return [cell.source for cell in found if "colab" not in cell.metadata.get("tags", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_has_the_letters_of_the_book(path: pathlib.Path) -> None:
    formulas = [formula for text in cells(path, "markdown") for formula in markdown_math(text)]
    assert formulas
    assert {formula: found for formula in formulas if (found := refused(formula))} == {}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_so_have_its_figures_and_what_it_prints(path: pathlib.Path) -> None:
    nodes = [node for text in cells(path, "code") for node in ast.walk(ast.parse(text))]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    assert [text for text in texts if REFUSED_WORDS.search(text)] == []
    notebook = nbformat.read(path, as_version=4)
    shown = [str(cell.metadata.get("mystnb", "")) for cell in notebook.cells]
    assert [found for text in shown for each in markdown_math(text) if (found := refused(each))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_so_has_a_page(page: pathlib.Path) -> None:
    formulas = markdown_math(page.read_text(encoding="utf-8"))
    assert {formula: found for formula in formulas if (found := refused(formula))} == {}


def test_so_has_the_package() -> None:
    found = {
        f"{path.name}: {formula}": advice
        for path in SOURCES
        for formula in docstring_math(path.read_text(encoding="utf-8"))
        if (advice := refused(formula))
    }
    assert found == {}


def test_a_refused_letter_is_seen() -> None:
    for formula in (
        r"\sigma_T(z)",
        r"e^{z_i/T}",
        r"\arg\max f_t(z)",
        r"\|\delta\| \le \epsilon",
        r"C(C-1)/2",
    ):
        assert refused(formula), formula
    assert not refused(r"\sigma_\tau(f_T(x)) - \sigma_\tau(z_{T}) + \mathcal{L}, f_T^{\,\ell}, \ell < L")
