"""The front page, the README, and the diagrams."""

from __future__ import annotations

import html
import json
import pathlib
import re
from datetime import datetime
from typing import Any

import address
import build as book
import diagrams
import nbformat
import pdf
import pytest
import sync
import terms
import yaml
from PIL import ImageFont

from kdsec.config import CHAPTERS
from kdsec.errors import KdsecError
from kdsec.report import scoreboard
from tests.test_book import Site, executed_run, site, small_book  # noqa: F401 (fixtures)

ROOT = pathlib.Path(__file__).resolve().parent.parent
README, INDEX, TEACHING, CHANGELOG = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "book/index.md", "book/teaching.md", "book/changelog.md")
)
FINDING = re.compile(r"<!-- finding ([\w-]+)(?:: [\w-]+)? -->")


@pytest.fixture(scope="module")
def nothing() -> scoreboard.Boards:
    """Verdicts where nothing is recorded."""
    return scoreboard.read(ROOT / "no such folder")


@pytest.fixture(scope="module")
def drawn() -> dict[str, diagrams.Drawing]:
    return diagrams.drawings(ROOT / "results")


# What the front page and the README have


def test_the_front_page_and_the_readme_say_the_same_in_the_same_order() -> None:
    for text in (README, INDEX):
        assert "<!-- claims" not in text
        places = [text.index(part) for part in ("\n**Anyone who", "diagrams/", "## What we found")]
        assert text.startswith("# Is knowledge distillation safe?\n") and places == sorted(places)
    assert FINDING.findall(README) == FINDING.findall(INDEX) and len(FINDING.findall(INDEX)) == 3
    bold = [re.search(r"^\*\*(.+)\*\*$", text, re.MULTILINE)[1] for text in (README, INDEX)]  # type: ignore[index]
    assert bold[0] == bold[1]
    start = INDEX.partition("{div} start")[2].partition(":::::\n")[0]
    assert start.count("```{button-ref}") == 2 and "<!-- run button -->" in start


def test_the_readme_needs_nothing_outside_the_repository() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)|(?:src|srcset)=\"([^\"]+)\"", README)
    for target in filter(None, (one for both in targets for one in both)):
        assert (ROOT / target).exists(), target
    assert len(README.splitlines()) < 70


@pytest.mark.parametrize("published", [True, False])
def test_links_to_the_repository_are_there_if_it_has_an_address(
    published: bool, nothing: scoreboard.Boards, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = yaml.safe_load(address.CONFIG.read_text(encoding="utf-8"))
    settings["repository"]["url"] = "https://github.com/owner/name" if published else ""
    settings["html"]["baseurl"] = "https://book.example.org/" if published else ""
    monkeypatch.setattr(address, "config", lambda: settings)
    made = [sync.badges(), book.run_button(), sync.with_numbers("<!-- chapters --><!-- end -->", nothing)]
    found = " ".join(made)
    marked = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("So: <!-- finding opening -->")])
    linked = sync.with_findings(marked, nothing).cells[0].source
    assert ("https://" in found) is published and ("Colab" in found) is published
    if published:
        assert "https://book.example.org/scoreboard.html#" in linked
        for chapter in CHAPTERS.values():
            assert f"/blob/{address.COLAB_BRANCH}/{chapter.notebook}" in found
        assert f"https://github.com/owner/name/releases/latest/download/{sync.PDF}" in found
    else:
        assert "(../kdsec/report/papers/opening.toml)" in linked
        assert "how-to-run" in found


def test_where_nothing_is_recorded_the_readme_says_so(nothing: scoreboard.Boards) -> None:
    text = sync.with_numbers(README, nothing)
    assert text.count("[· not yet run](") == 3 and "points (" not in text
    assert sync.with_numbers(text, nothing) == text


def test_the_text_of_every_chapter_says_what_the_records_say() -> None:
    recorded = scoreboard.read(ROOT / "results")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        assert sync.with_findings(notebook, recorded) == notebook, "run make fill"


# Seen


ABOVE = """() => Object.fromEntries(
    [['title', 'h1'], ['why', 'h1 ~ p'], ['picture', '.three svg'], ['buttons', '.start a'],
     ['findings', 'ol > li']].map(([name, selector]) => {
        const found = [...document.querySelectorAll('.bd-article ' + selector)].slice(0, 3);
        return [name, Math.max(...found.map(each => each.getBoundingClientRect().bottom))]; }))"""


@pytest.mark.browser
def test_what_why_findings_and_where_to_click_are_on_the_first_screen(site: Site) -> None:  # noqa: F811
    page, _ = site.open("index.html", viewport={"width": 1280, "height": 900})
    bottoms = page.evaluate(ABOVE)
    assert {name: bottom for name, bottom in bottoms.items() if not 0 < bottom < 900} == {}
    page.context.close()


# Diagrams


def test_a_phone_shows_every_word_of_a_diagram(drawn: dict[str, diagrams.Drawing]) -> None:
    """At 330 pixels no letter is under 11, and all text is inside the drawing, in a font wider than most."""
    for name, drawing in drawn.items():
        narrow = {"strip": drawing.width}.get(name, 330)  # the README's strip for desks has one for phones
        svg = drawing.svg()
        texts = re.findall(
            r'<text x="([\d.]+)" y="([\d.]+)" font-size="(\d+)" text-anchor="(\w+)"(.*?)>(.*?)<', svg
        )
        for x, y, size, anchor, look, words in texts:
            assert float(size) * min(1, narrow / drawing.width) >= 11, (name, words)
            font = ImageFont.truetype(_font("bold" if "weight" in look else "regular"), int(size))
            wide = font.getlength(words)
            left = float(x) - {"start": 0, "middle": wide / 2, "end": wide}[anchor]
            assert left >= -1 and left + wide <= drawing.width + 1, (name, words)
            assert float(size) < float(y) + 2 and float(y) < drawing.height, (name, words)


def _font(weight: str) -> str:
    from matplotlib import font_manager

    return str(font_manager.findfont(font_manager.FontProperties(family="DejaVu Sans", weight=weight)))


def test_the_stored_diagrams_are_those_of_their_sources(drawn: dict[str, diagrams.Drawing]) -> None:
    stored = {path.stem: path.read_text(encoding="utf-8") for path in diagrams.FOLDER.glob("*.svg")}
    assert {name: drawing.svg() for name, drawing in drawn.items()} == stored, "run make fill"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_chapter_has_its_diagram(chapter: str, drawn: dict[str, diagrams.Drawing]) -> None:
    cells = json.loads((ROOT / "notebooks" / CHAPTERS[chapter].notebook).read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    (image,) = diagrams.IMAGE.finditer(text)
    assert image["name"] == chapter and 8 <= len(image["caption"].split()) <= 45
    made = diagrams.inline(image[0], drawn)
    assert f"<figcaption>{html.escape(image['caption'])}</figcaption>" in made and "\n\n" not in made
    assert f'role="img" aria-label="{html.escape(image["alt"])}"' in made


def test_a_part_that_cannot_be_drawn_is_named() -> None:
    for line in ("bok own 1 2 3 4 : a", "box own 1 2 : a", "arrow own 1 2", "size 1"):
        with pytest.raises(KdsecError, match=re.escape(repr(line))):
            diagrams.Drawing().add(line)


def test_a_release_has_the_pdf_by_the_name_that_the_readme_links_to() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]["pdf"]["steps"]
    assert any(step.get("run", "").endswith(f"/{sync.PDF}") for step in steps) and sync.PDF == pdf.NAME
    assert all(re.search(r"@[0-9a-f]{40}$", step["uses"]) for step in steps if "uses" in step)


# Pages for teachers, and what changed


def test_the_teachers_page_has_every_exercise_once_with_its_difficulty() -> None:
    labels: dict[int, set[str]] = {}
    for chapter in CHAPTERS.values():
        cells = json.loads((ROOT / "notebooks" / chapter.notebook).read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        labels[chapter.number] = set(re.findall(r"\{exercise\}[^\n]*\n:label: (\S+)", text))
    table = TEACHING.partition("| chapter | easy |")[2]
    rows = {
        int(number): re.findall(r"\{ref\}`([\w-]+)`", row)
        for number, row in re.findall(r"^\| (\d) \|(.*)", table, re.M)
    }
    assert {number: set(row) for number, row in rows.items()} == labels
    assert all(len(row) == len(set(row)) for row in rows.values())


def test_changes_are_dated_newest_first() -> None:
    dates = [datetime.strptime(day, "%d %B %Y") for day in re.findall(r"^## (.+)$", CHANGELOG, re.MULTILINE)]
    assert dates == sorted(dates, reverse=True) and len(dates) == len(set(dates)) >= 4


# Terms


def test_the_first_use_of_a_term_in_running_text_carries_its_meaning() -> None:
    v4 = nbformat.v4
    text = (
        "# Soft labels\n\nA `soft label` and $soft label$ and [soft label](x.md).\n\n"
        "```{note}\nsoft label\n```\n\nSoft labels, and soft labels."
    )
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell(text), v4.new_markdown_cell("A soft label.")])
    made = terms.with_meanings(notebook, {"soft label": 'all "probabilities"', "label": "a class"})
    span = '<span class="term" tabindex="0" data-means="all &quot;probabilities&quot;" aria-description='
    first, second = (cell.source for cell in made.cells)
    assert first.count(span) == 1 and first.index(span) > first.rindex("```")
    assert first.endswith(">Soft labels</span>, and soft labels.") and span not in second
    assert "a class" not in first + second  # a label is named only inside a soft label
    plain = re.sub(r"</?span[^>]*>", "", first)
    assert plain == text


def test_every_term_has_a_meaning_in_plain_words() -> None:
    meaning = terms.meanings()
    assert len(meaning) > 0.9 * len(terms.terms())
    for term, words in meaning.items():
        assert words and not re.search(r"[*`$\[\]{}<>]|Chapter", words), (term, words)
