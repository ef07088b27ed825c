"""The Colab edition: every executed chapter as a notebook that reads well where no Sphinx renders it.

Colab and Jupyter show MyST directives and roles as they are typed. Here they become plain Markdown: citations
and links are resolved, captions are text below their pictures, exercises are headings, and solutions are
sections that begin collapsed. Code and stored outputs are those of the book's run. What has no rule becomes
its text, so that a new directive never reaches a reader raw.
"""

from __future__ import annotations

import base64
import codecs
import copy
import mimetypes
import pathlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import address
import latexcodec  # noqa: F401 (registers the codec)
import nbformat
import sync
from nbformat.v4 import new_markdown_cell
from pybtex.database import Entry, parse_file

from kdsec import notebook as stored
from kdsec.config import CHAPTERS, Chapter

BOOK = pathlib.Path(__file__).resolve().parent
FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|:{3,}|~{3,})(?P<info>[^`\n]*)$")
DIRECTIVE = re.compile(r"\{([\w:+.-]+)\} *(.*)")
LABEL = re.compile(r"^\(([\w:.-]+)\)=$")
ROLE = re.compile(r"\{([\w:+.-]+)\}`([^`]+)`")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]*)\)")
IMAGE = re.compile(r'(<img\b[^>]*?\bsrc=")([^":]+)(")')
NAMED = re.compile(r"(.*?)\s*<([^>]+)>", re.DOTALL)  # the text of a role, with a target of its own
EQUATION = re.compile(r"(?<=\$\$) +\(([\w:.-]+)\) *$", re.MULTILINE)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# Inline code and formulas: what is in them is no markup. A role's text, though in backticks, is no code.
VERBATIM = re.compile(
    rf"(?P<role>{ROLE.pattern})|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)|\$\$.+?\$\$|(?<!\\)\$[^$\n]+\$",
    re.DOTALL,
)
RAW = re.compile(
    r"^ *(?:`{3,}|:{3,}|~{3,})\{|^:{3,}|^\([\w:.-]+\)=$|\{[\w:+.-]+\}`|<!--|\[\]\(", re.MULTILINE
)
NOTES = ("note", "tip", "hint", "important", "warning", "caution", "attention", "danger", "admonition")
NOTES = (*NOTES, "seealso", "margin", "sidebar", "topic", "epigraph")
NOTHING = ("index", "contents", "tableofcontents", "button-ref", "button-link", "toctree")
SOLUTION = "solution"


@dataclass
class Edition:
    """All that a chapter refers to.

    Attributes:
        settings: of the book; they say where the repository and the pages are, if anywhere.
        entries: of the bibliography, by key.
        labels: what a label is called in text: "Exercise 2.1", "Figure 4.3", a heading.
        titles: of pages and chapters, by name without folder and ending.
    """

    settings: dict[str, Any]
    entries: Mapping[str, Entry] = field(
        default_factory=lambda: parse_file(str(BOOK / "references.bib")).entries
    )
    labels: dict[str, str] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: dict[str, Any], notebooks: Mapping[str, Any]) -> Edition:
        """The edition of ``notebooks``, by chapter name, with what they call things."""
        made = cls(settings)
        for path in BOOK.glob("*.md"):
            made.titles[path.stem] = _title(path.read_text(encoding="utf-8"))
        for name, notebook in notebooks.items():
            text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
            made.titles[pathlib.Path(CHAPTERS[name].notebook).stem] = _title(text)
            made.labels |= _labels(notebook, CHAPTERS[name])
        return made

    def chapter(self, notebook: Any, chapter: Chapter) -> Any:
        """The chapter's notebook, executed and prepared for the book, as a notebook for Colab."""
        return _Chapter(self, chapter).notebook(notebook)


def _title(text: str) -> str:
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return _plain(found[1]) if found else ""


def _plain(heading: str) -> str:
    return COMMENT.sub("", heading).strip()


def _labels(notebook: Any, chapter: Chapter) -> dict[str, str]:
    """Names of a chapter's exercises, figures, equations and labelled headings, numbered as in the book."""
    labels, counts = {}, {"Exercise": 0, "Figure": 0, "Equation": 0}

    def number(kind: str, label: str) -> None:
        counts[kind] += 1
        labels[label] = f"{kind} {chapter.number}.{counts[kind]}"

    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            about = cell.metadata.get("mystnb", {}).get("figure", {})
            if "caption" in about:
                number("Figure", about.get("name", f"cell {index}"))
            continue
        for place, part in enumerate(_parts(cell.source)):
            if isinstance(part, Directive):
                if part.name == "exercise":
                    number("Exercise", part.options.get("label", f"exercise {index} {place}"))
                elif part.name == "figure" and part.body.strip() and not part.dark:
                    number("Figure", part.label or f"figure {index} {place}")
                elif part.name == "math" and part.label:
                    number("Equation", part.label)
                continue
            for label in EQUATION.findall(part):
                number("Equation", label)
            for label, heading in re.findall(r"^\(([\w:.-]+)\)=\s+#+ (.+)$", part, re.MULTILINE):
                labels[label] = _plain(heading)
    return labels


@dataclass(frozen=True)
class Directive:
    """One directive of a text; ``body`` is without its options."""

    name: str
    argument: str
    options: dict[str, str]
    body: str

    @property
    def label(self) -> str:
        return self.options.get("name", self.options.get("label", ""))

    @property
    def dark(self) -> bool:
        """A picture for dark pages only, which stands beside one for light pages."""
        return "only-dark" in self.options.get("class", "")


def _parts(text: str) -> Iterator[str | Directive]:
    """The text, cut where its directives are; code in fences stays in the text."""
    lines, kept = text.split("\n"), []
    while lines:
        line = lines.pop(0)
        opening = FENCE.match(line)
        directive = DIRECTIVE.match(opening["info"].strip()) if opening else None
        if opening is None or (directive is None and opening["fence"][0] == ":" and not opening["info"]):
            kept.append(line)
            continue
        inside = _inside(lines, opening["fence"])
        if directive is None:
            kept += [line, *inside, opening["indent"] + opening["fence"]]
            continue
        yield "\n".join(kept)
        kept = []
        yield _directive(directive[1], directive[2], inside)
    yield "\n".join(kept)


def _inside(lines: list[str], fence: str) -> list[str]:
    """Take the lines up to the end of a fence, and the end, from ``lines``; gives them without the end."""
    taken: list[str] = []
    while lines:
        line = lines.pop(0)
        if re.fullmatch(rf" *{re.escape(fence[0])}{{{len(fence)},}} *", line):
            break
        taken.append(line)
    return taken


def _directive(name: str, argument: str, lines: list[str]) -> Directive:
    options = {}
    while lines and (option := re.fullmatch(r"\s*:([\w-]+):(.*)", lines[0])):
        options[option[1]] = option[2].strip()
        lines = lines[1:]
    return Directive(name, argument.strip(), options, "\n".join(lines).strip("\n"))


class _Chapter:
    """The conversion of one chapter."""

    def __init__(self, edition: Edition, chapter: Chapter) -> None:
        self.edition, self.about = edition, chapter
        self.cited: list[str] = []
        self.figures = self.exercises = 0
        self.solving = False  # between the start and the end of a solution, which may be cells apart

    def notebook(self, notebook: Any) -> Any:
        notebook = copy.deepcopy(notebook)
        cells: list[Any] = []
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            if stored.INJECTED in tags:
                continue
            if cell.cell_type == "markdown":
                for text, solved in self._pieces(cell.source):
                    cells.append(new_markdown_cell(text, metadata={"tags": [SOLUTION]} if solved else {}))
                continue
            caption = cell.metadata.get("mystnb", {}).get("figure", {}).get("caption")
            cells.append(self._code(cell, tags))
            if caption:
                cells.append(new_markdown_cell(self._caption(caption)))
        cells.insert(1, new_markdown_cell(self._note()))
        notebook.cells = cells
        return _for_colab(notebook)

    def _pieces(self, source: str) -> Iterator[tuple[str, bool]]:
        """The texts that a cell becomes, each with whether it is of a solution; none that is empty."""
        text: list[str] = []
        for part in _parts(source):
            if isinstance(part, Directive) and part.name.startswith(SOLUTION):
                if whole := _joined(text):
                    yield whole, self.solving
                self.solving, text = part.name != "solution-end", []
                if self.solving:
                    text = [f"#### Solution to {self.edition.labels.get(part.argument, 'the exercise')}"]
                if part.name == SOLUTION:
                    yield _joined([*text, self.text(part.body)]), True
                    self.solving, text = False, []
                continue
            text.append(self._block(part) if isinstance(part, Directive) else self.inline(part))
        if whole := _joined(text):
            yield whole, self.solving

    def text(self, source: str) -> str:
        """Markdown without directives and roles."""
        return _joined(
            [
                self._block(part) if isinstance(part, Directive) else self.inline(part)
                for part in _parts(source)
            ]
        )

    def _block(self, part: Directive) -> str:
        name, title, body = part.name, self.inline(part.argument), part.body
        if name in NOTHING or part.dark:
            return ""
        if name == "bibliography":
            return "\n".join(f"- {self._reference(key)}" for key in sorted(set(self.cited), key=self._by))
        if name == "exercise":
            self.exercises += 1
            heading = f"### Exercise {self.about.number}.{self.exercises}"
            return _joined([f"{heading}: {title}" if title else heading, self.text(body)])
        if name in ("figure", "image"):
            return self._picture(part)
        if name == "math":
            return f"$$\n{body or part.argument}\n$$"
        if name in ("code-block", "code", "code-cell", "sourcecode"):
            return f"```{part.argument}\n{body}\n```"
        if name == "raw":
            return self.inline(body) if part.argument == "html" else ""
        if name == "dropdown" or "dropdown" in part.options.get("class", ""):
            return f"<details><summary>{title}</summary>\n\n{self.text(body)}\n\n</details>"
        if name in NOTES:
            title = title or name.capitalize() * (name not in ("margin", "epigraph", "sidebar"))
            told = _joined([f"**{title}**" if title else "", self.text(body)])
            return "\n".join(f"> {line}".rstrip() for line in told.split("\n"))
        # The argument of these is a class or a layout, of others a title.
        plain = name in ("div", "container", "grid", "grid-item", "only", "tab-set", "rst-class")
        return _joined(["" if plain or not title else f"**{title}**", self.text(body)])

    def _picture(self, part: Directive) -> str:
        alt = part.options.get("alt", "").replace("[", "(").replace("]", ")")
        shown = f"![{alt}]({self._embedded(part.argument)})"
        return _joined([shown, self._caption(part.body) if part.name == "figure" and part.body else ""])

    def _caption(self, caption: str) -> str:
        self.figures += 1
        return f"**Figure {self.about.number}.{self.figures}.** {self.text(caption)}"

    def _embedded(self, path: str) -> str:
        """A picture of the book as a data address; any other address as it is."""
        kind = mimetypes.guess_type(path)[0]
        for folder in ("notebooks", "book/notebooks"):  # as it is kept, or as it is staged
            file = (BOOK.parent / folder / path).resolve()
            if ":" not in path and kind and file.is_file():
                return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode('ascii')}"
        return path

    def inline(self, text: str) -> str:
        """Text without roles, labels, comments and links inside the book; code and formulas as they are."""
        text = COMMENT.sub("", EQUATION.sub("", text))
        text = "\n".join(line for line in text.split("\n") if not LABEL.match(line))
        done, kept = [], 0
        for match in _verbatim(text):
            done += [self._resolved(text[kept : match[0]]), text[slice(*match)]]
            kept = match[1]
        return "".join([*done, self._resolved(text[kept:])])

    def _resolved(self, text: str) -> str:
        text = ROLE.sub(lambda match: self._role(match[1], match[2]), text)
        text = IMAGE.sub(lambda match: match[1] + self._embedded(match[2]) + match[3], text)
        return LINK.sub(self._linked, text)

    def _linked(self, match: re.Match[str]) -> str:
        if match[1]:
            return f"![{match[2]}]({self._embedded(match[3])})"
        return self._link(match[2], match[3])

    def _role(self, name: str, text: str) -> str:
        if name.startswith("cite"):
            keys = [key.strip() for key in text.split(",")]
            self.cited += keys
            shown = [self._citation(key, narrative=name.startswith("cite:t")) for key in keys]
            return ", ".join(shown) if name.startswith("cite:t") else f"({'; '.join(shown)})"
        named = NAMED.fullmatch(text)
        if named:
            return self._link(named[1], named[2]) if name == "doc" else named[1]
        if name == "doc":
            return self._link("", text)
        return self.edition.labels.get(text, text)

    def _link(self, text: str, target: str) -> str:
        """A link that works outside the book; its text alone where there is nothing to point to."""
        page, _, place = target.partition("#")
        if re.match(r"[a-z]+:", target):
            return f"[{text or target}]({target})"
        if target in self.edition.labels or (not page and place):
            return text or self.edition.labels.get(place or target, place or target)
        name = pathlib.PurePosixPath(page).name
        stem = re.sub(r"\.(md|ipynb|html)$", "", name)
        text = text or self.edition.titles.get(stem, stem)
        where = self._address(stem, place)
        return f"[{text}]({where})" if where else text

    def _address(self, stem: str, place: str) -> str:
        """Where a page is to be found: a chapter on Colab, a page among the published ones."""
        notebook = next((each for each in CHAPTERS.values() if each.notebook == f"{stem}.ipynb"), None)
        if notebook and (found := address.colab(notebook.notebook, self.edition.settings)):
            return found
        pages = address.pages(self.edition.settings)
        folder = "notebooks/" if notebook else ""
        return f"{pages}{folder}{stem}.html{'#' * bool(place)}{place}" if pages else ""

    def _code(self, cell: Any, tags: list[str]) -> Any:
        """A code cell with its picture and text; machinery and solutions show a title in place of code."""
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        for output in cell.outputs:
            data = output.get("data", {})
            if any(kind.startswith("image/") for kind in data):  # HTML beside a picture makes it live
                data.pop("text/html", None)
            if "text/markdown" in data:
                data["text/markdown"] = self.text(data["text/markdown"])
        kept = [SOLUTION] if SOLUTION in tags or self.solving else []
        metadata: dict[str, Any] = {"tags": kept} if kept else {}
        title = (
            "Solution"
            if kept
            else "Code of what is shown below"
            if {"hide-input", "hide-cell"} & {*tags}
            else ""
        )
        if "colab" in tags:
            cell.source, title = sync.first_cell(address.repository(self.edition.settings)), ""
        if title:
            cell.source = f"# @title {title}\n{cell.source}"
            metadata |= {"cellView": "form", "jupyter": {"source_hidden": True}}
        cell.metadata = nbformat.from_dict(metadata)
        return cell

    def _note(self) -> str:
        pages = address.pages(self.edition.settings)
        name = f"chapter {self.about.number} of “{self.edition.settings['title']}”"
        if pages:
            name = f"[{name}]({pages}notebooks/{self.about.notebook.removesuffix('.ipynb')}.html)"
        return (
            f"> This notebook is {name}, for Colab and Jupyter. Run the next cell first: it installs what\n"
            "> is missing. Outputs and pictures are stored from the book's run at the profile `quick`;\n"
            "> running a cell replaces them."
        )

    # Citations

    def _citation(self, key: str, narrative: bool) -> str:
        entry = self.edition.entries[key]
        year = entry.fields.get("year", "n.d.")
        shown = f"{_authors(entry)} ({year})" if narrative else f"{_authors(entry)}, {year}"
        where = _address(entry)
        return f"[{shown}]({where})" if where else shown

    def _reference(self, key: str) -> str:
        entry = self.edition.entries[key]
        people = [str(person) for person in entry.persons.get("author", [])]
        place = next((entry.fields[name] for name in ("journal", "booktitle") if name in entry.fields), "")
        title = entry.fields["title"]
        where = _address(entry)
        title = f"[{title}]({where})" if where else title
        parts = [
            f"{'; '.join(people)} ({entry.fields.get('year', 'n.d.')})",
            title,
            f"*{place}*" * bool(place),
        ]
        return _untex(". ".join(filter(None, parts)) + ".")

    def _by(self, key: str) -> str:
        return f"{_authors(self.edition.entries[key])} {key}"


def _verbatim(text: str) -> Iterator[tuple[int, int]]:
    """Where code and formulas are: fenced code, inline code, mathematics."""
    place = 0
    fenced = re.compile(r"^ *(?P<fence>`{3,}|~{3,}).*?^ *(?P=fence) *$", re.DOTALL | re.MULTILINE)
    for fence in [*fenced.finditer(text), None]:
        end = fence.start() if fence else len(text)
        yield from (
            (each.start() + place, each.end() + place)
            for each in VERBATIM.finditer(text[place:end])
            if not each["role"]
        )
        if fence:
            yield fence.span()
            place = fence.end()


def _authors(entry: Entry) -> str:
    people = entry.persons.get("author", [])
    names = [_untex(" ".join([*person.prelast_names, *person.last_names])) for person in people]
    if len(names) > 2:
        return f"{names[0]} et al."
    return " and ".join(names)


def _address(entry: Entry) -> str:
    """Where a work can be found, by its identifiers."""
    fields = entry.fields
    if "doi" in fields:
        return f"https://doi.org/{fields['doi']}"
    if "eprint" in fields:
        return f"https://arxiv.org/abs/{fields['eprint']}"
    return str(fields.get("url", ""))


def _untex(text: str) -> str:
    """A text of BibTeX's without its commands and braces."""
    decoded = codecs.decode(text, "ulatex") if "\\" in text else text
    return re.sub(r"[{}]", "", decoded).replace("--", "–")


def _joined(parts: list[str]) -> str:
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(part.strip("\n") for part in parts if part.strip()))


def _for_colab(notebook: Any) -> Any:
    """``notebook`` with names for its cells, and with the sections of solutions collapsed."""
    collapsed = []
    for index, cell in enumerate(notebook.cells):
        cell.id = cell.metadata["id"] = f"cell-{index:03d}"
        if cell.cell_type == "markdown" and cell.source.startswith("#### Solution"):
            cell.metadata["jp-MarkdownHeadingCollapsed"] = True
            collapsed.append(cell.id)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    colab = {"provenance": [], "toc_visible": True, "collapsed_sections": collapsed}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": {"name": "python"}, "colab": colab}
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def raw(text: str) -> list[str]:
    """Marks of MyST that a reader of plain Markdown would see."""
    kept, found = 0, []
    for start, end in _verbatim(text):
        found += RAW.findall(text[kept:start])
        # A directive's fence looks like one of code.
        found += [text[start:end].partition("\n")[0]] if RAW.match(text[start:end]) else []
        kept = end
    return found + RAW.findall(text[kept:])
