"""Tables of claims: measured, required, verdict, one row for each claim and scale.

Text from claims and records is escaped here, where it becomes HTML or Markdown.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdsec.errors import KdsecError
from kdsec.report import verdicts as rule
from kdsec.report.claims import POINTS, Claim
from kdsec.report.records import in_print
from kdsec.report.text import markdown_cell, markdown_table
from kdsec.report.verdicts import ClaimResult

if TYPE_CHECKING:
    import pandas as pd

Rows = Sequence[Sequence[ClaimResult]]  # a row is one claim at every profile

NOT_QUOTED = "not quoted"
MARKS = {
    rule.SUPPORTED: "✓",
    rule.CONTRADICTED: "✗",
    rule.NO_DIFFERENCE: "=",
    rule.UNDECIDED: "?",
    rule.NOT_REALISED: "∅",
    rule.CONFLICT: "±",
    NOT_QUOTED: "–",
    rule.NOT_RUN: "·",
}
HEADINGS = {False: "claim of the paper, and where it is made", True: "our own question"}
COLUMNS = ("scale", "measured, 95 % interval", "required", "verdict", "q")
DAGGER = "†"
LEGEND = f"{DAGGER} exploratory: settled after a first look"


@dataclass(frozen=True)
class Table:
    """A table in two forms: HTML for a notebook, Markdown for a terminal or a text."""

    html: str
    markdown: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.markdown


def verdicts(chapter: str, recordings: Mapping[str, tuple[Any, pd.DataFrame]]) -> Table:
    """All claims of a chapter, at every profile with records; our own questions in a table of their own.

    A list of claims of which nothing was run is shown too, as not yet run.

    Args:
        chapter: its name.
        recordings: settings and rows by profile, from ``run.recorded_results()``.

    Raises:
        KdsecError: unknown chapter, or nothing recorded of its claims.
    """
    boards = [
        rule.judge_all(rows, chapter, profile, settings) for profile, (settings, rows) in recordings.items()
    ]
    rows = list(zip(*boards, strict=True))
    if not any(each.difference for row in rows for each in row):
        raise KdsecError(f"no claim of chapter {chapter} is decided by these records; have all cells run?")
    found = [of_claims(part, heading) for heading, part in lists(rows)]
    return Table("\n".join(each.html for each in found), "\n".join(each.markdown for each in found))


def lists(rows: Rows) -> list[tuple[str, Rows]]:
    """The papers' claims and our own questions, each with the heading of its table; none that is empty."""
    parts = [
        (heading, [row for row in rows if row[0].claim.ours is ours]) for ours, heading in HEADINGS.items()
    ]
    return [(heading, part) for heading, part in parts if part]


def of_claims(rows: Rows, heading: str, *, board: bool = False) -> Table:
    """A table of claims: below each, a row for every scale that it was run at.

    Args:
        rows: one claim each, at every profile; where nothing was run the claim has one row that says so.
        heading: of the first column.
        board: claims get an address each, and what the scoreboard filters by.
    """
    shown = [(row, [each for each in row if each.difference] or [row[0]]) for row in rows]
    head = "".join(f'<th scope="col">{html.escape(each)}</th>' for each in (heading, *COLUMNS))
    body = "".join(_group(row[0].claim, results, board) for row, results in shown)
    notes = _notes([each for _, results in shown for each in results])
    text = [
        ["" if place else _says(row[0].claim), *_texts(each)]
        for row, results in shown
        for place, each in enumerate(results)
    ]
    return Table(
        f'<div class="{"scoreboard" if board else "quoted"}"><table class="table">'
        f"<thead><tr>{head}</tr></thead>{body}</table>{_small(notes) if notes else ''}</div>",
        f"\n{markdown_table([[heading, *COLUMNS], *text])}\n\n{markdown_cell(notes)}\n",
    )


def badge(verdict: str, words: str) -> str:
    """A verdict in HTML: mark and words."""
    kind, mark = verdict.replace(" ", "-"), MARKS[verdict]
    return f'<span class="verdict {kind}"><span aria-hidden="true">{mark}</span> {html.escape(words)}</span>'


def strip(rows: Rows) -> str:
    """A mark for each claim in HTML: its verdict over all profiles, and a link to its row."""
    marks = []
    for row in rows:
        claim, (verdict, words) = row[0].claim, rule.overall(row)
        says = html.escape(f"{_says(claim)}: {words}")
        marks.append(
            f'<a class="verdict {verdict.replace(" ", "-")}" href="#{claim.chapter}-{claim.id}" '
            f'title="{says}" aria-label="{says}">{MARKS[verdict]}</a>'
        )
    return "".join(marks)


def _notes(results: Sequence[ClaimResult]) -> str:
    """The line below a table: what was run at each scale, and what the dagger means."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for each in results:
        if each.difference:
            seeds.setdefault((each.profile, in_print(each.dataset)), set()).add(len(each.values))
    parts = [
        f"{profile}: {data}, {' to '.join(map(str, sorted({min(n), max(n)})))} seed{'s' * (max(n) > 1)}"
        for (profile, data), n in seeds.items()
    ]
    return "; ".join([*parts, *[LEGEND] * any(each.exploratory for each in results)])


def _group(claim: Claim, results: Sequence[ClaimResult], board: bool) -> str:
    """A claim and its rows in HTML. On a phone a cell may stand without its head: each names its column."""
    about = f"{html.escape(_says(claim))}{'' if claim.ours else ' ' + _small(claim.source)}"
    name, facts = f"{claim.chapter}-{claim.id}", ""
    if board:
        about += f' <a class="permalink" href="#{name}" aria-label="link to this claim">#</a>'
        by = "ours" if claim.ours else "paper"
        facts = f' id="{name}" data-by="{by}" data-attack="{html.escape(claim.attack)}"'
    first = f'<th scope="rowgroup" rowspan="{len(results)}">{about}</th>'
    lines = [
        f'<tr data-scale="{html.escape(each.profile)}" data-verdict="{each.verdict}">'
        f"{'' if place else first}{_cells(each)}</tr>"
        for place, each in enumerate(results)
    ]
    return f"<tbody{facts}>{''.join(lines)}</tbody>"


def _cells(result: ClaimResult) -> str:
    scale, measured, required, verdict, q = map(_escaped, _texts(result))
    if result.interval:
        measured = f"{_escaped(result.measured)} {_small(f'({result.interval})')}"
    note = f' <span title="exploratory">{DAGGER}</span>' if result.exploratory else ""
    verdict = badge(result.verdict, result.words) + note
    shown = zip(COLUMNS, (scale, measured, required, verdict, q), strict=True)
    return "".join(f'<td data-column="{name.partition(",")[0]}">{content}</td>' for name, content in shown)


def _texts(result: ClaimResult) -> list[str]:
    """What the columns say, as text."""
    verdict = f"{MARKS[result.verdict]} {result.words}{f' {DAGGER}' if result.exploratory else ''}"
    interval = f" ({result.interval})" if result.interval else ""
    scale = result.profile if result.difference else "–"
    return [scale, f"{result.measured}{interval}", result.required, verdict, result.q_text]


def _small(text: str) -> str:
    return f'<span class="made">{_escaped(text)}</span>'


def _escaped(text: str) -> str:
    """Text in HTML; a line never ends between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|points?\b)", "\u00a0", html.escape(text))


def _says(claim: Claim) -> str:
    """The claim, with its unit if that is not points."""
    return claim.statement if claim.unit == POINTS else f"{claim.statement} ({claim.unit})"
