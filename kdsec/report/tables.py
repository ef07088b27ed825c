"""Claims and their verdicts as tables: a row a claim, a column a profile."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdsec.errors import KdsecError
from kdsec.report import claims
from kdsec.report.claims import MIXED, NOT_RUN, Judgement

if TYPE_CHECKING:
    import pandas as pd

MARKS = {"supported": "✓", "not supported": "✗", "undecided": "?", MIXED: "±", NOT_RUN: "·"}
DATASETS = {"digits": "digits", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "gtsrb": "GTSRB"}
DATASETS |= {"fashion-mnist": "Fashion-MNIST"}


@dataclass(frozen=True)
class Table:
    """A table in HTML for a notebook's page, and in Markdown for a terminal or a text."""

    html: str
    markdown: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.markdown


def verdicts(chapter: str, recordings: Mapping[str, tuple[Any, pd.DataFrame]]) -> Table:
    """For a chapter's page: every claim of it at every profile with records.

    Args:
        chapter: its name.
        recordings: settings and rows by profile, from ``run.recordings()``.

    Raises:
        KdsecError: unknown chapter, or nothing recorded of its claims.
    """
    boards = [
        claims.judge_all(rows, chapter, profile, settings) for profile, (settings, rows) in recordings.items()
    ]
    table = side_by_side(list(zip(*boards, strict=True)), "claim, and where it is made", words=True)
    if table is None:
        raise KdsecError(f"no claim of chapter {chapter} is decided by these records; have all cells run?")
    return table


def side_by_side(rows: Sequence[Sequence[Judgement]], heading: str, *, words: bool = False) -> Table | None:
    """A table of ``rows``, each one claim at every profile; None where nothing is recorded of any.

    Args:
        rows: of the table; a profile at which none of the claims was run has no column.
        heading: of the first column.
        words: verdicts in words, for readers who have not met the marks yet.
    """
    columns = recorded(rows)
    if not columns:
        return None
    heads = [_scale(rows, place) for place in columns]
    chosen = [[row[place] for place in columns] for row in rows]
    return Table(_html(chosen, heading, heads, words), _markdown(chosen, heading, heads, words))


def recorded(rows: Sequence[Sequence[Judgement]]) -> list[int]:
    """The profiles, by their place in a row, at which any of the claims was run."""
    return [place for place in range(len(rows[0])) if any(row[place].difference for row in rows)]


def badge(verdict: str, *, word: bool = True) -> str:
    """A verdict in HTML: mark and word, or the mark alone, which is then named for who cannot see it."""
    kind, mark = verdict.replace(" ", "-"), MARKS[verdict]
    if word:
        return f'<span class="verdict {kind}"><span aria-hidden="true">{mark}</span> {verdict}</span>'
    return f'<span class="verdict {kind}" role="img" aria-label="{verdict}" title="{verdict}">{mark}</span>'


def cell(judgement: Judgement, content: str) -> str:
    """A claim's cell in HTML.

    It carries along its profile, since on a phone a row's cells stand below its claim and far from the head,
    and the number that readers sort it by.
    """
    gap = judgement.difference
    value = f' data-value="{gap.mean:.6g}"' if gap else ""
    return f'<td data-profile="{judgement.profile}"{value}>{content}</td>'


def in_print(datasets: str) -> str:
    """Names of data sets, in any text, as one writes them: ``cifar100 to gtsrb`` is CIFAR-100 to GTSRB."""
    return re.sub(r"[\w-]+", lambda name: DATASETS.get(name[0], name[0]), datasets)


def _scale(rows: Sequence[Sequence[Judgement]], place: int) -> tuple[str, str]:
    """What stands above a column: the profile; data set and seeds."""
    run = next(row[place] for row in rows if row[place].difference)
    return run.profile, f"{in_print(run.dataset)}, {run.difference.seeds if run.difference else 0} seeds"


def _says(claim: claims.Claim) -> str:
    """The claim, with the unit of its numbers where that is not points of a percentage."""
    return claim.says if claim.unit == claims.POINTS else f"{claim.says} ({claim.unit})"


def _markdown(
    rows: Sequence[Sequence[Judgement]], heading: str, heads: Sequence[tuple[str, str]], words: bool
) -> str:
    def shown(judgement: Judgement) -> str:
        mark = f"{MARKS[judgement.verdict]} {judgement.verdict}" if words else MARKS[judgement.verdict]
        return " ".join(
            [mark, judgement.text("mean"), f"({judgement.text('interval')})"]
            if judgement.difference
            else [mark]
        )

    lines = [[heading, *map(", ".join, heads)], ["---"] * (1 + len(heads))]
    lines += [[_says(row[0].claim), *map(shown, row)] for row in rows]
    return "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _html(
    rows: Sequence[Sequence[Judgement]], heading: str, heads: Sequence[tuple[str, str]], words: bool
) -> str:
    columns = [heading, *(f'{profile}<span class="made">{where}</span>' for profile, where in heads)]
    head = "".join(f'<th scope="col">{each}</th>' for each in columns)
    body = "".join(_row(row, words) for row in rows)
    table = f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="quoted">{table}</div>'


def _row(row: Sequence[Judgement], words: bool) -> str:
    claim = row[0].claim
    made = "" if claim.made == "ours" else f'<span class="made">{html.escape(claim.made)}</span>'
    cells = "".join(cell(each, _cell(each, words)) for each in row)
    return f"<tr><td>{html.escape(_says(claim))} {made}</td>{cells}</tr>"


def _cell(judgement: Judgement, words: bool) -> str:
    mark = badge(judgement.verdict, word=words)
    if judgement.difference is None:
        return mark
    return f'{mark} {judgement.text("mean")} <span class="made">{judgement.text("interval")}</span>'
