"""The index: every term of the glossary points to the place in each chapter where it first turns up.

Sphinx makes the page ``genindex`` from index entries. Those in the chapters are not typed: they follow from
the glossary, so that a new term, or a chapter that takes up an old one, needs nothing more.
"""

from __future__ import annotations

import copy
import pathlib
import re
from typing import Any

from kdsec.chapters import Chapter

GLOSSARY = pathlib.Path(__file__).resolve().parent / "glossary.md"


def terms(text: str | None = None) -> list[str]:
    """The terms of the glossary, in its order; ``text`` in place of the page's."""
    text = GLOSSARY.read_text(encoding="utf-8") if text is None else text
    body = text.partition("```{glossary}\n")[2].partition("```")[0]
    return [line for line in body.splitlines() if line and not line.startswith(" ")]


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
        cell.source = f"{heading}\n\n{entries}\n{text}".lstrip() if entries else cell.source
    return notebook
