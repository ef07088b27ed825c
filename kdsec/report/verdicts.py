"""Verdicts on claims by recorded rows.

A claim is judged over seeds by the ordered rule of ``statistics.Difference.verdict``; before it, a failed
manipulation check makes the claim *not realised*. Intervals borrow strength from all claims of a profile that
are in points. A claim is *exploratory* at a profile if it was not committed, as it reads now, before the rows
it is judged by, or if those rows are not of the profile's own seeds and settings; else it is confirmatory.
Every record holds the hashes of the claims that were committed when its run began.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdsec import config
from kdsec.errors import check_choice
from kdsec.report import records, statistics
from kdsec.report.claims import POINTS, Check, Claim, papers
from kdsec.report.statistics import (
    CONTRADICTED,
    DECISIVE,
    NO_DIFFERENCE,
    SUPPORTED,
    UNDECIDED,
    Difference,
    Prior,
)
from kdsec.report.text import two_digits

if TYPE_CHECKING:
    import pandas as pd

NOT_RUN, NOT_REALISED, CONFLICT = "not yet run", "not realised", "conflict"
OLD = "recorded before claims were"
SHORT = {SUPPORTED: "yes", CONTRADICTED: "no"}
DECIDED = (SUPPORTED, CONTRADICTED, NO_DIFFERENCE)


@dataclass(frozen=True)
class ClaimResult:
    """Verdict on a claim at one profile, and what it rests on.

    Attributes:
        claim, profile: what was judged.
        dataset: as recorded.
        verdict: one of ``DECIDED``, or *undecided*, *not realised*, *not yet run*.
        difference: with the moderated interval; None where nothing was run.
        plain: the same with Student's interval.
        values: the difference at each seed.
        means: over these seeds, of the claim's first and second quantity, by these names.
        delta: the largest difference that does not matter here.
        checks: of the defence: the check, the measured mean (None if not recorded), whether it passed.
        exploratory: why the claim is not confirmatory here; empty if it is.
        q: by Benjamini and Hochberg over the profile's claims of papers, or over our questions.
    """

    claim: Claim
    profile: str
    dataset: str = ""
    verdict: str = NOT_RUN
    difference: Difference | None = None
    plain: Difference | None = None
    values: tuple[float, ...] = ()
    means: tuple[tuple[str, float], ...] = ()
    delta: float = 0.0
    checks: tuple[tuple[Check, float | None, bool], ...] = ()
    exploratory: str = ""
    q: float | None = None

    @property
    def small(self) -> bool:
        """Supported, and smaller than what matters."""
        gap = self.difference
        return self.verdict == SUPPORTED and gap is not None and gap.small(self.claim.threshold, self.delta)

    @property
    def words(self) -> str:
        """The verdict, with its note."""
        return f"{self.verdict}, small" if self.small else self.verdict

    @property
    def measured(self) -> str:
        """Mean in the claim's unit; of one quantity alone its own value, of two their signed difference."""
        return "" if self.difference is None else self._shown(self.difference.mean)

    @property
    def interval(self) -> str:
        """``low to high``; empty where nothing was run, or a single seed. A share's ends at 0 and 100 %."""
        gap = self.difference
        if gap is None or not math.isfinite(gap.low):
            return ""
        ends = [gap.low, gap.high] if self.claim.first else [gap.high, gap.low]
        if self.claim.share:
            least = 0.0 if self.claim.first else -1.0  # of "0 minus a share"
            ends = [min(max(each, least), least + 1.0) for each in ends]
        return " to ".join(self._shown(each) for each in ends)

    @property
    def required(self) -> str:
        """What the mean must exceed (or stay under, for a quantity whose smallness is claimed)."""
        least = self.claim.threshold
        if self.claim.first is None:
            return f"under {self._shown(least, 'g')}"
        return f"over {self._shown(least, 'g') if least or not self.claim.signed else 0}"

    @property
    def q_text(self) -> str:
        return "" if self.q is None else "< 0.001" if self.q < 0.001 else f"{self.q:.3f}"

    def _shown(self, value: float, form: str = "") -> str:
        points, share = self.claim.unit == POINTS, self.claim.share
        value = (100 if points else 1) * (0.0 - value if self.claim.first is None else value)
        sign = "+" if self.claim.signed else ""
        form = form or (".1f" if points else "")
        text = format(value, sign + form) if form else two_digits(value, sign)
        return f"{text} %" if share else text

    def row(self) -> dict[str, Any]:
        """One row of a table for a terminal."""
        return {
            "claim": self.claim.statement,
            "measured": self.measured,
            "95 % interval": self.interval,
            "required": self.required,
            "verdict": self.words,
            "q": self.q_text,
            "seeds": len(self.values),
            "note": "exploratory" if self.exploratory else "",
        }

    def facts(self) -> dict[str, Any]:
        """Everything known, as plain values for JSON; the interval of a single seed is null."""
        gap, plain, least = self.difference, self.plain, self.claim.threshold

        def ends(of: Difference | None) -> list[float] | None:
            return [of.low, of.high] if of and math.isfinite(of.low) else None

        return {
            "chapter": self.claim.chapter,
            "id": self.claim.id,
            "claim": self.claim.statement,
            "source": self.claim.source,
            "profile": self.profile,
            "dataset": self.dataset,
            "verdict": self.verdict,
            "small": self.small,
            "exploratory": self.exploratory or None,
            "difference": gap.mean if gap else None,
            "interval": ends(gap),
            "p": float(gap.p(least)) if gap else None,
            "plain_interval": ends(plain),
            "plain_p": float(plain.p(least)) if plain else None,
            "q": self.q,
            "threshold": least,
            "delta": self.delta,
            "unit": "share" if self.claim.unit == POINTS else self.claim.unit,
            "seeds": len(self.values),
            "checks": [
                {"name": check.name, "measured": value, "required": check.required, "passed": passed}
                for check, value, passed in self.checks
            ],
        }


@dataclass(frozen=True)
class Recorded:
    """Rows of one chapter at one profile, and where they come from; ``runs`` is None for a run in hand.

    ``datasets``: by the ``data=NAME`` of a row's setting; "" are rows without, of the profile's own data set.
    """

    profile: str
    settings: Any
    rows: records.Labelled
    datasets: Mapping[str, str]
    runs: Sequence[dict[str, Any]] | None

    @classmethod
    def of(
        cls, frame: pd.DataFrame, profile: str, settings: Any, runs: Sequence[dict[str, Any]] | None = None
    ) -> Recorded:
        students = getattr(settings, "student_dataset", None)
        found: dict[str, dict[str, None]] = {}
        for setting, name in dict.fromkeys(zip(frame["setting"], frame["dataset"], strict=True)):
            found.setdefault(str(records.typed(setting).get("data", "")), {})[name] = None
        datasets = {data: " and ".join(names) for data, names in found.items()}
        if "" in found and students and students not in found[""]:  # transfer learning
            datasets[""] += f" to {students}"
        return cls(profile, settings, records.labelled(frame), datasets, runs)

    @property
    def dataset(self) -> str:
        """All of them."""
        return " and ".join(dict.fromkeys(self.datasets.values()))

    @property
    def old(self) -> bool:
        """Made by a version that did not write claims into its records."""
        return any("claims" not in run for run in self.runs or ())


def judge(claim: Claim, recorded: Recorded, prior: Prior = statistics.PLAIN) -> ClaimResult:
    """Verdict on ``claim``.

    Raises:
        KdsecError: it names what its chapter does not write, by a quick run that is not old.
    """
    rows, settings = recorded.rows, recorded.settings
    if rows and recorded.profile == "quick" and recorded.runs and not recorded.old:
        claim.check(rows, settings)
    by_seed = claim.values(rows, settings)
    values = [(check, check.value(rows, settings)) for check in claim.realised]
    if recorded.old:  # from before there were checks
        values = [(check, value) for check, value in values if value is not None]
    checks = tuple((check, value, value is not None and check.passed(value)) for check, value in values)
    dataset = _dataset(claim, recorded.datasets)
    delta = claim.largest_small(dataset.rpartition(" to ")[2])
    result = ClaimResult(claim, recorded.profile, dataset, delta=delta, checks=checks)
    looked = [check for check, value in values if value is not None]
    if not by_seed or (len(looked) < len(values) and not recorded.old):
        return result
    plain = statistics.interval(by_seed.values())
    gap = statistics.interval(by_seed.values(), prior) if claim.unit == POINTS else plain
    failed = [check for check, _, passed in checks if check in looked and not passed]
    return dataclasses.replace(
        result,
        verdict=NOT_REALISED if failed else gap.verdict(claim.threshold, delta),
        difference=gap,
        plain=plain,
        values=tuple(by_seed.values()),
        means=tuple(
            (name, sum(side.values(rows, settings)[seed] for seed in by_seed) / len(by_seed))
            for name, side in (("first", claim.first), ("second", claim.second))
            if side
        ),
        exploratory=_exploratory(claim, recorded, by_seed),
    )


def _dataset(claim: Claim, datasets: Mapping[str, str]) -> str:
    """The data sets that a claim is about, as recorded; empty where nothing was."""
    named = [str(records.typed(side.setting).get("data", "")) for side in (claim.first, claim.second) if side]
    found = [datasets[each] for each in named if each in datasets] or [datasets.get("", "")]
    return " and ".join(dict.fromkeys(found))


def _exploratory(claim: Claim, recorded: Recorded, seeds: Iterable[int]) -> str:
    """Why a claim is not confirmatory by these rows; empty if it is."""
    judged = set(seeds)
    runs = [run for run in recorded.runs or () if run["seed"] in judged]
    if recorded.old:
        return OLD
    if judged - set(config.seeds(claim.chapter, recorded.profile)):
        return "other seeds than the profile's"
    if any(run.get("overrides") for run in runs):
        return "other settings than the profile's"
    known = [run["claims"] if isinstance(run.get("claims"), dict) else {} for run in runs]
    if any(each.get(claim.id) != claim.rule for each in known):
        return "the claim is newer than its rows"
    return ""


def judge_all(frame: pd.DataFrame, chapter: str, profile: str, settings: Any = None) -> list[ClaimResult]:
    """Verdicts on the claims of ``chapter`` by ``frame``; those of ``scoreboard`` where it has these rows."""
    check_choice("chapter with claims", chapter, papers())
    settings = config.settings(chapter, profile) if settings is None else settings
    return scoreboard(profile, [chapter], frames={chapter: Recorded.of(frame, profile, settings)})


def scoreboard(
    profile: str, names: Iterable[str] = (), folder: Any = None, *, frames: dict[str, Recorded] | None = None
) -> list[ClaimResult]:
    """Verdicts on the claims of all chapters at ``profile``.

    Args:
        profile: a chapter that does not have it counts as not yet run.
        names: of chapters; all if none is named.
        folder: of the records, as ``kdsec run --out`` wrote them; those of the book if not given.
        frames: rows of chapters, instead of those in the folder.

    Raises:
        KdsecError: unknown profile or chapter, a damaged record, a claim on what no chapter writes.
    """
    check_choice("profile", profile, config.PROFILES)
    known = papers()
    wanted = [check_choice("chapter with claims", each, known) for each in names] or list(known)
    chapters = {}
    for name in known:
        if profile not in config.profiles(name):
            continue
        frame, runs = records.load(folder or records.recorded_folder(), profile, name)
        given = (frames or {}).get(name)
        chapters[name] = Recorded.of(frame, profile, config.settings(name, profile), runs)
        if given is not None and given.rows != chapters[name].rows:
            chapters[name] = given
    prior = _prior(chapters)
    found = [
        judge(claim, chapters[name], prior) if name in chapters else ClaimResult(claim, profile)
        for name, paper in known.items()
        for claim in paper.claims
    ]
    return [each for each in _with_q(found) if each.claim.chapter in wanted]


def _prior(chapters: dict[str, Recorded]) -> Prior:
    """What the claims in points know together of their variance; the same numbers count once."""
    found = {
        tuple(claim.values(recorded.rows, recorded.settings).values())
        for name, recorded in chapters.items()
        for claim in papers()[name].claims
        if claim.unit == POINTS
    }
    gaps = [(statistics.interval(values), len(values)) for values in sorted(found) if len(values) > 1]
    return statistics.fit_prior([n * gap.error**2 for gap, n in gaps], [n - 1 for _, n in gaps])


def _with_q(found: Sequence[ClaimResult]) -> list[ClaimResult]:
    """The results with their q: one family of the papers' claims, one of our questions."""
    done = list(found)
    for ours in (False, True):
        family = [
            (place, float(each.difference.p(each.claim.threshold)))
            for place, each in enumerate(done)
            if each.claim.ours is ours and len(each.values) >= DECISIVE and each.verdict != NOT_REALISED
            if each.difference
        ]
        for (place, _), q in zip(family, statistics.q_values([p for _, p in family]), strict=True):
            done[place] = dataclasses.replace(done[place], q=q)
    return done


def distinct(results: Iterable[ClaimResult]) -> list[ClaimResult]:
    """The results without those that are the same numbers, judged by the same requirement, once more."""
    kept: dict[Any, ClaimResult] = {}
    for each in results:
        key = (each.values, each.claim.threshold, each.verdict) if each.values else (each.claim, each.profile)
        kept.setdefault(key, each)
    return list(kept.values())


def overall(results: Iterable[ClaimResult]) -> tuple[str, str]:
    """One verdict for several profiles, and its words, such as "yes on CIFAR-10, digits undecided"."""
    run = [each for each in distinct(results) if each.verdict != NOT_RUN]
    if not run:
        return NOT_RUN, NOT_RUN
    by_verdict: dict[str, list[str]] = {}
    for each in run:
        by_verdict.setdefault(each.verdict, []).append(records.in_print(each.dataset))
    decided = [name for name in by_verdict if name in DECIDED]
    if len(by_verdict) == 1:
        return run[0].verdict, f"{SHORT.get(run[0].verdict, run[0].verdict)}, {len(run)} of {len(run)}"
    parts = [f"{SHORT.get(name, name)} on {' and '.join(by_verdict[name])}" for name in decided]
    parts += [f"{' and '.join(sets)} {name}" for name, sets in by_verdict.items() if name not in DECIDED]
    words = ", ".join(parts)
    if len(decided) > 1:
        return CONFLICT, f"{CONFLICT}: {words}"
    return (decided or [UNDECIDED])[0], words
