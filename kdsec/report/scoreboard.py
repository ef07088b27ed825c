"""The scoreboard: the page of all claims, and how many have which verdict."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence

from kdsec.config import CHAPTERS, PROFILES
from kdsec.report import claims, tables, verdicts
from kdsec.report.verdicts import NOT_RUN, ClaimResult

KINDS = {False: "claims of the paper", True: "questions of ours"}
Boards = Mapping[str, Sequence[ClaimResult]]


def read(folder: object = None) -> Boards:
    """Every claim at every profile, by the records in ``folder`` or those of the book."""
    return {profile: verdicts.scoreboard(profile, folder=folder) for profile in PROFILES}


def page(boards: Boards) -> str:
    """The page's tables in Markdown, two per chapter."""
    absent = [name for name in PROFILES if all(each.verdict == NOT_RUN for each in boards[name])]
    rows = list(zip(*(boards[name] for name in PROFILES), strict=True))
    parts = [
        _section(name, paper, [row for row in rows if row[0].claim.chapter == name])
        for name, paper in claims.papers().items()
    ]
    if absent:
        parts.append(f"Nothing is recorded yet at: {', '.join(absent)}.")
    return "\n".join(parts)


def strip(boards: Boards) -> str:
    """A line of marks per chapter, as HTML in Markdown: one mark for each claim, which leads to its row."""
    rows = list(zip(*(boards[name] for name in PROFILES), strict=True))
    lines = [
        f"<p><span>{chapter.number}</span>"
        f"{tables.strip([row for row in rows if row[0].claim.chapter == name])}</p>"
        for name, chapter in CHAPTERS.items()
    ]
    shown = f'<div class="strip" role="group" aria-label="all claims by chapter">{"".join(lines)}</div>'
    return f"```{{raw}} html\n{shown}\n```"


def counts(boards: Boards) -> str:
    """Lines for each profile with records: the number of claims by verdict, the same numbers once."""
    return "\n".join(
        f"- *{profile}*, {line}." for profile, board in boards.items() for line in summary(board)
    )


def summary(board: Sequence[ClaimResult]) -> Iterator[str]:
    """For the papers' claims and for our questions: how many have which verdict; no line without records."""
    for ours, what in ((False, "claims of the papers"), (True, "our own questions")):
        found = [
            each.verdict for each in verdicts.distinct(each for each in board if each.claim.ours is ours)
        ]
        if set(found) - {NOT_RUN}:
            yield f"{what}: " + ", ".join(
                f"{found.count(name)} {name}" for name in tables.MARKS if name in found
            )


def old(boards: Boards) -> str:
    """One line on records of an older form; empty if there are none."""
    results = [each for board in boards.values() for each in board if each.exploratory == verdicts.OLD]
    names = ", ".join(dict.fromkeys(f"{each.claim.chapter} at {each.profile}" for each in results))
    return f"Old records, which do not say what was claimed before them: {names}." if names else ""


def _section(chapter: str, paper: claims.Paper, rows: tables.Rows) -> str:
    counted = "; ".join(_counted(part, KINDS[part[0][0].claim.ours]) for _, part in tables.lists(rows))
    shown = "\n".join(tables.of_claims(part, name, board=True).html for name, part in tables.lists(rows))
    notes = "\n".join(f"- {note}" for note in paper.deviations)
    known = CHAPTERS[chapter]
    # Open: without a script all rows are shown. scoreboard.js folds the chapters.
    return f"""## {known.number}. {known.title}

{paper.paper}. What of it was read: {paper.read}. The chapter: [](notebooks/{known.notebook}).

```{{raw}} html
<details class="board" open><summary>{html.escape(counted)}</summary>
{shown}
</details>
```

```{{admonition}} What we changed
:class: dropdown

{notes}
```
"""


def _counted(rows: tables.Rows, what: str) -> str:
    """How many of the claims have which verdict over all profiles."""
    found = [verdicts.overall(row)[0] for row in rows]
    return f"{len(rows)} {what}: " + ", ".join(
        f"{found.count(name)} {name}" for name in tables.MARKS if name in found
    )
