"""Numbers in prose: a page marks what it wants from the records or the code, and the build fills it in.

A mark is a comment in Markdown. Text from it up to ``<!-- end -->``, if there is one, is replaced, so a page
that is not built (the README, a notebook) can be updated in place. Where a kept mark begins a line, the text
gets lines of its own, because Markdown takes a line that begins with a comment for HTML. The marks:

==============================================  =====================================================
``<!-- finding CHAPTER: ID -->``                what was found, by verdict, with its number and a link to the
                                                row; without ID the chapter's headline finding
``<!-- answer CHAPTER: ID -->``                 only the headline of that finding
``<!-- claims CHAPTER: ID, ID -->``             a table of verdicts, a row for each claim and profile
``<!-- records CHAPTER: ID, ID -->``            a line a claim: verdict, number and data set
``<!-- times CHAPTER: METRIC, ARM, ARM -->``    the first arm's value as a multiple of the second's
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

from kdsec.config import CHAPTERS, PROFILES
from kdsec.errors import KdsecError, check_choice
from kdsec.report import findings, records, tables
from kdsec.report.scoreboard import Boards
from kdsec.report.text import markdown_cell, two_digits
from kdsec.report.verdicts import DECIDED, ClaimResult

ROW = "scoreboard.html#{chapter}-{claim}"  # from a page beside it
FRONT = 0.05  # the largest q of what the landing page and the README quote
KINDS = ("finding", "answer", "records", "claims", "times", "minutes", "defaults")
MARK = re.compile(r"<!-- (\w+) ([^:>]+?)(?:: ([^>]*?))? -->(?:(?:(?!<!--).)*<!-- end -->)?", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Source:
    """Source of the numbers.

    Attributes:
        boards: every claim at every profile, from ``scoreboard.read``.
        folder: the records, as ``kdsec run --out`` wrote them.
        plain: tables in Markdown, for a page without the book's styles; else in HTML.
        most_q: the largest q of a verdict that is quoted; all are if it is not given.
        row: address of a claim's row on the page of all claims; no links if empty.
    """

    boards: Boards
    folder: Any
    plain: bool = False
    most_q: float = 1.0
    row: str = ROW

    def judged(self, chapter: str, name: str) -> list[ClaimResult]:
        """The claim ``name`` of ``chapter`` at every profile."""
        check_choice("chapter", chapter, CHAPTERS)
        by_id = [
            {each.claim.id: each for each in board if each.claim.chapter == chapter}
            for board in self.boards.values()
        ]
        return [board[check_choice(f"claim of chapter {chapter}", name, board)] for board in by_id]

    # Each mark is a method of its name; arguments: the text before the colon and the list after it.

    def finding(self, chapter: str, names: Sequence[str]) -> str:
        """Headline, detail and verdict of a finding."""
        return findings.finding(self.boards, chapter, ", ".join(names), self.most_q).text(
            self.row, self.plain
        )

    def answer(self, chapter: str, names: Sequence[str]) -> str:
        """The headline of a finding."""
        return findings.finding(self.boards, chapter, ", ".join(names), self.most_q).headline

    def claims(self, chapter: str, names: Sequence[str]) -> str:
        """A table with one row per claim; a profile with records of none of them gets no column."""
        rows = [[self._quoted(each) for each in self.judged(chapter, name)] for name in names]
        kept = [row for row in rows if any(each.difference for each in row)] if self.most_q < 1 else rows
        if not kept:
            return "Nothing is decided yet."
        table = tables.of_claims(kept, f"claim, as chapter {CHAPTERS[chapter].number} tests it")
        return table.markdown if self.plain else table.html

    def records(self, chapter: str, names: Sequence[str]) -> str:
        """A list with one line per claim: what it says, the verdict, what was measured, and on which data."""
        lines = []
        for name in names:
            found = findings.best(self.judged(chapter, name))
            verdict = f"{tables.MARKS[found.verdict]} {found.words}"
            if self.row:
                address = self.row.format(chapter=chapter, claim=name)
                verdict = f'<a href="{address}">{verdict}</a>'
            measured = f"{found.measured} ({found.interval})" if found.interval else found.measured
            where = [measured, tables.in_print(found.dataset)] if found.difference else []
            lines.append(f"- {markdown_cell(found.claim.statement)}: {', '.join([verdict, *where])}")
        return "\n  ".join(lines)

    def _quoted(self, found: ClaimResult) -> ClaimResult:
        """The result; where it is undecided or its q too large to be quoted, without verdict and numbers."""
        decided = found.verdict in DECIDED and found.q is not None and found.q <= self.most_q
        if self.most_q >= 1 or decided or found.difference is None:
            return found
        return dataclasses.replace(found, verdict=tables.NOT_QUOTED, difference=None)

    def times(self, chapter: str, names: Sequence[str]) -> str:
        """``19 times on digits``: the ratio of the means over seeds, at every profile that has both."""
        metric, *arms = names
        parts: list[str] = []
        for profile in PROFILES:
            rows = records.read(self.folder, profile, check_choice("chapter", chapter, CHAPTERS))
            rows = rows[rows["metric"] == metric]
            means = [rows.loc[rows["arm"] == arm, "value"].mean() for arm in arms]
            if all(mean == mean and mean > 0 for mean in means):  # nan: nothing recorded
                where = markdown_cell(tables.in_print(rows["dataset"].iloc[0]))
                parts.append(f"{two_digits(means[0] / means[1])} times on {where}")
        return _listed(parts) or "nothing recorded yet"

    def minutes(self, chapter: str, names: Sequence[str] = ()) -> str:
        """``0.8 minutes a seed at quick and 23.0 at small``: the slowest seed."""
        parts: list[str] = []
        for profile in PROFILES:
            runs = records.runs(self.folder, profile, check_choice("chapter", chapter, CHAPTERS))
            if runs:
                longest = max(minutes(run) for run in runs)
                unit = "" if parts else " minutes a seed"
                parts.append(f"{max(longest, 0.1):.1f}{unit} at *{profile}*")
        return _listed(parts) or "nothing recorded yet"

    def defaults(self, module: str, names: Sequence[str]) -> str:
        """``keep=2``, ``temperature=6``: defaults of a class or function in ``kdsec``, all or those named."""
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
            check_choice(f"default of {name}", field, known)
        return ", ".join(f"`{field}={_plain(known[field])}`" for field in wanted or known)


def asks(text: str) -> bool:
    """Whether ``text`` has a mark."""
    return any(match[1] in KINDS for match in MARK.finditer(text))


def fill(text: str, source: Source, *, keep: bool = False) -> str:
    """``text`` with every mark filled in.

    Args:
        text: a page in Markdown; other comments stay.
        source: of the numbers.
        keep: keep mark and end, so that the page can be filled again.

    Raises:
        KdsecError: a mark names a chapter, claim or field that does not exist.
    """

    def one(match: re.Match[str]) -> str:
        kind, first, rest = match[1], match[2].strip(), match[3] or ""
        if kind not in KINDS:
            return match[0]
        made = str(getattr(source, kind)(first, [part.strip() for part in rest.split(",") if part.strip()]))
        if not keep:
            return made
        mark = match[0][: match[0].index("-->") + 3]
        before = text[: match.start()].rpartition("\n")[2]
        if "\n" not in made and re.fullmatch(r"[\s>*+-]*(\d+\.)?\s*", before):  # a line of HTML to Markdown
            indent = "\n" + re.sub(r"[^\s>]", " ", before)
            made = f"{indent}{made}{indent}"
        return f"{mark}{made}<!-- end -->"

    return MARK.sub(one, text)


def minutes(run: dict[str, Any]) -> float:
    """Minutes that a recorded run took, with the training that its cache saved.

    Raises:
        KdsecError: its provenance does not say.
    """
    try:
        return float(max(run["seconds"], run.get("training", {}).get("seconds", 0))) / 60
    except (KeyError, TypeError, ValueError, AttributeError):
        which = " / ".join(str(run.get(key)) for key in ("profile", "chapter", "seed"))
        raise KdsecError(f"the json of record {which} does not say how many seconds it took") from None


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _plain(value: Any) -> str:
    """As one types it: short numbers, and pixel budgets as fractions of 255."""
    if isinstance(value, float):
        level = value * 255
        if value != round(value, 3) and abs(level - round(level)) < 1e-9:
            return f"{round(level)}/255"
        return f"{value:g}"
    return str(value) if isinstance(value, int | bool | str) or value is None else type(value).__name__
