"""Headline findings in prose: which sentence a page shows follows from the recorded verdict.

``papers/<chapter>.toml`` has an array ``findings``, the chapter's headline first: the id of a claim, and what
to say at each verdict: a headline of one sentence, and the detail after it. Placeholders in the text:

================  =====================================================================================
``{data}``        "on CIFAR-10", "on 8x8 digits"; ``{Data}`` begins a sentence
``{size}``        the difference without sign, and its 95 % interval: "2.3 points (1.4 to 3.1)"
``{difference}``  the same with signs: "-2.3 points (-3.1 to -1.4)"
``{first}``       mean of the claim's first quantity, "71.2 %"; ``{second}`` likewise
``{seeds}``       how many there were
================  =====================================================================================

A quantity that is judged alone has its value as ``{size}`` and ``{difference}``.
"""

from __future__ import annotations

import dataclasses
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdsec.config import CHAPTERS
from kdsec.errors import KdsecError, check_choice
from kdsec.report import claims, records, tables
from kdsec.report.claims import POINTS
from kdsec.report.statistics import DECISIVE
from kdsec.report.text import two_digits
from kdsec.report.verdicts import DECIDED, NOT_RUN, UNDECIDED, ClaimResult

DATA = {"digits": "8x8 digits"}  # where prose says more than the printed name
SENTENCE = re.compile(r"(?<=[.!?]) ")


@dataclass(frozen=True)
class Finding:
    """What is said of a claim, and what that rests on.

    Attributes:
        result: the claim at the profile that the sentence is about.
        verdict: the one that is spoken of; *undecided* where the result may not be quoted.
        headline, detail: the sentence of that verdict, filled.
    """

    result: ClaimResult
    verdict: str
    headline: str
    detail: str

    def text(self, row: str = "", plain: bool = False) -> str:
        """In Markdown: headline in bold, detail, and the verdict as a link to the claim's row.

        Args:
            row: address of the row, with ``{chapter}`` and ``{claim}`` for the names; no link if not given.
            plain: the link in Markdown, for a page that is not built; else in HTML.
        """
        about = self.result.claim
        note = f"{tables.MARKS[self.verdict]} {self.verdict}"
        note += ", exploratory" if self.result.exploratory and self.verdict in DECIDED else ""
        address = row.format(chapter=about.chapter, claim=about.id)
        if row:
            note = f"[{note}]({address})" if plain else f'<a href="{html.escape(address)}">{note}</a>'
        return " ".join(filter(None, [f"**{self.headline}**", self.detail, f"({note})"]))


def finding(
    boards: Mapping[str, Sequence[ClaimResult]], chapter: str, name: str = "", most_q: float = 1.0
) -> Finding:
    """The finding of ``chapter`` on claim ``name`` (its headline claim if not given).

    Args:
        boards: every claim at every profile, from ``scoreboard.read``.
        chapter: its name.
        name: a claim's id.
        most_q: the largest q of a verdict that is told; one with a larger q is told as undecided.

    Raises:
        KdsecError: no such chapter, or it has no finding on this claim.
    """
    known = claims.papers()[check_choice("chapter", chapter, CHAPTERS)].findings
    if not known:
        raise KdsecError(f"papers/{chapter}.toml has no findings; add an entry [[findings]]")
    name = check_choice(f"finding of chapter {chapter}", name or next(iter(known)), known)
    every = [each for board in boards.values() for each in board]
    result = best([each for each in every if (each.claim.chapter, each.claim.id) == (chapter, name)])
    verdict = result.verdict
    if verdict in DECIDED and most_q < 1 and not (result.q is not None and result.q <= most_q):
        verdict = UNDECIDED
    where = f"papers/{chapter}.toml, finding on {name}, {verdict}"
    headline, *rest = SENTENCE.split(_filled(known[name][verdict], result, where), maxsplit=1)
    return Finding(result, verdict, headline, *rest or [""])


def best(results: Sequence[ClaimResult]) -> ClaimResult:
    """The result at the first of the chapter's preferred profiles with enough seeds to decide, else any."""
    known = {each.profile: each for each in results}
    preferred = claims.papers()[results[0].claim.chapter].preferred
    ordered = [known[profile] for profile in preferred if profile in known]
    for enough in (DECISIVE, 1):
        for each in ordered:
            if each.verdict != NOT_RUN and len(each.values) >= enough:
                return each
    return dataclasses.replace(ordered[0], verdict=NOT_RUN)


def _filled(text: str, result: ClaimResult, where: str) -> str:
    """``text`` with its placeholders filled from ``result``.

    Raises:
        KdsecError: a placeholder that does not exist, or that has no value at this verdict.
    """
    names = records.in_print(result.dataset)
    data = f"from {names}" if " to " in names else f"on {DATA.get(result.dataset, names)}" if names else ""
    values: dict[str, Any] = {"data": data, "Data": data[:1].upper() + data[1:], "seeds": len(result.values)}
    if result.difference is not None:
        values |= {"size": _size(result), "difference": _measured(result)}
        values |= {side: _share(mean, result) for side, mean in result.means}

    def one(match: re.Match[str]) -> str:
        if not values.get(match[1]):
            raise KdsecError(f"{where}: {{{match[1]}}} has no value there; use one of: {', '.join(values)}")
        return str(values[match[1]])

    return re.sub(r"\{(\w+)\}", one, text)


def _measured(result: ClaimResult) -> str:
    """``-2.3 points (-3.1 to -1.4)``; a share alone has its % already."""
    alone = result.claim.first is None or result.claim.second is None
    unit = "" if alone and result.claim.unit == POINTS else f" {result.claim.unit}"
    return f"{result.measured}{unit}" + (f" ({result.interval})" if result.interval else "")


def _size(result: ClaimResult) -> str:
    """The measured difference from the side on which it is positive."""
    gap = result.difference
    if gap is not None and gap.mean < 0 and result.claim.first is not None:
        flipped = dataclasses.replace(gap, mean=-gap.mean)
        result = dataclasses.replace(result, difference=flipped)
    low, _, high = _measured(result).partition(" to ")
    return low.replace("+", "") + " to " * bool(high) + high.replace("+", "")


def _share(mean: float, result: ClaimResult) -> str:
    return f"{100 * mean:.1f} %" if result.claim.unit == POINTS else f"{two_digits(mean)} {result.claim.unit}"
