"""The pages around the chapters: glossary, index, cheat sheets, what a link shows, the book on paper."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import pathlib
import re
import shutil
import statistics
import struct
import subprocess
import sys
import textwrap
from typing import Any

import build
import card
import nbformat
import pdf
import pytest
import sync
import terms
import yaml

from kdsec import chapters
from kdsec.attacks.stealing import THIEVES
from kdsec.chapters import CHAPTERS
from kdsec.defenses.protected import PROTECTED
from kdsec.errors import KdsecError
from kdsec.report import quote, scoreboard, tables
from tests.test_book import executed_run, small_book  # noqa: F401 (fixtures)

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


def test_terms_are_in_alphabetical_order_and_named_once() -> None:
    known = [term.lower() for term in terms.terms()]
    assert known == sorted(set(known))


@pytest.mark.parametrize(
    ("term", "text", "found"),
    [
        ("student", "Two students.", True),
        ("student", "A Student", True),
        ("query", "queries", True),
        ("soft labels", "soft\nlabels", True),
        ("PGD", "PGD-AT", False),
        ("PGD", "pgd", False),
        ("risk", "asterisk", False),
    ],
)
def test_a_term_is_found_as_a_word(term: str, text: str, found: bool) -> None:
    assert bool(terms.pattern(term).search(text)) is found


def test_the_index_points_to_the_first_use_and_into_no_exercise() -> None:
    v4 = nbformat.v4
    cells = ["````{exercise} Teacher\n````", "# A student\n\nText.", "More students.", "A teacher."]
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell(each) for each in cells])
    chapter = CHAPTERS["opening"]
    first, second, third, fourth = terms.with_index(notebook, chapter, ["student", "teacher"]).cells
    assert second.source.splitlines()[0] == "# A student"
    assert second.source.count("```{index} single: student; chapter 1\n") == 1
    assert fourth.source.startswith("```{index} single: teacher; chapter 1\n```\n")
    assert fourth.source.endswith("A teacher.")
    assert [first.source, third.source] == [cells[0], cells[2]]
    assert [cell.source for cell in notebook.cells] == cells


# Cheat sheets


def test_every_method_has_a_cheat_sheet() -> None:
    for name in set(PROTECTED) - {"normal", "smoothed"}:  # the yardsticks
        method = name.rpartition(", ")[2]
        assert any(re.search(rf"\b{method}\b", sheet, re.IGNORECASE) for sheet in SHEETS), name
    for name in THIEVES:
        assert re.search(rf"\*{name}\*", SHEETS[0]), name
    papers = set(re.findall(r"\{cite\}`([\w,]+)`", PAGES["index"].partition("## How numbers")[0]))
    for paper in {key for group in papers for key in group.split(",")}:
        assert any(paper in sheet for sheet in SHEETS), paper


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.splitlines()[0])
def test_a_sheet_says_everything_and_its_call_would_run(sheet: str) -> None:
    assert [name for name in re.findall(r"^(\w.*)\n: ", sheet, re.MULTILINE) if name != "Ways"] == PARAGRAPHS
    records = sheet.partition("\nOur records\n")[2].partition("\nWhat breaks it\n")[0]
    assert not re.search(r"\d", re.sub(r"<!-- claims .*? -->", "", records)), "a number was typed"
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
    assert called or "THIEVES" in known


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
    first, second = (
        re.findall(r'<td [^>]*><span class="verdict (.*?)".*?</span> (\S+) ', text) for text in (same, other)
    )
    assert first[0][0] == "supported" and second[0] == ("not-supported", "+0.0")
    assert first[1] == second[1]
    assert " minutes a seed at *quick*" in same and "`eps=8/255`, `steps=20`" in same
    assert not re.search(r"<!-- (?!given:)", quote.fill(PAGES["cheat-sheets"], recorded))


@pytest.mark.parametrize("plain", [True, False])
def test_every_profile_has_its_own_column(plain: bool, recorded: quote.Source) -> None:
    source = quote.Source(recorded.boards, recorded.folder, plain=plain)
    run = [each for each in source.judged("opening", "few-soft") if each.difference]
    lines = [line for line in re.split(r"<tr>|\n", source.claims("opening", ["few-soft"])) if line]
    cells = [cell for cell in re.split(r"<td[^>]*>|\|", lines[-1]) if cell.strip()][1:]
    assert len(run) == len(cells) == len({each.text("mean") for each in run}) > 1
    for each, cell in zip(run, cells, strict=True):
        assert each.text("mean") in cell and each.text("interval") in cell
        assert tables.MARKS[each.verdict] in cell


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
    assert sync.with_numbers(text, recorded.boards) == text, "run python book/sync.py README.md"
    assert text.count("<!-- end -->") == 5
    wrong = text.replace("| ✓", "| ✗", 1)
    assert wrong != text and sync.with_numbers(wrong, recorded.boards) == text


def test_the_page_shows_what_the_short_schedule_was_measured_to_cost(tmp_path: pathlib.Path) -> None:
    recorded = json.loads((ROOT / "results" / "schedules.json").read_text())["results"]
    _, _, *rows = build.schedules(ROOT / "results").splitlines()
    assert "<!-- schedules -->" in PAGES["how-to-run"]
    here, there = (
        chapters.settings("sparse-teacher", "paper", {"dataset": name}) for name in ("cifar10", "cifar100")
    )
    epochs = here.fast.epochs, here.recipe.epochs, there.recipe.epochs
    assert "in {} epochs where the papers take {}, or {}".format(*epochs) in PAGES["how-to-run"]
    for found, row in zip(recorded, rows, strict=True):
        full, fast = (100 * statistics.mean(found[f"{name}_accuracy"]) for name in ("full", "fast"))
        name = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[found["dataset"]]
        assert f"| `{found['net']}` | {found['images']:,} of {name} | {len(found['full_accuracy'])} |" in row
        gap = 100 * found["difference"][0]
        assert gap == pytest.approx(fast - full)
        assert f"| {full:.1f} % | {fast:.1f} % | {gap:+.1f} " in row
        assert ("(" in row) is (len(found["full_accuracy"]) > 1)
    assert build.schedules(tmp_path) == "There is no measurement."


def test_the_short_schedule_costs_less_than_a_point() -> None:
    """By the recipe that the chapter has, on the mean of each measurement."""
    recorded = json.loads((ROOT / "results" / "schedules.json").read_text())["results"]
    for found in recorded:
        paper = chapters.settings("sparse-teacher", "paper", {"dataset": found["dataset"]})
        recipes = {"full": dataclasses.asdict(paper.recipe), "fast": dataclasses.asdict(paper.fast)}
        assert found["recipes"] == json.loads(json.dumps(recipes))
        mean, low, _ = found["difference"]
        assert mean > -0.01 and (low is None or low > -0.02), found


# What a link to the book shows


@pytest.mark.parametrize("records", [True, False])
def test_the_card_has_the_size_that_is_promised(records: bool, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "card.png"
    card.draw(ROOT / "results" if records else tmp_path, path)
    assert struct.unpack(">II", path.read_bytes()[16:24]) == card.SIZE
    tags = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]
    for side, pixels in zip(("width", "height"), card.SIZE, strict=True):
        assert f'<meta property="og:image:{side}" content="{pixels}" />' in tags["ogp_custom_meta_tags"]


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
    chapters, answers = text.index("<h1>notebooks/07-crossing"), text.index(f"<h1>{pdf.ANSWERS}</h1>")
    assert chapters < answers < text.index("Answer of notebooks/01-opening") < text.index("<h1>scoreboard")


def test_the_contents_name_the_page_of_each_chapter(tmp_path: pathlib.Path) -> None:
    name = "notebooks/03-poisoned-distillation"
    place = pdf.anchor(name)
    text = pdf.Book(_site(tmp_path)).text({place: 47})
    assert f'<a href="#{place}">{name}</a> <span>47</span>' in text
    (tmp_path / "glossary.html").unlink()
    with pytest.raises(pdf.PdfError, match=r"glossary\.html is missing; run make book"):
        pdf.Book(tmp_path)


def test_without_a_browser_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["pdf.py"])
    assert pdf.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "apt install chromium" in line


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
    assert not (pages / "_print.html").exists()

    numbers = pdf.page_numbers((pages / pdf.NAME).read_bytes())
    texts = [" ".join(page.extract_text().split()) for page in made.pages]
    contents = " ".join(texts[1:4])
    assert not re.search("[\ufb00-\ufb06]", " ".join(texts))  # "fi" as one character hides from a search
    for chapter in CHAPTERS.values():
        page = numbers[pdf.anchor(f"notebooks/{chapter.notebook[:-6]}")]
        assert chapter.title[:25] in texts[page - 1]
        assert re.search(rf"{re.escape(chapter.title)} {page}\b", contents), chapter.title
        assert texts[page - 1].startswith(f"{page} ")
    index = " ".join(texts[numbers[pdf.anchor(pdf.INDEX)] - 1 :])
    assert re.search(r"\bstudent \d+, \d+", index)
    assert str(pdf.UNKNOWN) not in contents + index
    assert made.outline
    for page in made.pages:
        assert [round(float(side) / 72 * 25.4) for side in page.mediabox[2:]] == [210, 297]

    draft = pages / "draft.html"
    draft.write_text(pdf.Book(pages).text(numbers), encoding="utf-8")
    page = chromium.new_page(viewport={"width": 635, "height": 960})  # 168 mm
    page.emulate_media(media="print")
    page.goto(draft.as_uri(), wait_until="load")
    page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
    assert page.evaluate(BEYOND) == []
    assert page.evaluate("() => [...document.images].filter(image => !image.naturalWidth).length") == 0
    page.close()
