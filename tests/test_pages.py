"""The pages around the chapters: glossary, index, cheat sheets, what a link shows, the book on paper."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import nbformat
import pdf
import pytest
import sync
import terms
import yaml

from kdsec import config
from kdsec.attacks.extraction import EXTRACTION_ATTACKS
from kdsec.config import CHAPTERS
from kdsec.data import Augment
from kdsec.defenses.registry import DEFENSES
from kdsec.errors import KdsecError
from kdsec.report import findings, quote, scoreboard
from kdsec.train import Recipe
from tests.test_book import executed_run, small_book  # noqa: F401 (fixtures)

MOST_PAGES = 170
ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("*.md")}
SHEETS = re.split(r"^\(sheet-\w+\)=\n## ", PAGES["cheat-sheets"], flags=re.MULTILINE)[1:]
PARAGRAPHS = [
    "Claims",
    "Who has what",
    "Loss",
    "Defaults",
    "The call",
    "Our records",
    "What breaks it",
    "Cost",
]


def _words(chapter: Any) -> str:
    notebook = nbformat.read(ROOT / "notebooks" / chapter.notebook, as_version=4)
    return "\n".join(cell.source for cell in notebook.cells)


CHAPTER_WORDS = {chapter.number: _words(chapter) for chapter in CHAPTERS.values()}


# The glossary and the index


def test_every_term_is_used_in_the_chapters_that_it_names() -> None:
    entries = re.findall(r"^(\w.*)\n  (.*)$", PAGES["glossary"], re.MULTILINE)
    assert [term for term, _ in entries] == terms.terms()
    for term, text in entries:
        links = re.findall(r"\[(\d)\]\(notebooks/0(\d)-[\w-]+\.ipynb\)", text)
        assert links, term
        for shown, number in links:
            assert shown == number, term
            assert terms.pattern(term).search(CHAPTER_WORDS[int(number)]), f"{term}, chapter {number}"


# Cheat sheets


def test_every_method_has_a_cheat_sheet() -> None:
    for name in set(DEFENSES) - {"normal", "smoothed"}:  # the yardsticks
        method = name.rpartition(", ")[2]
        assert any(re.search(rf"\b{method}\b", sheet, re.IGNORECASE) for sheet in SHEETS), name
    for name in EXTRACTION_ATTACKS:
        assert re.search(rf"\*{name}\*", SHEETS[0]), name
    papers = set(re.findall(r"\{cite\}`([\w,]+)`", PAGES["index"]))
    for paper in {key for group in papers for key in group.split(",")}:
        assert any(paper in sheet for sheet in SHEETS), paper


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.splitlines()[0])
def test_a_sheet_says_everything_and_its_call_would_run(sheet: str) -> None:
    assert [name for name in re.findall(r"^(\w.*)\n: ", sheet, re.MULTILINE) if name != "Ways"] == PARAGRAPHS
    records = sheet.partition("\nOur records\n")[2].partition("\nWhat breaks it\n")[0]
    assert not re.search(r"\d", re.sub(r"<!-- records .*? -->", "", records)), "a number was typed"
    named = re.findall(r"<!-- records [\w-]+: (.*?) -->", records)
    assert len(", ".join(named).split(", ")) == 3
    (block,) = re.findall(r": ```python\n(.*?)```", sheet, re.DOTALL)
    tree = ast.parse(textwrap.dedent(block))
    known: dict[str, Any] = {}
    for line in tree.body:
        if isinstance(line, ast.ImportFrom):
            module = importlib.import_module(str(line.module))
            known |= {each.name: getattr(module, each.name) for each in line.names}
    called = 0
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            target = known[call.func.id]  # a KeyError names what the sheet forgot to import
            named = {str(each.arg): None for each in call.keywords}
            inspect.signature(target).bind(*[None] * len(call.args), **named)
            called += 1
    assert called or "EXTRACTION_ATTACKS" in known


# Numbers in prose


@pytest.fixture(scope="module")
def recorded() -> quote.Source:
    return quote.Source(scoreboard.read(ROOT / "results"), ROOT / "results")


def _rewritten(folder: pathlib.Path, chapter: str, change: str) -> quote.Source:
    """The records of one chapter, in a copy, with the values of an arm's rows replaced by 0."""
    part = pathlib.Path("quick") / chapter
    shutil.copytree(ROOT / "results" / part, folder / part, ignore=shutil.ignore_patterns("*.ipynb"))
    for path in (folder / part).glob("*.csv"):
        lines = path.read_text().splitlines(keepends=True)
        text = "".join(
            re.sub(r",[^,]*,(\d*)\n$", r",0,\1\n", line) if change in line else line for line in lines
        )
        path.write_text(text)
        about = json.loads(path.with_suffix(".json").read_text())
        about["checksum"] = quote.records._checksum(text)
        path.with_suffix(".json").write_text(json.dumps(about))
    return quote.Source(scoreboard.read(folder), folder)


def test_what_a_page_says_follows_from_the_records(recorded: quote.Source, tmp_path: pathlib.Path) -> None:
    marks = (
        "<!-- claims differentiators: most-targeted, pruning --> <!-- minutes differentiators -->\n"
        "<!-- defaults attacks.crafting: Crafting, eps, steps -->"
    )
    same = quote.fill(marks, _rewritten(tmp_path / "same", "differentiators", "no such row"))
    other = quote.fill(marks, _rewritten(tmp_path / "other", "differentiators", ",caught,"))
    assert other != same
    row = r'<td data-column="measured">(.+?) <.*?<span class="verdict (.*?)"'
    first, second = (re.findall(row, text) for text in (same, other))
    assert first[0][1] == "supported" and second[0] == ("0.0\xa0%", "contradicted")
    assert first[-1] == second[-1]
    assert " minutes a seed at *quick*" in same and "`eps=8/255`, `steps=20`" in same
    assert not re.search(r"<!-- (?!given:)", quote.fill(PAGES["cheat-sheets"], recorded))


def test_a_record_line_says_verdict_number_and_data_and_leads_to_its_row(recorded: quote.Source) -> None:
    text = quote.fill("<!-- records opening: few-soft, kd-labels -->", recorded)
    first, second = text.split("\n  ")
    found = findings.best(recorded.judged("opening", "few-soft"))
    assert first.startswith(f'- {found.claim.statement}: <a href="scoreboard.html#opening-few-soft">')
    assert f"{found.words}</a>, {found.measured} ({found.interval}), " in first and "kd-labels" in second


def test_a_page_is_filled_again_in_place(recorded: quote.Source) -> None:
    source = quote.Source(recorded.boards, recorded.folder, plain=True)
    first, second = "<!-- claims opening: kd-labels -->", "<!-- claims opening: few-soft -->"
    text = f"A {first} B {second}old<!-- end --> <!-- note -->"
    once = quote.fill(text, source, keep=True)
    assert (
        "old" not in once
        and " B <!-- claims opening: few-soft -->" in once
        and once.endswith("<!-- note -->")
    )
    assert quote.fill(once, source, keep=True) == once


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("<!-- claims opening: no-such -->", "claim of chapter opening 'no-such'"),
        ("<!-- minutes closing -->", "chapter 'closing'"),
        ("<!-- defaults attacks.crafting: Crafting, epsilon -->", "default of Crafting 'epsilon'"),
        ("<!-- defaults attacks.crafting: Craft -->", "no class or function 'Craft'"),
    ],
)
def test_a_mark_that_asks_for_nothing_is_named(mark: str, message: str, recorded: quote.Source) -> None:
    with pytest.raises(KdsecError, match=re.escape(message)) as caught:
        quote.fill(mark, recorded)
    assert "\n" not in str(caught.value)


def test_the_readme_says_what_the_records_say(recorded: quote.Source) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sync.with_numbers(text, recorded.boards) == text, "run make fill"
    assert text.count("<!-- end -->") == 5
    wrong = re.sub(r"(<!-- finding .*? -->)", r"\1We found more.", text)
    assert wrong != text and sync.with_numbers(wrong, recorded.boards) == text


def test_the_short_schedule_costs_less_than_a_point() -> None:
    """By the recipe that the chapter has, on the mean of each measurement."""
    recorded = json.loads((ROOT / "results" / "schedules.json").read_text())["results"]
    for found in recorded:
        paper = config.settings("sparse-teacher", "paper", {"dataset": found["dataset"]})
        for name, recipe in (("full", paper.recipe), ("fast", paper.fast)):
            then = found["recipes"][name]  # before later fields, which have their defaults
            then |= {"augment": Augment(**then["augment"]), "milestones": tuple(then["milestones"])}
            assert Recipe(**then) == recipe
        mean, low, _ = found["difference"]
        assert mean > -0.01 and (low is None or low > -0.02), found


# What a link to the book shows


# The book on paper


def _site(folder: pathlib.Path) -> pathlib.Path:
    """A site with one section, one solution and some links on every page of the table of contents."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    for name in [toc["root"], *(each["file"] for part in toc["parts"] for each in part["chapters"])]:
        path = folder / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * name.count("/")
        solution = f'<div class="solution" id="s">Answer of {name}</div>'
        path.write_text(
            f'<article class="bd-article"><section id="top"><h1>{name}</h1><a class="headerlink">#</a>'
            f'<p id="download"></p><section id="same"><h2>Same</h2>'
            f'<a href="{up}glossary.html#term-x">word</a>'
            f'<a href="#same">here</a><a href="https://example.org">out</a><a href="{up}search.html">find</a>'
            f'<img src="{up}_images/a.png"><img src="data:image/png;base64,AA==">'
            f"{solution if up else ''}</section>"
            f"<noscript>still</noscript></section></article>"
        )
    return folder


def test_the_pages_become_one_document_with_links_inside(tmp_path: pathlib.Path) -> None:
    text = pdf.Book(_site(tmp_path)).text({})
    names = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(names)) == len(names)
    assert {"index--same", "notebooks-01-opening--same", "glossary--same"} <= set(names)
    assert '<a href="#glossary--term-x">word</a>' in text
    assert '<a href="#notebooks-01-opening--same">here</a>' in text
    assert '<a href="https://example.org">out</a>' in text
    assert "find" in text and "search.html" not in text
    assert 'src="_images/a.png"' in text and 'src="../' not in text
    assert 'src="data:image/png;base64,AA=="' in text  # the still of a figure that answers
    assert "headerlink" not in text and pdf.LINK not in text and "still" in text
    assert text.count(f"<h1>{pdf.ANSWERS}</h1>") == 1
    config, answers = text.index("<h1>notebooks/07-crossing"), text.index(f"<h1>{pdf.ANSWERS}</h1>")
    assert config < answers < text.index("Answer of notebooks/01-opening") < text.index("<h1>scoreboard")


# At the width of the paper's text, what reaches beyond the right edge would be cut off.
BEYOND = """() => [...document.querySelectorAll('main *')].filter(each =>
    each.getBoundingClientRect().right > document.documentElement.clientWidth + 1
    && !each.closest('mjx-assistive-mml')).map(each => each.outerHTML.slice(0, 100))"""


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("which", ["small", "real"])
def test_the_pdf_has_every_chapter_and_cuts_nothing_off(
    which: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path, chromium: Any
) -> None:
    from pypdf import PdfReader

    built = request.getfixturevalue("small_book") if which == "small" else ROOT / "_build" / "html"
    if not (built / "index.html").is_file():
        pytest.skip("the real book has not been built (make book)")
    pages = shutil.copytree(built, tmp_path / "html")
    # In a process of its own, since it starts a browser, and here one runs already.
    script = str(ROOT / "book" / "pdf.py")
    done = subprocess.run([sys.executable, script, str(pages)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = PdfReader(pages / pdf.NAME)
    assert pdf.NAME in (pages / "index.html").read_text(encoding="utf-8")

    numbers = pdf.page_numbers((pages / pdf.NAME).read_bytes())
    texts = [" ".join(page.extract_text().split()) for page in made.pages]
    for chapter in CHAPTERS.values():
        page = numbers[pdf.anchor(f"notebooks/{chapter.notebook[:-6]}")]
        assert chapter.title[:25] in texts[page - 1]
        assert re.search(rf"{re.escape(chapter.title)} {page}\b", " ".join(texts[1:4])), chapter.title
    assert str(pdf.UNKNOWN) not in " ".join(texts[1:4])
    assert len(texts) < MOST_PAGES

    draft = pages / "draft.html"
    draft.write_text(pdf.Book(pages).text(numbers), encoding="utf-8")
    page = chromium.new_page(viewport={"width": 658, "height": 960})  # 174 mm
    page.emulate_media(media="print")
    page.goto(draft.as_uri(), wait_until="load")
    page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
    assert page.evaluate(BEYOND) == []
    assert page.evaluate("() => [...document.images].filter(image => !image.naturalWidth).length") == 0
    page.close()
