"""The built book, as a reader meets it: in Chromium, and as files.

Two books are looked at: a small one, built here from the real prose and a tiny executed notebook, and the
real one in ``_build/html`` (or wherever KDSEC_BOOK says) if it has been built.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import io
import os
import pathlib
import re
import sys
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import nbformat
import pytest
import yaml

from kdsec import chapters
from kdsec.chapters import CHAPTERS
from kdsec.report import records, tables
from kdsec.report.interactive import STILL
from kdsec.report.records import Records
from tests import browser

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _script(name: str) -> Any:
    """A script of ``book/``, which is no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"book_{name}", ROOT / "book" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


book = _script("build")

EXERCISE = """
```{exercise} A small one
:label: LABEL

What is $\\sigma_\\tau(z)$ when $\\tau \\to \\infty$?
```

```{solution} LABEL
:class: dropdown

$$\\lim_{\\tau \\to \\infty} \\sigma_\\tau(z)_k = \\frac{1}{K}, \\qquad
\\mathbb{E}_{x \\sim \\mathcal{D}}\\bigl[\\mathbf{1}\\{\\arg\\max_k f_S(x)_k = y\\}\\bigr] \\le 1,
\\quad \\hat{p} \\in \\mathfrak{P},
\\quad \\boldsymbol{\\theta} \\xrightarrow{\\text{SGD}} \\cancel{\\theta^\\star}$$
```
"""
TABLE = "<table border='1' class='dataframe'><thead><tr>{}</tr></thead><tbody><tr>{}</tr></tbody></table>"


def _figure() -> nbformat.NotebookNode:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3))
    axes.plot([0, 1], [1, 0])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": "<Figure size 700x300>"}
    return nbformat.v4.new_output("display_data", data)


@functools.cache
def _verdicts() -> dict[str, str]:
    """What the verdict of a chapter shows: the recorded claims, enough of them for a table that is sorted."""
    names = chapters.profiles("opening")
    recorded = {
        name: (chapters.settings("opening", name), records.recorded("opening", name)) for name in names
    }
    some = {name: (settings, rows) for name, (settings, rows) in recorded.items() if len(rows)}
    return {"text/html": tables.verdicts("opening", some).html}


def notebook(
    title: str,
    *outputs: nbformat.NotebookNode,
    alt: str = "A line that falls",
    caption: str = "Look: it falls.",
) -> nbformat.NotebookNode:
    """An executed chapter with one of everything."""
    v4 = nbformat.v4
    # Labels are the book's, not the page's: every chapter has its own.
    exercise = EXERCISE.replace("LABEL", "ex-" + re.sub(r"\W+", "-", title.lower()))
    cells_in_row = "".join(f"<th>quite a long heading {k}</th>" for k in range(12))
    table = TABLE.format(cells_in_row, cells_in_row.replace("th>", "td>"))
    code = [
        v4.new_code_cell("print('machinery for colab')", metadata={"tags": ["colab"]}),
        v4.new_code_cell("secret_parameter = 1", metadata={"tags": ["parameters"]}),
        v4.new_code_cell("secret_parameter = 2", metadata={"tags": ["injected-parameters"]}),
        v4.new_code_cell("print('wide ' * 80)", outputs=[v4.new_output("stream", text="wide " * 80 + "\n")]),
        v4.new_code_cell("frame", outputs=[v4.new_output("display_data", {"text/html": table})]),
        v4.new_code_cell("verdicts", outputs=[v4.new_output("display_data", _verdicts())]),
        v4.new_code_cell("draw()", outputs=list(outputs) or [_figure()]),
    ]
    code[-1].metadata["mystnb"] = {"image": {"alt": alt}, "figure": {"caption": caption}}
    for count, cell in enumerate(code, start=1):
        cell.execution_count = count
    top = v4.new_markdown_cell(f"# {title}\n\nA peculiarword, and $a^2+b^2=c^2$.")
    cells = [top, *code, v4.new_markdown_cell(exercise)]
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return v4.new_notebook(cells=cells, metadata={"language_info": language})


@pytest.fixture(scope="session")
def executed_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder as ``kdsec run --profile quick`` leaves it, with the tiny notebook as every chapter."""
    run = tmp_path_factory.mktemp("run")
    machine = {"device": "cpu", "gpu": None, "cpu": "a | b", "threads": 2}
    versions = {"python": "3.11", "torch": "2.6", "torchvision": "0.21.987", "numpy": "2.0"}
    for chapter in CHAPTERS.values():
        records = Records(chapter.name, "quick", 0, "digits")
        records.add("plain", "cnn", "accuracy", 0.5, n=10)
        about = {"machine": machine, "versions": versions, "commit": "0123456789abcdef", "dirty": False}
        path = records.save(run, {**about, "seconds": 738.0, "date": "2026-01-02T03:04:05Z"})
        nbformat.write(notebook(chapter.title), path.with_suffix(".ipynb"))
    return run


@pytest.fixture(scope="session")
def small_book(executed_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("book")
    book.stage(executed_run, executed_run, folder / "src")
    assert book.build(folder / "src", folder / "html")
    return folder / "html"


def _real_book() -> pathlib.Path:
    given = os.environ.get("KDSEC_BOOK")
    folder = pathlib.Path(given) if given else ROOT / "_build" / "html"
    if not (folder / "index.html").is_file():
        if given:
            pytest.fail(f"KDSEC_BOOK={given} holds no book")
        pytest.skip("the real book has not been built (make book)")
    return folder


@dataclass
class Site:
    folder: pathlib.Path
    address: str
    browser: Any
    alike: bool  # all chapters are one notebook: to look at the first is to look at all

    def pages(self) -> list[str]:
        """Addresses of the pages a reader can reach, relative to the root."""
        found = sorted(
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*.html")
            if "_static" not in path.parts and path.name not in ("genindex.html", "search.html")
        )
        chapters = [path for path in found if path.startswith("notebooks/")]
        return [path for path in found if not self.alike or path not in chapters[1:]]

    def open(self, path: str, **context: Any) -> tuple[Any, browser.Trouble]:
        """A page, loaded and with its maths typeset, and what went wrong meanwhile."""
        page = self.browser.new_context(**context).new_page()
        trouble = browser.Trouble(self.address)
        trouble.watch(page)
        page.goto(f"{self.address}/{path}", wait_until="networkidle")
        page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
        return page, trouble


@pytest.fixture(scope="session", params=["small", "real"])
def site(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Site]:
    small = request.param == "small"
    folder = request.getfixturevalue("small_book") if small else _real_book()
    with browser.serve(folder) as address:
        yield Site(folder, address, chromium, alike=small)


def _close(page: Any) -> None:
    page.context.close()


# One visit answers three questions: was there trouble, is the maths drawn, and are the figures.
LOOK = """() => {
    const drawn = [...document.querySelectorAll('.bd-article mjx-container')].map(each => {
        const svg = each.querySelector('svg');
        return Boolean(svg?.querySelector('path, rect, text') && svg.getAttribute('viewBox')); });
    return {
        formulas: document.querySelectorAll('.bd-article :is(span, div).math').length,
        drawn: drawn,
        errors: document.querySelectorAll('.bd-article :is([data-mml-node=merror], mjx-merror)').length,
        images: [...document.images].map(i => [i.src, i.naturalWidth, (i.getAttribute('alt') || '').trim()]),
        figures: document.querySelectorAll('.bd-article .cell_output img:not(.text_html img)').length,
        captions: [...document.querySelectorAll('.bd-article figure:has(> img) .caption-text')]
            .filter(text => text.innerText.trim()).length }; }"""


@pytest.fixture(scope="session")
def visits(site: Site) -> dict[str, dict[str, Any]]:
    """What was found on every page of the site."""
    found = {}
    for path in site.pages():
        page, trouble = site.open(path)
        found[path] = {**page.evaluate(LOOK), "notes": trouble.notes}
        _close(page)
    return found


@pytest.mark.browser
def test_every_page_loads_in_silence_and_from_here_only(
    site: Site, visits: dict[str, dict[str, Any]]
) -> None:
    assert len(visits) == 9 + (1 if site.alike else len(CHAPTERS))
    assert {path: found["notes"] for path, found in visits.items() if found["notes"]} == {}


@pytest.mark.browser
def test_maths_is_typeset(visits: dict[str, dict[str, Any]]) -> None:
    for path, found in visits.items():
        assert all(found["drawn"]), path
        assert len(found["drawn"]) >= found["formulas"], path
        assert found["errors"] == 0, path
    assert sum(len(found["drawn"]) for found in visits.values()) > 10


@pytest.mark.browser
def test_every_figure_has_pixels_alternative_text_and_a_caption(visits: dict[str, dict[str, Any]]) -> None:
    for path, found in visits.items():
        for source, width, alt in found["images"]:
            assert width > 0, (path, source)
            assert alt, (path, source)
        assert found["captions"] == found["figures"], path
    assert sum(found["figures"] for found in visits.values()) > 0


@pytest.mark.browser
def test_search_finds_a_word(site: Site) -> None:
    page, trouble = site.open("search.html?q=distillation")
    page.wait_for_selector("#search-results ul.search li a")
    assert page.locator("#search-results ul.search li").count() >= 2
    assert trouble.notes == []
    _close(page)


# The same on a phone. What is looked at before the folded parts are opened must be seen as a reader finds it.
LOOK_ON_PHONE = """() => ({
    figures: [...document.querySelectorAll('.cell_output figure > img, .kdsec-still')]
        .filter(i => i.checkVisibility()).map(i => [i.naturalWidth, i.clientWidth]),
    cells: [...document.querySelectorAll('[data-profile]')].map(cell => {
        const box = cell.getBoundingClientRect(), over = cell.scrollWidth - cell.clientWidth;
        return [box.left, box.right, over, getComputedStyle(cell, '::before').content]; }) })"""
LOOK_AT_WIDTH = """() => ({
    width: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll('.bd-article *')].filter(e => {
        for (let up = e; up && !up.matches('.bd-article'); up = up.parentElement)
            if (up !== e && getComputedStyle(up).overflowX !== 'visible') return false;
        return e.getBoundingClientRect().right > 361; }).map(e => e.outerHTML.slice(0, 90)) })"""


@pytest.fixture(scope="session")
def phone_visits(site: Site) -> dict[str, dict[str, Any]]:
    """What was found on every page of the site, 360 pixels wide."""
    found = {}
    for path in site.pages():
        page, _ = site.open(path, viewport={"width": 360, "height": 740})
        found[path] = page.evaluate(LOOK_ON_PHONE)
        for button in page.locator(".bd-article :is(details > summary, button.toggle-button)").all():
            button.click()
        found[path] |= page.evaluate(LOOK_AT_WIDTH)
        _close(page)
    return found


@pytest.mark.browser
def test_nothing_overflows_on_a_phone(phone_visits: dict[str, dict[str, Any]]) -> None:
    for path, found in phone_visits.items():
        assert found["width"] <= 360, path
        assert found["wide"] == [], path


@pytest.mark.browser
def test_figures_are_large_enough_on_a_phone(phone_visits: dict[str, dict[str, Any]]) -> None:
    for path, found in phone_visits.items():
        sizes = found["figures"]
        assert all(shown >= min(540, natural) for natural, shown in sizes), (path, sizes)
    assert sum(len(found["figures"]) for found in phone_visits.values()) > 0


@pytest.mark.browser
def test_a_phone_shows_every_verdict_without_scrolling_sideways(
    phone_visits: dict[str, dict[str, Any]],
) -> None:
    for path, found in phone_visits.items():
        cells = found["cells"]
        assert all(0 <= left < right <= 360 and over <= 0 for left, right, over, _ in cells), path
        assert cells or not path.startswith("notebooks/")
        assert all(len(label.strip('"')) > 4 for *_, label in cells)  # which profile it is


TABLE_WIDTHS = """() => [...document.querySelectorAll(':is(.scoreboard, .quoted) table')]
    .map(table => [table.offsetWidth, table.parentElement.clientWidth])"""


@pytest.mark.browser
def test_a_desk_shows_every_verdict_without_scrolling_sideways(site: Site) -> None:
    """1,280 pixels, of which the columns at both sides leave the least for the text."""
    seen = 0
    for path in site.pages():
        page, _ = site.open(path, viewport={"width": 1280, "height": 900})
        widths = page.evaluate(TABLE_WIDTHS)
        assert all(table <= room for table, room in widths), (path, widths)
        seen += len(widths)
        _close(page)
    assert seen > 0


SHOWN = """() => [...document.querySelector('.quoted tbody').rows]
    .map(row => [row.cells[0].innerText, Number(row.cells[1].dataset.value)])"""


@pytest.mark.browser
def test_a_long_table_is_sorted_by_a_click_and_by_the_keyboard(site: Site) -> None:
    page, trouble = site.open("notebooks/01-opening.html")
    before = page.evaluate(SHOWN)
    head = page.locator(".quoted").first.locator("th").nth(1)
    head.locator("button").click()
    up = page.evaluate(SHOWN)
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    down = page.evaluate(SHOWN)
    assert head.get_attribute("aria-sort") == "descending"
    assert sorted(up) == sorted(down) == sorted(before) != up
    values = [value for _, value in up]
    assert values == sorted(values) == [value for _, value in down][::-1] and len(set(values)) > 8
    page.keyboard.press("Enter")
    assert page.evaluate(SHOWN) == before and head.get_attribute("aria-sort") is None
    assert trouble.notes == []
    _close(page)


@pytest.mark.browser
def test_dark_mode_is_dark_and_readable(site: Site) -> None:
    luminance = """selector => {
        const parts = getComputedStyle(document.querySelector(selector))[selector === 'body'
            ? 'backgroundColor' : 'color'].match(/[0-9.]+/g).slice(0, 3).map(Number);
        return (0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]) / 255; }"""
    for path in (f"notebooks/{next(iter(CHAPTERS.values())).notebook[:-6]}.html", "notation.html"):
        page, trouble = site.open(path, color_scheme="dark")
        assert page.get_attribute("html", "data-theme") == "dark"
        assert page.evaluate(luminance, "body") < 0.2
        for element in ("p", "h1", "table td", "mjx-container"):
            selector = f".bd-article {element}"
            if page.locator(selector).count():
                assert page.evaluate(luminance, selector) > 0.5, (path, selector)
        assert trouble.notes == []
        _close(page)


LINK = re.compile(r'<a\b[^>]*\bhref="([^"]+)"')
NAME = re.compile(r'\bid="([^"]+)"')


@pytest.mark.parametrize("which", ["small", "real"])
def test_internal_links_and_anchors_resolve(which: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("small_book") if which == "small" else _real_book()
    pages = {path.resolve(): path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}
    names = {path: set(NAME.findall(text)) for path, text in pages.items()}
    seen = 0
    for path, text in pages.items():
        for link in LINK.findall(text):
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = (path.parent / urllib.parse.unquote(target)).resolve() if target else path
            assert there.exists(), f"{path.name}: {link}"
            if anchor and there in names:
                assert urllib.parse.unquote(anchor) in names[there], f"{path.name}: {link}"
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("which", ["small", "real"])
def test_launch_buttons_open_the_notebook_in_the_repository(
    which: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("small_book") if which == "small" else _real_book()
    address = _script("sync").repository()
    owner = address.removeprefix("https://github.com/")
    for chapter in CHAPTERS.values():
        text = (folder / "notebooks" / chapter.notebook).with_suffix(".html").read_text(encoding="utf-8")
        path = f"notebooks/{chapter.notebook}"
        assert f"https://colab.research.google.com/github/{owner}/blob/main/{path}" in text
        binder = f"https://mybinder.org/v2/gh/{owner}/main?urlpath=lab/tree/{path}"
        assert binder in urllib.parse.unquote(text)


def test_machinery_is_hidden(small_book: pathlib.Path) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (small_book / "notebooks").glob("*.html"))
    assert "peculiarword" in text
    assert "secret_parameter" not in text
    assert "machinery for colab" not in text


def test_the_picture_inside_a_figure_that_answers_gets_its_cells_words() -> None:
    live = _figure()
    live.data["text/html"] = f'<div><img alt="{STILL}" src="data:image/png;base64,"></div>'
    made = book.prepare(notebook("Live", live, alt='A "line" that falls'), CHAPTERS["opening"])
    (html,) = [output.data["text/html"] for output in made.cells[-2].outputs]
    assert '<img alt="A &quot;line&quot; that falls" src=' in html


def test_a_link_to_a_page_has_title_words_and_picture(small_book: pathlib.Path) -> None:
    site = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["html"]["baseurl"]
    assert re.fullmatch(r"https://[\w.-]+/(?:[\w.-]+/)?", site)
    for name in ("index.html", f"notebooks/{CHAPTERS['opening'].notebook[:-6]}.html"):
        text = (small_book / name).read_text(encoding="utf-8")
        tags = dict(re.findall(r'<meta (?:property|name)="((?:og|twitter):\S+)" content="([^"]+)"', text))
        assert tags["og:url"] == site + name
        assert tags["og:image"] == f"{site}_static/card.png"
        assert (small_book / "_static" / "card.png").is_file()
        assert tags["twitter:card"] == "summary_large_image"
        assert len(tags["og:title"]) > 5 and len(tags["og:image:alt"]) > 20
        assert 20 < len(tags["og:description"]) < 250
        assert f'<link rel="canonical" href="{site}{name}"' in text


def test_the_index_is_a_page_that_can_be_reached(small_book: pathlib.Path) -> None:
    text = (small_book / "genindex.html").read_text(encoding="utf-8")
    assert re.search(r'href="glossary\.html#term-dark-knowledge"', text)
    assert 'href="genindex.html"' in (small_book / "notation.html").read_text(encoding="utf-8")
    assert "genindex" in (small_book / "searchindex.js").read_text(encoding="utf-8")


def test_run_times_come_from_the_records(small_book: pathlib.Path) -> None:
    text = (small_book / "run-times.html").read_text(encoding="utf-8")
    for expected in ("12.3", "0123456789", "0.21.987", "a / b, threads: 2", "2026-01-02"):
        assert expected in text


def test_a_second_build_does_nothing_and_a_changed_page_is_built(
    small_book: pathlib.Path, executed_run: pathlib.Path
) -> None:
    source = small_book.parent / "src"
    assert not book.build(source, small_book)
    before = book.digest(source)
    book.stage(executed_run, executed_run, source)
    assert book.digest(source) == before
    with (source / "notation.md").open("a") as page:
        page.write("\nOne more line.\n")
    assert book.digest(source) != before
    book.stage(executed_run, executed_run, source)


def test_a_failed_build_leaves_the_pages_that_are_there(
    executed_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "html"
    html.mkdir()
    (html / "index.html").write_text("yesterday's book")
    book.stage(executed_run, executed_run, tmp_path / "src")
    with (tmp_path / "src" / "index.md").open("a") as page:
        page.write("\nSee [](no-such-page).\n")
    with pytest.raises(book.BuildError, match="jupyter-book"):
        book.build(tmp_path / "src", html)
    assert "no-such-page" in capsys.readouterr().err
    assert [path.name for path in html.iterdir()] == ["index.html"]
    assert (html / "index.html").read_text() == "yesterday's book"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["html", "src"]


def _chapter_with(run: pathlib.Path, made: Any) -> pathlib.Path:
    for chapter in CHAPTERS.values():
        folder = run / "quick" / chapter.name
        folder.mkdir(parents=True)
        if made is not None:
            nbformat.write(made, folder / "seed0.ipynb")
    return run


def _failed() -> Any:
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=["no"])
    return notebook("Failed", error)


def _not_executed() -> Any:
    made = notebook("Not executed")
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
    return made


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: None, "no executed notebook .* run: kdsec run opening"),
        (_failed, "opening failed"),
        (_not_executed, "was not executed"),
        (lambda: notebook("No alt", _figure(), alt=""), "no alternative text"),
        (lambda: notebook("No caption", _figure(), caption=""), "no caption"),
        (lambda: notebook("Two", _figure(), _figure()), "2 figures in one cell"),
    ],
)
def test_what_cannot_become_a_page_is_named_in_one_line(
    made: Any, message: str, tmp_path: pathlib.Path
) -> None:
    run = _chapter_with(tmp_path / "run", made())
    with pytest.raises(book.BuildError, match=message) as caught:
        book.stage(run, run, tmp_path / "src")
    assert "\n" not in str(caught.value)


def test_a_truncated_notebook_is_named(tmp_path: pathlib.Path) -> None:
    run = _chapter_with(tmp_path / "run", None)
    (run / "quick" / "opening" / "seed0.ipynb").write_text('{"cells": [')
    with pytest.raises(book.BuildError, match="is not a notebook"):
        book.stage(run, run, tmp_path / "src")


@pytest.mark.parametrize(
    "text",
    [
        "<p>Traceback (most recent call last)</p>",
        '<span class="problematic" id="id1">x</span>',
        '<script src="https://example.org/a.js"></script>',
        '<link rel="stylesheet" href="//example.org/a.css">',
        '<img alt="x" src="http://example.org/a.png">',
    ],
)
def test_a_page_with_an_error_or_an_outside_host_is_refused(text: str, tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<a href="https://example.org">fine</a><link rel="canonical" href="https://example.org">')
    book.finish(page, tmp_path)
    page.write_text(text)
    with pytest.raises(book.BuildError, match=r"page\.html"):
        book.finish(page, tmp_path)
