"""What the papers claim, in our words, and how each claim is judged: the files ``papers/<chapter>.toml``.

A file names the chapter's ``paper``, what of it was ``read``, the ``deviations`` of our protocol from it, and
its ``claims``. A claim has

- ``id``: stable, for links;
- ``statement``;
- ``source``: the abstract and its version, or "ours", a question that we ask;
- ``attack``: one of ``ATTACKS``; the file's own ``attack`` unless named;
- ``first``, ``second``: two quantities, each by the columns of a record (the metric is test accuracy unless
  named, the setting empty). A name in braces is a setting of the profile. One of the two may be missing;
- ``threshold``: what first - second must exceed; 0, unless named, asks only for the direction;
- ``unit``: of the difference; points of a percentage unless named;
- ``delta``: the largest difference that does not matter; ``DELTA`` of the data set unless named, and 0 in
  other units than points;
- ``profiles``: those that ask it; all of the chapter's unless named;
- ``realised``: the name of a manipulation check, or a list of them. Where one fails in the recorded rows, the
  defence was not realised and the claim gets no verdict.

The file's table ``[realised.NAME]`` is such a check: a quantity (its metric is "realised", 1 or 0, unless
named) whose mean over seeds must be ``over`` a number or ``under`` one; without either it must be 1 at every
seed. With ``than``, another quantity, the difference of the two must be. A defence that was realised must
answer, too: a teacher that ignores its images has moved its answers, and what its copies lose proves nothing.
Old records, from before there were checks, are judged without. ``kdsec.report.verdicts`` has the rule.

The array ``findings`` says in prose what was found on the chapter's headline claims, a sentence a verdict;
see ``kdsec.report.findings``. ``main`` is the profile that these sentences and the chapter's recorded figures
are about where it is recorded; small unless named.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kdsec import config
from kdsec.errors import KdsecError, check_choice
from kdsec.report import provenance
from kdsec.report.records import DATASETS, Labelled, canonical

POINTS = "points"
ATTACKS = ("stealing", "poisoning", "changed inputs")
# The largest difference in accuracy that does not matter, by data set, fixed before the runs. One point is
# what the papers' abstracts mean by "kept". Two where one is out of reach: the digits' test set has 599
# images, and near 97 % one accuracy has a standard error of 0.7 points; networks here are right on
# two thirds of CIFAR-100 and half of Tiny ImageNet, where seeds differ by more than a point.
DELTA = {"digits": 0.02, "cifar100": 0.02, "tiny-imagenet": 0.02}
DELTA_ELSE = 0.01
REALISED = 0.999  # a mean of 1s and 0s over this is 1 at every seed
LOST = 0.3  # a protected teacher this far below the normal one in accuracy no longer answers


@dataclass(frozen=True)
class Quantity:
    """One recorded number a seed, named by the columns of its row; see ``kdsec.report.records``.

    ``{name}`` in a column is replaced by the profile's setting of that name, ``{name[0]}`` by one item of it.

    Attributes:
        arm, metric: as recorded.
        setting: all of it; numbers are equal as numbers (``temperature=4.0`` finds 4).
        model: needed where rows differ in nothing else.
    """

    arm: str
    metric: str = "test accuracy"
    setting: str = ""
    model: str = ""

    def values(self, rows: Labelled, settings: Any) -> dict[int, float]:
        """Values by seed; empty where no such row was recorded.

        Raises:
            KdsecError: more than one row a seed, or a setting that the profile does not have.
        """
        arm, metric, setting, model = self._filled(settings)
        values: dict[int, float] = {}
        for network, seed, value in rows.get((arm, metric, setting), ()):
            if model in ("", network):
                if seed in values:
                    label = f"{arm}, {metric}"
                    raise KdsecError(
                        f"more than one row a seed for {label}; name a setting that tells them apart"
                    )
                values[seed] = value
        return values

    def check(self, where: str, rows: Labelled, settings: Any) -> None:
        """Refuse an arm, metric, setting or model that ``rows``, those of a quick run, do not have.

        A quick run has one data set; what is claimed of another (``data=cifar10`` in the setting) must be
        there for its own.
        """
        labels = list(rows)
        arm, metric, setting, model = self._filled(settings)
        other = [f"data={name}" for name in DATASETS]
        setting = ";".join(part for part in setting.split(";") if part not in other)
        for place, (kind, name) in enumerate(
            zip(("arm", "metric", "setting", "model"), (arm, metric, setting, model), strict=True)
        ):
            known = (
                [key[place] for key in labels]
                if place < 3
                else [row[0] for key in labels for row in rows[key]]
            )
            if kind != "model" or name:
                check_choice(f"{kind} of {where}", name, sorted(set(known)))
            labels = [key for key in labels if place == 3 or key[place] == name]

    def _filled(self, settings: Any) -> tuple[str, str, str, str]:
        arm, metric, setting, model = (
            _fill(text, settings) for text in (self.arm, self.metric, self.setting, self.model)
        )
        return arm, metric, canonical(setting), model


@dataclass(frozen=True)
class Check:
    """A manipulation check: the mean of ``quantity`` (minus ``than``) must be over or under ``bound``."""

    name: str
    quantity: Quantity
    than: Quantity | None = None
    bound: float = REALISED
    over: bool = True

    @property
    def required(self) -> str:
        return f"{'over' if self.over else 'under'} {self.bound:g}"

    def value(self, rows: Labelled, settings: Any) -> float | None:
        """The mean over seeds; None where nothing was recorded."""
        values = _difference(self.quantity, self.than, rows, settings).values()
        return sum(values) / len(values) if values else None

    def passed(self, value: float) -> bool:
        return value > self.bound if self.over else value < self.bound


@dataclass(frozen=True)
class Claim:
    """A statement and its rule: ``first - second`` is larger than ``threshold``.

    Attributes:
        chapter: its name.
        id: unique in the chapter; part of the address that links to the claim.
        statement, source, unit: see the module.
        first, second: what is compared; one of the two may be None, which counts as 0.
        threshold: what the difference must exceed.
        delta: of this claim, if it has one of its own.
        realised: the manipulation checks of the defences that it is about.
        rule: hash of all that decides the verdict, from the file.
        attack: what kind of attack it is about, one of ``ATTACKS``.
        profiles: see the module; empty for all.
    """

    chapter: str
    id: str
    statement: str
    source: str
    first: Quantity | None = None
    second: Quantity | None = None
    threshold: float = 0.0
    unit: str = POINTS
    delta: float | None = None
    realised: tuple[Check, ...] = ()
    rule: str = ""
    attack: str = ""
    profiles: tuple[str, ...] = ()

    def asked(self, profile: str) -> bool:
        """Whether a run at ``profile`` looks for an answer."""
        known = config.profiles(self.chapter)
        return profile in known and (not self.profiles or profile in self.profiles)

    @property
    def ours(self) -> bool:
        """A question that we ask; else a claim of a paper."""
        return self.source == "ours"

    @property
    def signed(self) -> bool:
        """About a difference, which is told with its sign; a margin is a difference that a run recorded."""
        only = self.first or self.second
        return bool(self.first and self.second) or (only is not None and only.metric.endswith("margin"))

    @property
    def share(self) -> bool:
        """About one quantity between 0 and 100 %, such as an accuracy."""
        return self.unit == POINTS and not self.signed

    def values(self, rows: Labelled, settings: Any) -> dict[int, float]:
        """``first - second`` by seed, of the seeds that have both."""
        return _difference(self.first, self.second, rows, settings)

    def check(self, rows: Labelled, settings: Any) -> None:
        """Refuse a claim on what ``rows``, those of a quick run, do not have.

        Raises:
            KdsecError: names the claim, what it names and what its chapter writes.
        """
        tests = [each for check in self.realised for each in (check.quantity, check.than)]
        for quantity in (self.first, self.second, *tests):
            if quantity is not None:
                quantity.check(f"papers/{self.chapter}.toml, claim {self.id}", rows, settings)

    def largest_small(self, dataset: str) -> float:
        """The claim's delta on a data set."""
        if self.delta is not None:
            return self.delta
        return DELTA.get(dataset, DELTA_ELSE) if self.unit == POINTS else 0.0


def _difference(
    first: Quantity | None, second: Quantity | None, rows: Labelled, settings: Any
) -> dict[int, float]:
    sides = [(side.values(rows, settings), sign) for side, sign in ((first, 1), (second, -1)) if side]
    seeds = set.intersection(*(set(values) for values, _ in sides))
    return {seed: sum(sign * values[seed] for values, sign in sides) for seed in sorted(seeds)}


@dataclass(frozen=True)
class Paper:
    """The paper of a chapter: what of it was read, how our protocol differs, its claims and findings.

    ``findings`` has the sentence of each verdict by the id of a headline claim; the first is the chapter's.
    ``main``: see the module.
    """

    paper: str
    read: str
    deviations: tuple[str, ...]
    claims: tuple[Claim, ...]
    findings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    main: str = "small"

    @property
    def preferred(self) -> tuple[str, ...]:
        """The profiles that its text and figures are about, in this order, as far as they are recorded."""
        return tuple(dict.fromkeys((self.main, "small", "second", "quick")))


@functools.cache
def papers() -> Mapping[str, Paper]:
    """Every chapter that makes claims, in the book's order.

    Raises:
        KdsecError: a file of ``papers/`` is not in the form that ``parse`` reads.
    """
    folder = importlib.resources.files("kdsec.report") / "papers"
    return {
        name: parse(name, (folder / f"{name}.toml").read_text(encoding="utf-8")) for name in config.CHAPTERS
    }


def rules(chapter: str) -> dict[str, str]:
    """``Claim.rule`` by id of the claims that are committed now, for the record of a run that starts now."""
    text = provenance.committed(f"kdsec/report/papers/{chapter}.toml")
    try:
        paper = papers()[chapter] if text is None else parse(chapter, text)
    except KdsecError:  # committed in a form of another version
        return {}
    return {claim.id: claim.rule for claim in paper.claims}


def parse(chapter: str, text: str) -> Paper:
    """Paper and claims of ``chapter``, from the text of its file in ``papers/``.

    Raises:
        KdsecError: names the place, and says what is wrong there and what is allowed.
    """
    try:
        entry = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # names line and column
        raise KdsecError(f"papers/{chapter}.toml is not in TOML's syntax: {error}") from None
    where = f"papers/{chapter}.toml"
    _check_table(where, entry, PAPER, ["paper", "read", "attack", "deviations", "claims"])
    for note in entry["deviations"]:
        _check_kind(f"{where}, deviations", note, str)
    checks = {
        name: _check(f"{where}, realised.{name}", name, each)
        for name, each in entry.get("realised", {}).items()
    }
    claims = tuple(
        _claim(chapter, number, each, entry, checks) for number, each in enumerate(entry["claims"], 1)
    )
    ids = [claim.id for claim in claims]
    if twice := sorted({each for each in ids if ids.count(each) > 1}):
        raise KdsecError(f"{where}: id {twice[0]!r} is given twice; give each claim its own, for links")
    findings = {}
    for number, each in enumerate(entry.get("findings", []), 1):
        place = f"{where}, finding {number}"
        _check_table(place, each, FINDING, list(FINDING))
        if each["claim"] in findings:
            raise KdsecError(f"{place}: claim {each['claim']!r} has a finding before; give each claim one")
        findings[check_choice(f"claim of {place}", each["claim"], ids)] = each
    main = check_choice(f"main of {where}", entry.get("main", "small"), config.profiles(chapter))
    return Paper(entry["paper"], entry["read"], tuple(entry["deviations"]), claims, findings, main)


def _fill(text: str, settings: Any) -> str:
    """Put the profile's settings in place of ``{name}`` and ``{name[0]}``.

    Raises:
        KdsecError: there is no such setting, or it has no such item.
    """

    def setting(match: re.Match[str]) -> str:
        try:
            value = getattr(settings, match[1])
            return str(value if match[2] is None else value[int(match[2])])
        except (AttributeError, IndexError, TypeError):
            what = f"claims, {text!r}: {match[0]} is no setting of {type(settings).__name__}"
            raise KdsecError(f"{what}; name one that the chapter has at every profile") from None

    return re.sub(r"\{(\w+)(?:\[(-?\d+)\])?\}", setting, text)


# Fields of the tables in papers/<chapter>.toml, the kind of each, and which must be given.
NAMES = (str, list)
PAPER = {"paper": str, "read": str, "attack": str, "deviations": list, "claims": list}
PAPER |= {"realised": dict, "findings": list, "main": str}
CLAIM = {
    "id": str,
    "statement": str,
    "source": str,
    "attack": str,
    "profiles": list,
    "threshold": float,
    "unit": str,
    "first": dict,
    "second": dict,
    "delta": float,
    "realised": NAMES,
}
SAID = ("supported", "contradicted", "no difference", "undecided", "not realised", "not yet run")
FINDING = {"claim": str} | dict.fromkeys(SAID, str)
QUANTITY = {"arm": str, "metric": str, "setting": str, "model": str}
CHECK = QUANTITY | {"than": dict, "over": float, "under": float}
KINDS = {
    str: "a line of text",
    list: "a list",
    dict: "a table",
    float: "a finite number",
    NAMES: "a name or a list",
}


def _claim(
    chapter: str, number: int, entry: Any, file: Mapping[str, Any], checks: Mapping[str, Check]
) -> Claim:
    name = entry.get("id") if isinstance(entry, dict) else None
    where = f"papers/{chapter}.toml, claim {number}" + (
        f" ({name})" if isinstance(name, str) and name.isprintable() else ""
    )
    _check_table(where, entry, CLAIM, ["id", "statement", "source"])
    if not re.fullmatch(r"[\w-]+", entry["id"]):
        raise KdsecError(f"{where}: id {entry['id']!r} is part of an address; use letters, digits and -")
    sides = {side: entry[side] for side in ("first", "second") if side in entry}
    if not sides:
        raise KdsecError(f"{where} compares nothing; name first, second or both")
    for side, each in sides.items():
        _check_table(f"{where}, {side}", each, QUANTITY, ["arm"])
    if entry.get("delta", 0) < 0:
        raise KdsecError(
            f"{where}: delta {entry['delta']} is below 0; give a difference that does not matter"
        )
    names = entry.get("realised", [])
    names = [names] if isinstance(names, str) else names
    chosen = {each: checks[check_choice(f"realised of {where}", each, checks)] for each in names}
    decides = [
        sides,
        entry["source"] == "ours",
        [float(entry.get("threshold", 0)), entry.get("unit", POINTS), entry.get("delta")],
    ]
    rule = json.dumps(
        [decides, [file["realised"][each] for each in chosen], DELTA, DELTA_ELSE], sort_keys=True
    )
    changes: dict[str, Any] = {side: Quantity(**quantity) for side, quantity in sides.items()}
    changes["attack"] = check_choice(f"attack of {where}", entry.get("attack", file["attack"]), ATTACKS)
    tests = tuple(test for check in chosen.values() for test in (check, *_answers(check)))
    for each in entry.get("profiles", []):
        check_choice(f"profile of {where}, profiles", each, config.profiles(chapter))
    changes["profiles"] = tuple(entry.get("profiles", []))
    changes |= {"realised": tests, "rule": hashlib.sha256(rule.encode()).hexdigest()[:8]}
    return Claim(chapter, **entry | changes)


def _check(where: str, name: str, entry: Any) -> Check:
    _check_table(where, entry, CHECK, ["arm"])
    if "over" in entry and "under" in entry:
        raise KdsecError(f"{where} has a bound over and one under; give one, or two checks")
    if "than" in entry:
        _check_table(f"{where}, than", entry["than"], QUANTITY, ["arm"])
    metric = {"metric": entry.get("metric", "realised")}
    quantity = Quantity(**{key: value for key, value in entry.items() if key in QUANTITY} | metric)
    than = Quantity(**metric | entry["than"]) if "than" in entry else None
    return Check(
        name, quantity, than, float(entry.get("under", entry.get("over", REALISED))), "under" not in entry
    )


def _answers(check: Check) -> Iterable[Check]:
    """That the teacher whose objective ``check`` is about still answers; nothing for other checks."""
    if check.quantity.metric == "realised":
        teacher = Quantity(check.quantity.arm, model=check.quantity.model)
        yield Check(f"{check.name} answers", teacher, dataclasses.replace(teacher, arm="normal"), -LOST)


def _check_table(where: str, entry: Any, kinds: Mapping[str, Any], needed: Iterable[str]) -> None:
    """Refuse what is not a table, a field that is not known, one that is missing, or of another kind."""
    _check_kind(where, entry, dict)
    for key, value in entry.items():
        check_choice(f"field of {where}", key, kinds)
        _check_kind(f"{where}, {key}", value, kinds[key])
    if missing := [key for key in needed if key not in entry]:
        raise KdsecError(f"{where} lacks {', '.join(missing)}")


def _check_kind(where: str, value: Any, kind: Any) -> None:
    if kind is str:
        fits = isinstance(value, str) and value.isprintable()
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    else:
        fits = isinstance(value, kind)
    if not fits:
        given = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:57]}..."
        raise KdsecError(f"{where}: {given} is not {KINDS[kind]}")
