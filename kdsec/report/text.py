"""Tables of text: for a terminal, and for a page in Markdown."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(rows: Sequence[Iterable[object]]) -> str:
    """A table in Markdown, its head first.

    Markdown passes HTML through, and records may come from anywhere: a cell shows its text and nothing else.
    """
    head, *body = ["| " + " | ".join(map(markdown_cell, row)) + " |" for row in rows]
    rule = "| " + " | ".join("---" for _ in rows[0]) + " |"
    return "\n".join([head, rule, *body])


def markdown_cell(text: object) -> str:
    """Text that stays in its cell and shows itself: one line, no tags, no links; ``**bold**`` is kept."""
    plain = html.escape(str(text), quote=False).replace("|", "&#124;").replace("](", "]&#40;")
    return " ".join(plain.splitlines())


def two_digits(value: float, sign: str = "") -> str:
    """Two significant digits, or all of a larger whole number; no power of ten. ``sign``: ``+`` or none."""
    if abs(value) >= 10:
        return f"{value:{sign}.0f}"
    whole, _, decimals = f"{float(f'{value:.2g}'):{sign}.10f}".partition(".")
    return f"{whole}.{decimals}".rstrip("0").rstrip(".")


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as lines of text for a terminal: columns aligned, numbers to the right."""
    names = list(rows[0]) if rows else []
    cells = [[str(row[name]) for name in names] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    right = [all(_is_number(line[i]) for line in cells) for i in range(len(names))]

    def line(parts: Sequence[str]) -> str:
        padded = (p.rjust(w) if r else p.ljust(w) for p, w, r in zip(parts, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(names), line(["-" * width for width in widths]), *map(line, cells)])


def _is_number(text: str) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
