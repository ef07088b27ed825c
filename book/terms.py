"""The terms of the glossary in the chapters: each is indexed and explained where a chapter first uses it.

Sphinx makes the page ``genindex`` from index entries; the explanation shows on hover, focus or tap. Both
follow from the glossary, so that a new term, or a chapter that takes up an old one, needs nothing more.
"""

from __future__ import annotations

import copy
import html
import pathlib
import re
from typing import Any

from kdsec.config import Chapter

# No running text: drawings, fenced blocks, code, formulas, links, roles, tags, headings, tables, options.
NO_PROSE = re.compile(
    r"(<figure.*?</figure>|^(?:`{3,}|:{3,}|~{3,}).*?^(?:`{3,}|:{3,}|~{3,})\s*?$|\{[\w:.+-]+\}`[^`]*`|`[^`]*`"
    r"|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|<!--.*?-->|<[^>]+>|^(?:#|\||:).*?$)",
    re.DOTALL | re.MULTILINE,
)
GLOSSARY = pathlib.Path(__file__).resolve().parent / "glossary.md"


def terms(text: str | None = None) -> list[str]:
    """The terms of the glossary, in its order; ``text`` in place of the page's."""
    text = GLOSSARY.read_text(encoding="utf-8") if text is None else text
    body = text.partition("```{glossary}\n")[2].partition("```")[0]
    return [line for line in body.splitlines() if line and not line.startswith(" ")]


def meanings() -> dict[str, str]:
    """What each term means, as plain text without the links to its chapters."""
    entries = re.findall(r"^(\w.*)\n  (.*)$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE)
    found = {}
    for term, text in entries:
        text = re.sub(r"\s*Chapters? \[.*$", "", text)
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)|\{[\w:]+\}`([^`<]*)[^`]*`", r"\1\2", text)
        sentences = [each for each in re.split(r"(?<=[.:;]) ", text) if "$" not in each]
        if sentences:
            found[term] = re.sub(r"[*`]", "", " ".join(sentences))
    return found


def with_meanings(notebook: Any, meaning: dict[str, str]) -> Any:
    """A copy of ``notebook`` in whose text the first use of each term carries its meaning."""
    notebook = copy.deepcopy(notebook)
    missing = set(meaning)
    for cell in notebook.cells:
        # A cell that opens or closes an exercise is one directive; that of an index entry is short.
        whole = cell.source.startswith("```") and not cell.source.startswith("```{index}")
        if cell.cell_type == "markdown" and not whole:
            parts = NO_PROSE.split(cell.source)  # prose, then what is none, in turn
            parts[::2] = [_explained(part, meaning, missing) for part in parts[::2]]
            cell.source = "".join(parts)
    return notebook


def _explained(prose: str, meaning: dict[str, str], missing: set[str]) -> str:
    """``prose`` with their meanings at the terms that are ``missing``, which they leave."""
    taken: list[tuple[int, int, str]] = []
    for term in sorted(meaning, key=len, reverse=True):  # no term inside a longer one
        for match in pattern(term).finditer(prose):
            if not any(start < match.end() and match.start() < end for start, end, _ in taken):
                taken.append((*match.span(), term if term in missing else ""))
                missing.discard(term)
    for start, end, term in sorted(taken, reverse=True):
        if term:
            means = html.escape(meaning[term])
            span = f'<span class="term" tabindex="0" data-means="{means}" aria-description="{means}">'
            prose = f"{prose[:start]}{span}{prose[start:end]}</span>{prose[end:]}"
    return prose


def pattern(term: str) -> re.Pattern[str]:
    """Finds ``term`` as a word, in the plural too; in any case, unless it has capitals of its own."""
    flags = 0 if any(letter.isupper() for letter in term) else re.IGNORECASE
    letters = re.escape(term).replace(r"\ ", r"[\s-]+")
    plural = f"{letters[:-1]}(?:y|ies)" if term.endswith("y") else f"{letters}(?:e?s)?"
    return re.compile(rf"(?<![\w-]){plural}(?![\w-])", flags)


def with_index(notebook: Any, chapter: Chapter, known: list[str]) -> Any:
    """A copy of ``notebook`` with an index entry for each of the ``known`` terms that it uses."""
    notebook = copy.deepcopy(notebook)
    missing = {term: pattern(term) for term in known}
    for cell in notebook.cells:
        # A cell that opens or closes an exercise is one directive, in which nothing may be put.
        if cell.cell_type != "markdown" or cell.source.startswith("```"):
            continue
        here = [term for term, found in missing.items() if found.search(cell.source)]
        missing = {term: found for term, found in missing.items() if term not in here}
        entries = "".join(f"```{{index}} single: {term}; chapter {chapter.number}\n```\n" for term in here)
        # Behind a heading, since what stands before the first one is in no section.
        first, _, rest = cell.source.partition("\n")
        heading, text = (first, rest) if first.startswith("#") else ("", cell.source)
        # A drawing cannot be the place that an entry points to; then its end is.
        drawn = text.lstrip().startswith(("<figure", "!["))
        parts = (heading, text, entries) if drawn else (heading, entries, text)
        cell.source = "\n\n".join(parts).lstrip() if entries else cell.source
    return notebook
