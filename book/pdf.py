"""The whole book as one PDF: its pages put in order into one, and printed by Chromium.

``python book/pdf.py`` makes it from the pages that ``book/build.py`` left, and puts a link on the first page.

Why not Sphinx's own ``singlehtml``? It would build everything a second time, and where two chapters have a
section of one name, links lead to the wrong one. Here every anchor gets its page's name in front. The browser
does the typesetting, so that the PDF looks like the pages: the same maths, the same figures. It prints twice,
since only the first print tells on which page a section begins.
"""

from __future__ import annotations

import argparse
import html
import io
import pathlib
import posixpath
import re
import shutil
import sys
import urllib.parse
from collections.abc import Mapping

import address
import yaml
from bs4 import BeautifulSoup, Tag

from kdsec.errors import KdsecError, atomic_write

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAME = "kdsec-book.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INDEX = "genindex"
ANSWERS = "Solutions"
UNKNOWN = 999  # a page number in the first print, as wide as a real one
# What belongs to a screen; and what the pages fold away: code that prepares tables, and tables of every seed,
# which notebooks and records have.
SCREEN = (
    "a.headerlink, a.permalink, script, :not(svg) > style, button, input, .start, #download, details.hide, "
    "details.folded"
)
LINK = '<p id="download">'


class PdfError(Exception):
    """Why there is no PDF, in one line."""


def browser() -> str | None:
    """Path of Chromium or Chrome, if there is one."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def anchor(page: str, place: str = "") -> str:
    """The name in the document of what is called ``place`` on ``page``."""
    return f"{page.replace('/', '-')}--{place}"


def read(path: pathlib.Path) -> BeautifulSoup:
    if not path.is_file():
        raise PdfError(f"page {path} is missing; run make book")
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


class Book:
    """The pages of a built site as one document.

    Attributes:
        pages: the folder of the site.
        parts: caption and page names of each part, in order; the first page is a part without caption.
        articles: what each page says, fit for paper.
        solutions: those of each page's exercises, taken out of it.
    """

    def __init__(self, pages: pathlib.Path) -> None:
        """Read the site in ``pages``.

        Raises:
            PdfError: a page of the table of contents is missing.
        """
        self.pages = pages
        self.config = address.config()
        toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
        self.parts = [("", [toc["root"]])]
        self.parts += [
            (part["caption"], [each["file"] for each in part["chapters"]]) for part in toc["parts"]
        ]
        self.names = [name for _, names in self.parts for name in names]
        self.articles = {name: self._article(name) for name in self.names}
        self.solutions = {
            name: [each.extract() for each in article.select("div.solution")]
            for name, article in self.articles.items()
        }

    def title(self, name: str) -> str:
        """The heading of a page, with its number."""
        heading = self.articles[name].find("h1")
        return heading.get_text(" ", strip=True) if heading else name

    def _article(self, name: str) -> Tag:
        article = read(self.pages / f"{name}.html").select_one("article.bd-article")
        if article is None:
            raise PdfError(f"page {name}.html has no article; run make book")
        for each in article.select(SCREEN):
            each.decompose()
        for each in article.select("noscript"):  # what a page shows where nothing can be moved
            each.unwrap()
        for each in article.select("details"):  # paper cannot be clicked
            each["open"] = ""
        for each in article.select("[id]"):
            each["id"] = anchor(name, str(each["id"]))
        for each in article.select('img[src]:not([src^="data:"])'):
            each["src"] = self._beside(name, str(each["src"]))
        for each in article.select("a[href]"):
            self._point(each, name)
        return article

    def _point(self, link: Tag, name: str) -> None:
        """Turn a link to another page into one inside the document; take it away if it leads to no page."""
        target, _, place = str(link["href"]).partition("#")
        if re.match(r"[a-z]+:", target):
            return
        page = self._beside(name, urllib.parse.unquote(target)).removesuffix(".html") if target else name
        if page in self.names:
            link["href"] = "#" + anchor(page, urllib.parse.unquote(place))
        else:
            link.unwrap()

    def _beside(self, name: str, address: str) -> str:
        """An address on the page ``name``, from the site's root."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), address))

    def text(self, numbers: Mapping[str, int]) -> str:
        """The document in HTML; ``numbers`` says on which page each anchor stands, as far as it is known."""
        body = [self._front(), self._contents(numbers)]
        for _, names in self.parts:
            for name in names:
                article = str(self.articles[name]) if name != INDEX else self._index(numbers)
                body.append(f'<div class="page" id="{anchor(name)}">{article}</div>')
            if names is self._answered():
                body.append(self._answers())
        head = [f"<title>{html.escape(self.config['title'])}</title>", *self._sheets()]
        return (
            '<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
            f'{"".join(head)}</head><body><main class="bd-article">{"".join(body)}</main></body></html>'
        )

    def _sheets(self) -> list[str]:
        """Styles of the site and of the print, and the maths: all that the pages load to be looked at."""
        with_maths = next((name for name in self.names if self.articles[name].select(".math")), self.names[0])
        page = read(self.pages / f"{with_maths}.html")
        found = page.select('link[rel="stylesheet"]')
        found += [
            each
            for each in page.select("script")
            if "MathJax" in each.text or "mathjax" in each.get("src", "")
        ]
        for each in found:
            for key in ("href", "src"):
                if each.get(key):
                    each[key] = self._beside(with_maths, str(each[key])).partition("?")[0]
        style = (ROOT / "book" / "pdf.css").read_text(encoding="utf-8")
        return [*map(str, found), f"<style>{style}</style>"]

    def _front(self) -> str:
        about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        logo = f'<img src="{self.config["logo"]}" alt="">'
        site, footer = address.pages(self.config), self.config["html"]["extra_footer"]
        link = f', <a href="{site}">{site}</a>' if site else ""
        return (
            f'<section class="front">{logo}<p class="title">{html.escape(self.config["title"])}</p>'
            f"<p>The security of knowledge distillation, as a book to read, run and check</p>"
            f'<p class="below">{html.escape(self.config["author"])}, {self.config["copyright"]}<br>'
            f"Version {about['version']}{link}<br>{html.escape(footer)}</p></section>"
        )

    def _contents(self, numbers: Mapping[str, int]) -> str:
        lines = []
        for caption, names in self.parts:
            lines.append(f'<p class="part">{html.escape(caption)}</p>')
            for name in names:
                lines.append(_line("chapter", anchor(name), self.title(name), numbers))
                for section in self.articles[name].select("section > section"):
                    heading = section.find("h2", recursive=False)
                    if heading and name.startswith("notebooks/"):
                        place = str(section["id"])
                        lines.append(_line("section", place, heading.get_text(" ", strip=True), numbers))
            if names is self._answered():
                lines.append(_line("chapter", ANSWERS, ANSWERS, numbers))
        return f'<section class="contents"><p class="heading">Contents</p>{"".join(lines)}</section>'

    def _answered(self) -> list[str] | None:
        """The part behind which the solutions stand: the last one with exercises."""
        found = [names for _, names in self.parts if any(self.solutions[name] for name in names)]
        return found[-1] if found else None

    def _answers(self) -> str:
        """All solutions together, under the titles of their chapters."""
        found = [
            f"<h2>{html.escape(self.title(name))}</h2>{''.join(map(str, self.solutions[name]))}"
            for name in self.names
            if self.solutions[name]
        ]
        return f'<div class="page answers" id="{ANSWERS}"><h1>{ANSWERS}</h1>{"".join(found)}</div>'

    def _index(self, numbers: Mapping[str, int]) -> str:
        """Sphinx's index with page numbers in place of links' names."""
        lines = []
        for entry in self.articles[INDEX].select("table.genindextable > tr > td > ul > li"):
            word = entry.find(string=re.compile(r"\w"))
            places = [str(link["href"])[1:] for link in entry.select("a[href^='#']")]
            # One number a page; as long as none is known, a place for each.
            pages = {numbers.get(place, -order): place for order, place in enumerate(places, 1)}
            links = [f'<a href="#{pages[page]}">{max(page, 0) or UNKNOWN}</a>' for page in sorted(pages)]
            found = ", ".join(links)
            lines.append(f"<li>{html.escape(str(word).strip())} <span>{found}</span></li>")
        return f'<h1>Index</h1><ul class="index">{"".join(lines)}</ul>'


def _line(kind: str, place: str, text: str, numbers: Mapping[str, int]) -> str:
    page = numbers.get(place, UNKNOWN)
    return f'<p class="{kind}"><a href="#{place}">{html.escape(text)}</a> <span>{page}</span></p>'


def printed(book: Book, program: str) -> bytes:
    """The PDF.

    Raises:
        PdfError: the browser does not start or does not print.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise PdfError("package playwright, which leads the browser, is missing; run make setup") from None

    draft = book.pages / "_print.html"
    # Tags for screen readers and an outline make a print half as long again: only the second has them.
    looks = {"prefer_css_page_size": True, "print_background": True}
    try:
        with sync_playwright() as playwright:
            running = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            page = running.new_page()
            numbers: dict[str, int] = {}
            for last in (False, True):
                draft.write_text(book.text(numbers), encoding="utf-8")
                page.goto(draft.as_uri(), wait_until="load")
                page.evaluate(
                    "async () => { await window.MathJax?.startup?.promise; await document.fonts.ready; }"
                )
                made = page.pdf(**looks, tagged=last, outline=last)
                numbers = page_numbers(made)
            running.close()
            return made
    except Error as error:
        raise PdfError(f"{program} did not print the book: {str(error).splitlines()[0]}") from error
    finally:
        draft.unlink(missing_ok=True)


def page_numbers(made: bytes) -> dict[str, int]:
    """On which page, counted from one, each anchor that something links to stands."""
    from pypdf import PdfReader

    reader = PdfReader(io.BytesIO(made))
    found = {}
    for name, place in reader.named_destinations.items():
        number = reader.get_destination_page_number(place)
        if number is not None:
            found[urllib.parse.unquote(name.lstrip("/"))] = number + 1
    return found


def make(pages: pathlib.Path, program: str) -> pathlib.Path:
    """Print the site in ``pages`` with the browser ``program``, and link the PDF on the first page.

    Raises:
        PdfError: a page is missing, or the browser failed.
    """
    book = Book(pages)
    made = printed(book, program)
    path = pages / NAME
    with atomic_write(path) as part:
        part.write_bytes(made)
    first = pages / f"{book.names[0]}.html"
    text = first.read_text(encoding="utf-8")
    size = f"{max(page_numbers(made).values())} pages, {len(made) / 1e6:.0f} MB"
    link = f'{LINK}<a href="{NAME}" download>The whole book as PDF</a> ({size})</p>'
    with atomic_write(first) as part:
        part.write_text(re.sub(rf"{LINK}.*?</p>", link, text, count=1), encoding="utf-8")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description="Print the built book as one PDF.")
    parser.add_argument("pages", nargs="?", type=pathlib.Path, default=pathlib.Path("_build/html"))
    arguments = parser.parse_args()
    program = browser()
    try:
        if program is None:
            raise PdfError(
                "the PDF is printed by Chromium; install it (Debian, Ubuntu: apt install chromium)"
            )
        print(make(arguments.pages.resolve(), program))
    except (PdfError, KdsecError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
