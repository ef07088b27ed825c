"""Numbers in prose: a page names what it wants from the records or the code, and the build puts it there.

A mark is a comment in Markdown. What follows it up to ``<!-- end -->``, if that is there, is replaced, so
that a page which nobody builds (the README) can be brought up to date in place. The marks:

==============================================  =====================================================
``<!-- claims CHAPTER: ID, ID -->``             a table of verdicts, a row a claim, a column a profile
``<!-- times CHAPTER: METRIC, ARM, ARM -->``    how many times the second arm's value the first one's is
``<!-- minutes CHAPTER -->``                    how long a seed took where it was recorded
``<!-- defaults MODULE: NAME, FIELD, ... -->``  the defaults of a class or a function; all, or those named
==============================================  =====================================================
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Sequence
from typing import Any

from kdsec.chapters import CHAPTERS, PROFILES
from kdsec.errors import KdsecError, choose
from kdsec.report import records, tables
from kdsec.report.claims import Judgement
from kdsec.report.scoreboard import Boards

MARK = re.compile(r"<!-- (\w+) ([^:>]+?)(?:: ([^>]*?))? -->(?:(?:(?!<!--).)*<!-- end -->)?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the numbers come from.

    Attributes:
        boards: every claim at every profile, from ``scoreboard.read``.
        folder: the records themselves, as ``kdsec run --out`` wrote them.
        plain: tables in Markdown, for a page without the book's styles; else in HTML.
    """

    boards: Boards
    folder: Any
    plain: bool = False

    def judged(self, chapter: str, name: str) -> list[Judgement]:
        """The claim ``name`` of ``chapter`` at every profile."""
        choose("chapter", chapter, CHAPTERS)
        by_id = [
            {each.claim.id: each for each in board if each.claim.chapter == chapter}
            for board in self.boards.values()
        ]
        return [board[choose(f"claim of chapter {chapter}", name, board)] for board in by_id]

    # Every mark is a method of its name that takes what stands before the colon, and the list behind it.

    def claims(self, chapter: str, names: Sequence[str]) -> str:
        """A table, a row a claim; a profile at which none of these claims was run has no column."""
        rows = [self.judged(chapter, name) for name in names]
        table = tables.side_by_side(rows, f"claim, as chapter {CHAPTERS[chapter].number} tests it")
        if table is None:
            return "Nothing is recorded yet."
        return table.markdown if self.plain else table.html

    def times(self, chapter: str, names: Sequence[str]) -> str:
        """``19 times on digits``: the ratio of the means over seeds, at every profile where both are."""
        metric, *arms = names
        parts: list[str] = []
        for profile in PROFILES:
            rows = records.read(self.folder, profile, choose("chapter", chapter, CHAPTERS))
            rows = rows[rows["metric"] == metric]
            means = [rows.loc[rows["arm"] == arm, "value"].mean() for arm in arms]
            if all(mean == mean for mean in means):  # neither is missing
                where = tables.in_print(rows["dataset"].iloc[0])
                parts.append(f"{means[0] / means[1]:.2g} times on {where}")
        return _listed(parts) or "nothing recorded yet"

    def minutes(self, chapter: str, names: Sequence[str] = ()) -> str:
        """``0.8 minutes a seed at quick and 23.0 at small``: the longest of the seeds."""
        parts: list[str] = []
        for profile in PROFILES:
            runs = records.runs(self.folder, profile, choose("chapter", chapter, CHAPTERS))
            if runs:
                longest = max(minutes(run) for run in runs)
                unit = "" if parts else " minutes a seed"
                parts.append(f"{max(longest, 0.1):.1f}{unit} at *{profile}*")
        return _listed(parts) or "nothing recorded yet"

    def defaults(self, module: str, names: Sequence[str]) -> str:
        """``keep=2``, ``temperature=6``: of a class or function in ``kdsec``; all, or the fields named."""
        name, *wanted = names
        found = getattr(importlib.import_module(f"kdsec.{module}"), name, None)
        if not callable(found):
            raise KdsecError(f"mark 'defaults': kdsec.{module} has no class or function {name!r}")
        known = {
            field.name: field.default
            for field in inspect.signature(found).parameters.values()
            if field.default is not inspect.Parameter.empty
        }
        for field in wanted:
            choose(f"default of {name}", field, known)
        return ", ".join(f"`{field}={_plain(known[field])}`" for field in wanted or known)


def fill(text: str, source: Source, *, keep: bool = False) -> str:
    """``text`` with every mark replaced by what it asks for.

    Args:
        text: a page in Markdown; comments that are no marks stay.
        source: of the numbers.
        keep: leave mark and end in place, so that the page can be filled again.

    Raises:
        KdsecError: a mark names a chapter, claim or field that does not exist.
    """
    known = ("claims", "times", "minutes", "defaults")

    def one(match: re.Match[str]) -> str:
        kind, first, rest = match[1], match[2].strip(), match[3] or ""
        if kind not in known:
            return match[0]
        made = str(getattr(source, kind)(first, [part.strip() for part in rest.split(",") if part.strip()]))
        if not keep:
            return made
        mark = match[0][: match[0].index("-->") + 3]
        return f"{mark}{made}<!-- end -->"

    return MARK.sub(one, text)


def minutes(run: dict[str, Any]) -> float:
    """How long a recorded run took; what a cache saved is counted, since it was not free."""
    return float(max(run["seconds"], run.get("training", {}).get("seconds", 0))) / 60


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _plain(value: Any) -> str:
    """As one would type it: numbers without a tail, and budgets that have one as 255ths."""
    if isinstance(value, float):
        level = value * 255
        if value != round(value, 3) and abs(level - round(level)) < 1e-9:
            return f"{round(level)}/255"
        return f"{value:g}"
    return str(value) if isinstance(value, int | bool | str) or value is None else type(value).__name__
