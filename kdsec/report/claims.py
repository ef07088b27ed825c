"""What the papers claim, and what recorded runs say of it.

The claims are in ``claims.toml`` beside this file: each compares two recorded quantities. The verdict follows
from the records by one rule and is never written by hand: over seeds, the 95 % interval of the mean
difference lies above what the claim asks for (*supported*), below it (*not supported*), or neither
(*undecided*; and fewer than three seeds decide nothing).
"""

from __future__ import annotations

import functools
import importlib.resources
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from kdsec import chapters
from kdsec.errors import KdsecError, choose
from kdsec.report import records, summary
from kdsec.report.summary import Difference

if TYPE_CHECKING:
    import pandas as pd

NOT_RUN = "not yet run"
MIXED = "mixed"
POINTS = "points"


@dataclass(frozen=True)
class Quantity:
    """One recorded number a seed, named by the columns of its row; see ``kdsec.report.records``.

    Attributes:
        arm, metric: as recorded.
        setting: all of it, as recorded.
        model: needed where several rows differ in nothing else.
    """

    arm: str
    metric: str = "test accuracy"
    setting: str = ""
    model: str = ""

    def values(self, frame: pd.DataFrame, settings: Any) -> pd.Series | None:
        """By seed; None where nothing of the kind was recorded."""
        arm, metric, setting, model = (
            _fill(text, settings) for text in (self.arm, self.metric, self.setting, self.model)
        )
        rows = frame[(frame["arm"] == arm).to_numpy() & (frame["metric"] == metric).to_numpy()]
        rows = rows[rows["setting"] == setting]
        if model:
            rows = rows[rows["model"] == model]
        return None if rows.empty else summary.by_seed(rows, f"{arm}, {metric}")


@dataclass(frozen=True)
class Claim:
    """A statement and its rule: ``first - second`` is larger than ``least``.

    Attributes:
        chapter: its name.
        id: unique in the chapter, and stable.
        says: the statement, in our words.
        made: where: an abstract and its version, or "ours".
        first, second: what is compared; one of the two may be None, and counts as 0.
        least: what the difference must exceed.
        unit: ``points`` of a percentage, or what the quantities are in.
    """

    chapter: str
    id: str
    says: str
    made: str
    first: Quantity | None = None
    second: Quantity | None = None
    least: float = 0.0
    unit: str = POINTS

    def difference(self, frame: pd.DataFrame, settings: Any) -> pd.Series | None:
        """``first - second`` by seed, or None where either was not recorded.

        Seeds pair the two: a seed that has only one of them does not count.
        """
        total: pd.Series | None = None
        for quantity, sign in ((self.first, 1), (self.second, -1)):
            if quantity is None:
                continue
            values = quantity.values(frame, settings)
            if values is None:
                return None
            total = sign * values if total is None else (total + sign * values).dropna()
        return None if total is None or total.empty else total


@dataclass(frozen=True)
class Paper:
    """What a chapter is about: the paper, what of it was read, where our protocol departs from it."""

    paper: str
    read: str
    deviations: tuple[str, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class Judgement:
    """A claim at one profile: its verdict, and the difference it follows from, None where nothing was run."""

    claim: Claim
    profile: str
    dataset: str
    verdict: str
    difference: Difference | None

    def text(self, what: str) -> str:
        """``mean`` or ``interval`` of the difference in the claim's unit; empty where nothing was run."""
        gap = self.difference
        if gap is None:
            return ""
        points = self.claim.unit == POINTS
        numbers = [gap.mean] if what == "mean" else [gap.low, gap.high]
        return " to ".join(f"{100 * each:+.1f}" if points else f"{each:+.2g}" for each in numbers)

    def row(self) -> dict[str, Any]:
        """As a line of a table: claim, difference, 95 % interval, seeds, verdict."""
        return {
            "claim": self.claim.says,
            "difference": self.text("mean"),
            "95 % interval": self.text("interval"),
            "seeds": self.difference.seeds if self.difference else 0,
            "verdict": self.verdict,
        }

    def facts(self) -> dict[str, Any]:
        """All that is known, as plain values; an interval without ends (one seed) as null."""
        gap = self.difference
        ends = [gap.low, gap.high] if gap and math.isfinite(gap.low) else None
        return {
            "chapter": self.claim.chapter,
            "id": self.claim.id,
            "claim": self.claim.says,
            "made": self.claim.made,
            "profile": self.profile,
            "dataset": self.dataset,
            "verdict": self.verdict,
            "difference": gap.mean if gap else None,
            "interval": ends,
            "least": self.claim.least,
            "unit": "share" if self.claim.unit == POINTS else self.claim.unit,
            "seeds": gap.seeds if gap else 0,
        }


@functools.cache
def papers() -> Mapping[str, Paper]:
    """Every chapter that makes claims, in the book's order.

    Raises:
        KdsecError: the file of claims names an unknown chapter or field, a claim twice, or compares nothing.
    """
    text = importlib.resources.files("kdsec.report").joinpath("claims.toml").read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> dict[str, Paper]:
    """As ``papers``, from the text of a file of claims."""
    found = tomllib.loads(text)
    for chapter in found:
        choose("chapter", chapter, chapters.CHAPTERS)
    return {name: _paper(name, found[name]) for name in chapters.CHAPTERS if name in found}


def judge(claim: Claim, frame: pd.DataFrame, profile: str, settings: Any) -> Judgement:
    """The verdict on ``claim`` by the rows in ``frame``, which are of one chapter and one profile."""
    difference = claim.difference(frame, settings)
    dataset = " and ".join(dict.fromkeys(frame["dataset"])) if len(frame) else ""
    students = getattr(settings, "student_dataset", dataset)
    if dataset and students != dataset:  # of transfer learning
        dataset = f"{dataset} to {students}"
    if difference is None:
        return Judgement(claim, profile, dataset, NOT_RUN, None)
    gap = summary.interval(difference)
    return Judgement(claim, profile, dataset, gap.verdict(claim.least), gap)


def judge_all(frame: pd.DataFrame, chapter: str, profile: str, settings: Any = None) -> list[Judgement]:
    """All claims of ``chapter``; settings are those of the profile unless given."""
    known = papers()
    choose("chapter with claims", chapter, known)
    settings = chapters.settings(chapter, profile) if settings is None else settings
    return [judge(claim, frame, profile, settings) for claim in known[chapter].claims]


def scoreboard(profile: str, names: Iterable[str] = (), folder: Any = None) -> list[Judgement]:
    """Every claim at ``profile`` by the records that come with the book, or by those in ``folder``.

    Args:
        profile: a chapter without it counts as not yet run.
        names: of chapters; all if none is named.
        folder: where ``kdsec run --out`` put records.

    Raises:
        KdsecError: unknown profile or chapter, or a damaged record.
    """
    choose("profile", profile, chapters.PROFILES)
    known = papers()
    found = []
    for name in [choose("chapter with claims", each, known) for each in names] or known:
        frame = records.read(folder or records.recorded_folder(), profile, name)
        if profile in chapters.profiles(name):
            found += judge_all(frame, name, profile)
        else:
            found += [Judgement(claim, profile, "", NOT_RUN, None) for claim in known[name].claims]
    return found


def overall(verdicts: Iterable[str]) -> str:
    """One verdict for several profiles: what all that were run agree on, ``mixed`` where they do not."""
    decided = set(verdicts) - {NOT_RUN}
    return NOT_RUN if not decided else decided.pop() if len(decided) == 1 else MIXED


def _fill(text: str, settings: Any) -> str:
    """Put the profile's settings where the text has a name, or a name and a place, in braces."""

    def setting(match: re.Match[str]) -> str:
        value = getattr(settings, match[1])
        return str(value if match[2] is None else value[int(match[2])])

    return re.sub(r"\{(\w+)(?:\[(-?\d+)\])?\}", setting, text)


def _paper(chapter: str, entry: dict[str, Any]) -> Paper:
    claims = tuple(_claim(chapter, dict(each)) for each in entry["claims"])
    ids = [claim.id for claim in claims]
    if twice := {each for each in ids if ids.count(each) > 1}:
        raise KdsecError(f"claims.toml, {chapter}: id {min(twice)!r} is given twice; ids are for links")
    return Paper(entry["paper"], entry["read"], tuple(entry["deviations"]), claims)


def _claim(chapter: str, entry: dict[str, Any]) -> Claim:
    where = f"claims.toml, {chapter}, {entry.get('id', 'a claim without id')}"
    for key in entry:
        choose(f"field of {where}", key, [each.name for each in fields(Claim)][1:])
    for side in ("first", "second"):
        if side in entry:
            for key in entry[side]:
                choose(f"field of {where}, {side}", key, [each.name for each in fields(Quantity)])
            entry[side] = Quantity(**entry[side])
    if missing := {"id", "says", "made"} - set(entry):
        raise KdsecError(f"{where} lacks {', '.join(sorted(missing))}")
    if "first" not in entry and "second" not in entry:
        raise KdsecError(f"{where} compares nothing; name first, second or both")
    return Claim(chapter, **entry)
