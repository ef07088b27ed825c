"""The page of the book that says which claims held up: a table of verdicts with a small picture of each."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from kdsec.chapters import CHAPTERS, PROFILES
from kdsec.report import claims
from kdsec.report.claims import NOT_RUN, Judgement
from kdsec.report.tables import MARKS, badge, cell, recorded

WIDTH, HEIGHT = 92, 16  # pixels of the small picture

Boards = Mapping[str, Sequence[Judgement]]


def read(folder: object = None) -> Boards:
    """Every claim at every profile, by the records in ``folder``; by those of the book if not given."""
    return {profile: claims.scoreboard(profile, folder=folder) for profile in PROFILES}


def page(boards: Boards) -> str:
    """The scoreboard in Markdown: for every chapter a table, a row a claim, a column a profile."""
    # A profile at which nothing was recorded has no column; its name stands under the tables.
    absent = [name for name in PROFILES if all(each.verdict == NOT_RUN for each in boards[name])]
    rows = list(zip(*(boards[name] for name in PROFILES), strict=True))
    parts = []
    for name, paper in claims.papers().items():
        mine = [row for row in rows if row[0].claim.chapter == name]
        parts.append(_section(name, paper, mine))
    if absent:
        parts.append(f"Nothing is recorded yet at: {', '.join(absent)}.")
    return "\n".join(parts)


def counts(boards: Boards) -> str:
    """One sentence for every profile with records: how many claims have which verdict."""
    lines = []
    for profile, board in boards.items():
        verdicts = [each.verdict for each in board]
        if set(verdicts) != {NOT_RUN}:
            parts = [f"{verdicts.count(name)} {name}" for name in MARKS if name in verdicts]
            lines.append(f"- *{profile}*: {', '.join(parts)}.")
    return "\n".join(lines)


def _section(chapter: str, paper: claims.Paper, rows: Sequence[Sequence[Judgement]]) -> str:
    notes = "\n".join(f"- {note}" for note in paper.deviations)
    columns = recorded(rows)
    have = [PROFILES[place] for place in columns]
    names = ["claim, and where it is made", *have, "overall"]
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    body = "\n".join(_row(row, columns) for row in rows)
    known = CHAPTERS[chapter]
    return f"""## {known.number}. {known.title}

{paper.paper}. What of it was read: {paper.read}. The chapter: [](notebooks/{known.notebook}).

```{{raw}} html
<div class="scoreboard"><table class="table">
<thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div>
```

What we changed:

{notes}
"""


def _row(judgements: Sequence[Judgement], columns: Sequence[int]) -> str:
    claim = judgements[0].claim
    chosen = [judgements[index] for index in columns]
    scale = _scale(claim, chosen)
    cells = "".join(cell(each, _cell(each, scale)) for each in chosen)
    total = badge(claims.overall(each.verdict for each in chosen))
    return (
        f'<tr id="{claim.chapter}-{claim.id}"><td>{html.escape(claim.says)}'
        f'<span class="made">{html.escape(claim.made)}</span></td>{cells}'
        f'<td data-profile="overall">{total}</td></tr>'
    )


def _cell(judgement: Judgement, scale: float) -> str:
    if judgement.difference is None:
        return badge(NOT_RUN)
    unit = judgement.claim.unit
    words = f"{judgement.text('mean')} {unit}, 95 % interval {judgement.text('interval')}"
    words += f"; {judgement.difference.seeds} seeds, {judgement.dataset}"
    return f"{badge(judgement.verdict)}{sparkline(judgement, scale, words)}"


def _scale(claim: claims.Claim, judgements: Sequence[Judgement]) -> float:
    """The largest number that a row of pictures must show, so that they can be compared with each other."""
    numbers = [abs(claim.least)]
    for gap in (each.difference for each in judgements):
        if gap is not None:
            numbers += [abs(gap.mean), *(abs(end) for end in (gap.low, gap.high) if math.isfinite(end))]
    return max(numbers) or 1.0


def sparkline(judgement: Judgement, scale: float, words: str) -> str:
    """The interval as a bar, the mean as a dot, the threshold of the claim as a line; ``scale`` is the rim.

    Without a finite interval (one seed) there is only the dot.
    """
    gap = judgement.difference
    if gap is None:
        return ""

    def place(value: float) -> float:
        return round(WIDTH / 2 + (WIDTH / 2 - 4) * max(-1.0, min(1.0, value / scale)), 1)

    least, middle = place(judgement.claim.least), HEIGHT / 2
    bar = ""
    if math.isfinite(gap.low):
        low, wide = place(gap.low), max(place(gap.high) - place(gap.low), 1)
        bar = f'<rect class="bar" x="{low}" y="{middle - 2}" width="{wide:.1f}" height="4" rx="2"/>'
    text = html.escape(words)
    return (
        f'<svg class="spark" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{text}"><title>{text}</title>'
        f'<line class="least" x1="{least}" x2="{least}" y1="1" y2="{HEIGHT - 1}"/>{bar}'
        f'<circle cx="{place(gap.mean)}" cy="{middle}" r="3"/></svg>'
    )
