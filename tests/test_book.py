"""The built book, as a reader meets it: in Chromium, and as files.

Two books are looked at: a small one, built here from the real prose and a tiny executed notebook, and the
real one in ``_build/html`` (or wherever KDSEC_BOOK says) if it has been built.
"""

from __future__ import annotations

import base64
import functools
import io
import os
import pathlib
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import address
import build as book
import edition
import nbformat
import pytest
import yaml

from kdsec import config
from kdsec.config import CHAPTERS
from kdsec.report import records, tables
from kdsec.report.records import Records
from tests import browser

ROOT = pathlib.Path(__file__).resolve().parent.parent


EXERCISE = """
```{exercise} A small one
:label: LABEL

What is $\\sigma_\\tau(z)$ when $\\tau \\to \\infty$?
```

```{solution} LABEL
:class: dropdown

$$\\begin{aligned}
& \\lim_{\\tau \\to \\infty} \\sigma_\\tau(z)_k = \\frac{1}{K}, \\\\
& \\mathbb{E}_{x \\sim \\mathcal{D}}\\bigl[\\mathbf{1}\\{\\arg\\max_k x_k = y\\}\\bigr], \\\\
& \\hat{p} \\in \\mathfrak{P}, \\; \\boldsymbol{\\theta} \\xrightarrow{\\text{SGD}} \\cancel{\\theta^\\star}
\\end{aligned}$$
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
    names = config.profiles("opening")
    recorded = {name: (config.settings("opening", name), records.recorded("opening", name)) for name in names}
    some = {name: (settings, rows) for name, (settings, rows) in recorded.items() if len(rows)}
    return {"text/html": tables.verdicts("opening", some).html}


def notebook(
    title: str,
    *outputs: nbformat.NotebookNode,
    alt: str = "A line that falls",
    caption: str = "Look: it falls.",
    labels: Iterable[str] = (),
) -> nbformat.NotebookNode:
    """An executed chapter with one of everything; ``labels`` of further exercises, which pages refer to."""
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
    minute = "**In one minute.** <!-- finding opening -->\n\n## A section\n\n### And a part of it"
    top = v4.new_markdown_cell(f"# {title}\n\nA peculiarword, and $a^2+b^2=c^2$.\n\n{minute}")
    others = "\n\n".join(f"```{{exercise}} Another\n:label: {label}\n\nWhy?\n```" for label in labels)
    cells = [top, *code, v4.new_markdown_cell(exercise), v4.new_markdown_cell(others)]
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return v4.new_notebook(cells=cells, metadata={"language_info": language})


REPOSITORY, PAGES = "https://github.com/owner/name", "https://book.example.org/"


def _published(repository: str, pages: str) -> dict[str, Any]:
    """The book's settings with these addresses."""
    settings: dict[str, Any] = yaml.safe_load(address.CONFIG.read_text(encoding="utf-8"))
    settings["repository"]["url"], settings["html"]["baseurl"] = repository, pages
    return settings


@pytest.fixture(scope="module", autouse=True)
def with_addresses() -> Iterator[None]:
    """The small book is a published one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(address, "config", lambda: _published(REPOSITORY, PAGES))
        yield


@pytest.fixture(scope="module")
def executed_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder as ``kdsec run --profile quick`` leaves it, with the tiny notebook as every chapter."""
    run = tmp_path_factory.mktemp("run")
    machine = {"device": "cpu", "gpu": None, "cpu": "a | b", "threads": 2}
    versions = {"python": "3.11", "torch": "2.6", "torchvision": "0.21.987", "numpy": "2.0"}
    for chapter in CHAPTERS.values():
        records = Records(chapter.name, "quick", 0, "digits")
        records.add("plain", "cnn", "accuracy", 0.5, n=10)
        for place, arm in enumerate(("labels", "KD", "hard labels", "soft labels")):
            records.add(arm, "cnn", "test accuracy", 0.5 + place / 10, n=10)
        about = {"machine": machine, "versions": versions, "commit": "0123456789abcdef", "dirty": False}
        path = records.save(run, {**about, "seconds": 738.0, "date": "2026-01-02T03:04:05Z"})
        real = nbformat.read(ROOT / "notebooks" / chapter.notebook, as_version=4)
        text = "\n".join(cell.source for cell in real.cells)
        labels = re.findall(r"\{exercise\}[^\n]*\n:label: ([\w-]+)", text)
        nbformat.write(notebook(chapter.title, labels=labels), path.with_suffix(".ipynb"))
    return run


@pytest.fixture(scope="module")
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
        config = [path for path in found if path.startswith("notebooks/")]
        return [path for path in found if not self.alike or path not in config[1:]]

    def open(self, path: str, **context: Any) -> tuple[Any, browser.Trouble]:
        """A page, loaded and with its maths typeset, and what went wrong meanwhile."""
        page = self.browser.new_context(**context).new_page()
        trouble = browser.Trouble(self.address)
        trouble.watch(page)
        page.goto(f"{self.address}/{path}", wait_until="networkidle")
        page.evaluate("async () => { await window.MathJax?.startup?.promise; }")
        return page, trouble


@pytest.fixture(scope="module", params=["small", "real"])
def site(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Site]:
    small = request.param == "small"
    folder = request.getfixturevalue("small_book") if small else _real_book()
    with browser.serve(folder) as address:
        yield Site(folder, address, chromium, alike=small)


def _close(page: Any) -> None:
    page.context.close()


# One visit at each width answers every question that a look at a page can.
LOOK = """() => {
    const all = (what, where = document) => [...where.querySelectorAll('.bd-article ' + what)];
    const width = document.documentElement.clientWidth;
    const scrolls = each => { // inside something that scrolls by itself, as wide tables do
        for (let up = each.parentElement; up && !up.matches('.bd-article'); up = up.parentElement)
            if (getComputedStyle(up).overflowX !== 'visible') return true;
        return false; };
    const name = each => each.outerHTML.slice(0, 90);
    const right = each => each.getBoundingClientRect().right;
    const cut = formula => // by the paragraph it is in
        !formula.closest('table') && right(formula) > right(formula.closest('p, li, dd, div')) + 1;
    const drawn = all('mjx-container').map(each => {
        const svg = each.querySelector('svg');
        return Boolean(svg?.querySelector('path, rect, text') && svg.getAttribute('viewBox')); });
    const found = all('a[href*="scoreboard.html#"]')[0];
    return {
        formulas: all(':is(span, div).math').length,
        drawn: drawn,
        errors: all(':is([data-mml-node=merror], mjx-merror)').length,
        images: [...document.images].map(i => [i.src, i.naturalWidth, (i.getAttribute('alt') || '').trim()]),
        figures: all('.cell_output img').filter(i => !i.closest('.text_html')).length,
        captions: all('figure:has(> img) .caption-text').filter(text => text.innerText.trim()).length,
        page: document.documentElement.scrollWidth - width,
        wide: all('*').filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e)).map(name),
        cut: all('pre').filter(e => e.scrollWidth > e.clientWidth + 1)
            .concat(all('mjx-container > svg').filter(cut))
            .concat(all('.pre.whole').filter(e => e.getClientRects().length > 1)).map(name),
        small: all('.made').filter(e => parseFloat(getComputedStyle(e).fontSize) < 13).map(name),
        height: document.documentElement.scrollHeight,
        finding: found ? found.getBoundingClientRect().top + scrollY : null }; }"""

# What is hard to read: the contrast of text with the background that is behind it, under 3 to 1.
DIM = """() => {
    const parts = colour => colour.startsWith('rgb') ? colour.match(/[0-9.]+/g).map(Number) : null;
    const light = rgb => rgb.slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = each => {
        for (let up = each; up; up = up.parentElement) {
            const found = parts(getComputedStyle(up).backgroundColor);
            if (found === null) return null; // a mixed colour
            if ((found[3] ?? 1) > 0.5) return found; }
        return [255, 255, 255]; };
    const words = each =>
        [...each.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim());
    return [...document.querySelectorAll('.bd-article :not(.headerlink)')]
        .filter(each => each instanceof HTMLElement && words(each) && each.checkVisibility())
        .filter(each => {
            const [ink, paper] = [parts(getComputedStyle(each).color), behind(each)];
            if (!ink || !paper) return false;
            const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05) < 3; })
        .map(each => each.outerHTML.slice(0, 90)); }"""

# Text of drawings in SVG, inside the page or beside it, by its size on the screen.
DRAWN = """async () => {
    const holders = [];
    for (const img of document.querySelectorAll('.bd-article img[src*=".svg"]')) {
        const holder = document.createElement('div');
        holder.innerHTML = await (await fetch(img.src)).text();
        holder.firstElementChild?.setAttribute('width', img.getBoundingClientRect().width);
        holder.firstElementChild?.removeAttribute('height');
        img.after(holder);
        holders.push(holder); }
    const size = text => parseFloat(getComputedStyle(text).fontSize) * (text.getScreenCTM()?.a ?? 9);
    const small = [...document.querySelectorAll('.bd-article svg text')]
        .filter(text => text.textContent.trim() && !text.closest('mjx-container'))
        .map(text => [size(text), text.textContent.trim()]).filter(([pixels]) => pixels < 9);
    holders.forEach(each => each.remove());
    return small; }"""

WIDTHS = (1280, 360)
LONGEST = 20_000  # pixels of a chapter as it opens, on a desk
FOLDS = ".bd-article :is(details:not([open]) > summary, button.toggle-button)"
UNFOLD = f"() => document.querySelectorAll('{FOLDS}').forEach(each => each.click())"


@pytest.fixture(scope="module")
def visits(site: Site) -> dict[tuple[str, int], dict[str, Any]]:
    """What was found on every page of the site, at each width, as it opens and with everything unfolded."""
    found = {}
    for path in site.pages():
        for width in WIDTHS:
            page, trouble = site.open(path, viewport={"width": width, "height": 800})
            at_first = page.evaluate(LOOK)
            small = page.evaluate(DRAWN)
            page.evaluate(UNFOLD)
            dim = {"light": page.evaluate(DIM)}
            page.emulate_media(color_scheme="dark")
            page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
            dim["dark"] = page.evaluate(DIM)
            about = {
                "height": at_first["height"],
                "finding": at_first["finding"],
                "drawn small": small,
                "dim": dim,
            }
            found[path, width] = {**page.evaluate(LOOK), **about, "notes": trouble.notes}
            _close(page)
    return found


@pytest.mark.browser
def test_every_page_loads_in_silence_and_from_here_only(site: Site, visits: Any) -> None:
    assert len(visits) == len(WIDTHS) * len(site.pages()) > 20
    assert {path: found["notes"] for path, found in visits.items() if found["notes"]} == {}


@pytest.mark.browser
def test_maths_is_typeset(visits: Any) -> None:
    for path, found in visits.items():
        assert all(found["drawn"]), path
        assert len(found["drawn"]) >= found["formulas"], path
        assert found["errors"] == 0, path
    assert sum(len(found["drawn"]) for found in visits.values()) > 10


@pytest.mark.browser
def test_every_figure_has_pixels_alternative_text_and_a_caption(visits: Any) -> None:
    for path, found in visits.items():
        for source, width, alt in found["images"]:
            assert width > 0, (path, source)
            assert alt, (path, source)
        assert found["captions"] >= found["figures"], path
    assert sum(found["figures"] for found in visits.values()) > 0


@pytest.mark.browser
def test_nothing_overflows_or_is_cut_at_any_width(visits: Any) -> None:
    """With everything unfolded; lines of code that are too long wrap."""
    for path, found in visits.items():
        assert (found["page"], found["wide"], found["cut"]) == (0, [], []), path


@pytest.mark.browser
def test_everything_can_be_read_in_light_and_dark(visits: Any) -> None:
    for path, found in visits.items():
        assert found["dim"] == {"light": [], "dark": []}, path
        assert found["small"] == [], (path, "an interval under 13 pixels")
        assert found["drawn small"] == [], (path, "text of a drawing under 9 pixels")


@pytest.mark.browser
def test_a_chapter_begins_with_what_was_found(site: Site, visits: Any) -> None:
    """Within the first 1,500 pixels, at any width; of chapters that have a finding at all."""
    for chapter in CHAPTERS.values():
        path = f"notebooks/{chapter.notebook[:-6]}.html"
        text = (ROOT / "notebooks" / chapter.notebook).read_text(encoding="utf-8")
        for width in WIDTHS:
            if (path, width) in visits and (site.alike or "<!-- finding" in text):
                found = visits[path, width]["finding"]
                assert found is not None and found < 1500, (path, width, found)


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


def _first_chapter() -> str:
    return f"notebooks/{next(iter(CHAPTERS.values())).notebook[:-6]}.html"


@pytest.mark.browser
def test_headings_are_heavier_the_higher_they_are(site: Site) -> None:
    page, _ = site.open(_first_chapter())
    look = "each => [getComputedStyle(each).fontWeight, getComputedStyle(each).fontSize].map(parseFloat)"
    weights, sizes = zip(
        *(page.locator(f".bd-article {level}").first.evaluate(look) for level in ("h1", "h2", "h3")),
        strict=True,
    )
    assert weights[0] >= weights[1] > weights[2] and sizes[0] > sizes[1] > sizes[2]
    _close(page)


@pytest.mark.browser
def test_eighty_eight_columns_of_code_fit_a_desk(site: Site) -> None:
    page, _ = site.open(_first_chapter(), viewport={"width": 1280, "height": 800})
    lines = page.locator(".bd-article .cell_input pre").first.evaluate("""pre => {
        pre.textContent = 'x'.repeat(88); const one = pre.clientHeight;
        pre.textContent = 'x'; return one / pre.clientHeight; }""")
    assert lines == 1
    _close(page)


@pytest.mark.browser
def test_a_figure_is_enlarged_by_a_tap_and_by_the_keyboard(site: Site) -> None:
    page, trouble = site.open(_first_chapter(), viewport={"width": 360, "height": 740}, has_touch=True)
    figure = page.locator(".bd-article figure > img").first
    before = figure.bounding_box()["width"]
    assert before <= 360
    figure.tap()
    assert page.locator("dialog.enlarged[open] img").bounding_box()["width"] > 1.5 * before
    page.keyboard.press("Escape")
    assert page.locator("dialog.enlarged[open]").count() == 0
    figure.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog.enlarged[open]").count() == 1
    assert trouble.notes == []
    _close(page)


@pytest.mark.browser
def test_the_title_of_a_solution_opens_it_and_leads_nowhere(site: Site) -> None:
    page, _ = site.open(_first_chapter())
    title = page.locator(".bd-article .solution > .admonition-title").first
    words = title.evaluate("""each => { // the exercise's name, at the end of the title's text
        const range = document.createRange();
        const walk = document.createTreeWalker(each, NodeFilter.SHOW_TEXT);
        let last;
        while (walk.nextNode()) if (walk.currentNode.data.includes('Exercise')) last = walk.currentNode;
        range.selectNodeContents(last);
        each.scrollIntoView({block: 'center', behavior: 'instant'});
        const box = range.getBoundingClientRect();
        return [box.x + box.width / 2, box.y + box.height / 2]; }""")
    page.mouse.click(*words)
    assert page.evaluate("location.hash") == ""
    assert page.locator(".bd-article .solution").first.evaluate("e => !e.matches('.toggle-hidden')")
    _close(page)


@pytest.mark.browser
def test_the_scoreboard_is_filtered_and_a_link_finds_its_claim(site: Site) -> None:
    page, trouble = site.open("scoreboard.html")
    claims = page.locator(".scoreboard tbody")
    total = claims.count()
    assert page.locator("details.board[open]").count() == 0 and page.locator(".strip a").count() == total
    page.select_option("select[name=by]", "ours")
    shown = page.locator(".scoreboard tbody:visible")
    assert 0 < shown.count() < total and page.locator(".scoreboard tbody[data-by=paper]:visible").count() == 0
    page.select_option("select[name=scale]", "quick")
    rows = page.locator(".scoreboard tbody tr:visible")
    assert rows.count() == shown.count() == shown.locator("th:visible").count()
    assert {row.get_attribute("data-scale") for row in rows.all()} == {"quick"}
    assert f"{shown.count()} of {total} claims" in page.locator("form.filters output").inner_text()
    hidden = page.locator(".scoreboard tbody[data-by=paper]").first.get_attribute("id")
    page.locator(f".strip a[href='#{hidden}']").click()
    page.wait_for_function("id => document.getElementById(id).checkVisibility()", arg=hidden)
    page.locator("form.filters button").click()
    assert trouble.notes == []
    _close(page)
    page, _ = site.open(f"scoreboard.html#{hidden}")
    assert page.locator(f"#{hidden}").is_visible()
    _close(page)
    page, _ = site.open("scoreboard.html", java_script_enabled=False)
    assert page.locator(".scoreboard tbody:visible").count() == total
    _close(page)


@pytest.mark.browser
def test_a_search_finds_prose_before_code(site: Site) -> None:
    page, trouble = site.open("search.html?q=torch" if not site.alike else "search.html?q=wide")
    page.wait_for_function("document.querySelectorAll('#search-results li').length > 0")
    page.wait_for_load_state("networkidle")
    places = page.evaluate("""() => [...document.querySelectorAll('#search-results li')].map(
        li => [Boolean(li.querySelector('.in-code')), li.getBoundingClientRect().top])""")
    code, prose = ([top for in_code, top in places if in_code is kind] for kind in (True, False))
    assert max(prose, default=0) < min(code, default=1e9)
    assert code or not site.alike  # the small book's chapters have the word in their code alone
    assert trouble.notes == []
    _close(page)


@pytest.mark.browser
def test_no_chapter_is_longer_than_a_reader_will_scroll(site: Site, visits: Any) -> None:
    heights = {path: found["height"] for (path, width), found in visits.items() if width == WIDTHS[0]}
    longest = max((path for path in heights if path.startswith("notebooks/")), key=heights.__getitem__)
    assert heights[longest] < LONGEST, f"{longest}: {heights[longest]} pixels"


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


def test_launch_buttons_open_the_notebook_in_the_repository(small_book: pathlib.Path) -> None:
    for chapter in CHAPTERS.values():
        page = (small_book / "notebooks" / chapter.notebook).with_suffix(".html")
        text = urllib.parse.unquote(page.read_text(encoding="utf-8"))
        path = f"notebooks/{chapter.notebook}"
        assert f"{address.COLAB}/owner/name/blob/colab/{chapter.notebook}" in text
        assert f"{address.COLAB}/owner/name/blob/main" not in text
        # The same to download, made with the pages.
        assert f"../colab/{chapter.notebook}" in text
        made = nbformat.read(small_book / "colab" / chapter.notebook, as_version=4)
        assert all(edition.raw(cell.source) == [] for cell in made.cells if cell.cell_type == "markdown")
        assert f"https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/{path}" in text
    assert f"url = {{{REPOSITORY}}}" in book.citation()


def _stage_one_page(run: pathlib.Path, source: pathlib.Path) -> str:
    """Stage a book of the first chapter alone; its address without the ending."""
    book.stage(run, run, source)
    root = f"notebooks/{CHAPTERS['opening'].notebook[:-6]}"
    (source / "_toc.yml").write_text(f"format: jb-book\nroot: {root}\n")
    return root


def test_without_addresses_no_page_links_to_a_repository(
    executed_run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "config", lambda: _published("", ""))
    source = tmp_path / "src"
    root = _stage_one_page(executed_run, source)
    assert book.build(source, tmp_path / "html")
    text = (tmp_path / "html" / f"{root}.html").read_text(encoding="utf-8")
    assert "peculiarword" in text
    for gone in (
        "secret_parameter",
        "machinery for colab",
        "colab.research",
        "mybinder",
        "github.com/",
        "og:url",
        "canonical",
    ):
        assert gone not in text
    assert "url =" not in book.citation()


def test_a_link_to_a_page_has_title_words_and_picture(small_book: pathlib.Path) -> None:
    for name in ("index.html", f"notebooks/{CHAPTERS['opening'].notebook[:-6]}.html"):
        text = (small_book / name).read_text(encoding="utf-8")
        tags = dict(re.findall(r'<meta (?:property|name)="((?:og|twitter):\S+)" content="([^"]+)"', text))
        assert tags["og:url"] == PAGES + name
        assert tags["og:image"] == f"{PAGES}_static/card.png"
        assert (small_book / "_static" / "card.png").is_file()
        assert tags["twitter:card"] == "summary_large_image"
        assert len(tags["og:title"]) > 5 and len(tags["og:image:alt"]) > 20
        assert 20 < len(tags["og:description"]) < 250
        assert f'<link rel="canonical" href="{PAGES}{name}"' in text


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
    root = tmp_path / "src" / f"{_stage_one_page(executed_run, tmp_path / 'src')}.ipynb"
    chapter = nbformat.read(root, as_version=4)
    chapter.cells.append(nbformat.v4.new_markdown_cell("See [](no-such-page)."))
    nbformat.write(chapter, root)
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
    page.write_text(
        '<a href="https://example.org">fine</a><link rel="canonical" href="https://example.org">'
        '<code class="literal"><span class="pre">--out</span></code>'
    )
    book.finish(page, tmp_path)
    assert '<span class="pre whole">--out</span>' in page.read_text()
    page.write_text(text)
    with pytest.raises(book.BuildError, match=r"page\.html"):
        book.finish(page, tmp_path)
