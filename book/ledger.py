"""What the whole book costs: operations and time of the recorded runs, and the time of a GPU, computed.

A record counts the floating-point operations of its trainings, those from the cache too. Records made before
that was counted are named, and are part of no sum of operations.
"""

from __future__ import annotations

import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kdsec import models
from kdsec.config import CHAPTERS, PROFILES, profiles, settings
from kdsec.errors import KdsecError
from kdsec.planning import agenda, plan
from kdsec.report import quote, records
from kdsec.report.text import markdown_table, two_digits

Run = dict[str, Any]
UNKNOWN = "not recorded"
CORES = 2  # of the machine that the book is planned for


@dataclass(frozen=True)
class GPU:
    """A GPU as its data sheet describes it.

    Attributes:
        name: the model, with its article.
        peak: PFLOP a second in ``kind``, without sparsity.
        kind: the number format.
        share: of the peak that trainings like these are taken to reach.
    """

    name: str
    peak: float
    kind: str
    share: float

    def minutes(self, petaflop: float) -> float:
        """How long it computes."""
        return petaflop / (self.peak * self.share) / 60


# NVIDIA's data sheets of the T4 and of the H100 (SXM; half of its figure with sparsity).
GPUS = (GPU("a T4", 0.065, "fp16", 0.25), GPU("an H100", 0.989, "bf16", 0.1))
# The plain ResNet-18 training in the table of github.com/KellerJordan/cifar10-airbench: PFLOP, seconds, peak.
MEASURED = GPU("an A100", 0.312, "bf16", 32.3 / (7 * 60) / 0.312)


def costs(results: pathlib.Path) -> str:
    """The section in Markdown, from the records in ``results``.

    Raises:
        KdsecError: a record does not say how long it took or where, or its operations are no number.
    """
    runs = [run for profile in PROFILES for run in records.runs(results, profile)]
    if not runs:
        return "Nothing is recorded yet."
    minutes, hours = ([f"{unit} on {gpu.name}, computed" for gpu in GPUS] for unit in ("minutes", "hours"))
    head = ("chapter", "profile", "seeds", "PFLOP a seed", "minutes a seed", *minutes)
    groups: dict[tuple[str, str, str, bool], list[Run]] = {}
    for run in runs:
        key = (run["chapter"], run["profile"], device(run), petaflop(run) is None)
        groups.setdefault(key, []).append(run)
    each = [_of_chapter(*key[:2], members) for key, members in groups.items()]
    sums = ("what", "PFLOP", "hours recorded", f"hours on {CORES} cores, computed", *hours)
    return "\n\n".join([markdown_table([sums, *_sums(runs)]), _caption(runs), markdown_table([head, *each])])


def pieces(results: pathlib.Path) -> str:
    """Table in Markdown: the chapters in the order of ``kdsec run --profile paper --gaps-first``.

    With each the plain training of its classifier: a piece must be longer, or it never ends.
    """
    minutes = [f"minutes on {gpu.name}, computed" for gpu in GPUS]
    rows = [("chapter", "claims not yet run", "claims undecided", "its teacher", "PFLOP", *minutes)]
    for row in agenda(plan([], "paper", [0], out=results), gaps_first=True):
        chapter, _, _, *lacking = row.values()
        network, needed = teacher(str(chapter))
        took = (_minutes(gpu.minutes(needed)) for gpu in GPUS)
        rows.append((chapter, *lacking, network, two_digits(needed), *took))
    return markdown_table(rows)


def teacher(chapter: str) -> tuple[str, float]:
    """The network of a chapter's classifier at the paper profile, and the PFLOP of its plain training."""
    chosen = settings(chapter, "paper")
    named = (getattr(chosen, key, "") for key in ("classifier", "teacher", "model"))
    network = next(name for name in named if name in models.names())
    images = getattr(chosen, "owner", None) or chosen.teacher_images
    seen = chosen.recipe.total_steps(images) * min(chosen.recipe.batch_size, images)
    return network, seen * image_operations(network) / 1e15


@functools.cache
def image_operations(network: str) -> float:
    """Operations of a training step with one image of 32 x 32 pixels, counted without computing it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model, counter = models.build(network, 10, (3, 32, 32)).to("meta"), FlopCounterMode(display=False)
    with counter:
        model(torch.empty(2, 3, 32, 32, device="meta")).sum().backward()
    return counter.get_total_flops() / 2


def petaflop(run: Run) -> float | None:
    """Operations of a run's trainings in PFLOP; None if the record is older than their count."""
    value = (run.get("training") or {}).get("petaflop")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise KdsecError(f"the json of record {_name(run)}: petaflop is {value!r}, not a number from 0 up")
    return float(value)


def device(run: Run) -> str:
    """What a run ran on."""
    try:
        machine = run["machine"]
        return str(machine["gpu"] or f"{machine['cpu']}, threads: {machine['threads']}")
    except (KeyError, TypeError) as error:
        raise KdsecError(f"the json of record {_name(run)} does not say where it was made: {error}") from None


def _name(run: Run) -> str:
    return f"{run['profile']} / {run['chapter']} / seed {run['seed']}"


def _of_chapter(chapter: str, profile: str, members: list[Run]) -> tuple[str, ...]:
    """A row: seeds of one chapter and profile on one machine; which processor, the table of runs says."""
    seeds = _ranges(sorted(run["seed"] for run in members))
    counted = [found for run in members if (found := petaflop(run)) is not None]
    gpus = [_span([gpu.minutes(each) for each in counted], _minutes) for gpu in GPUS]
    took = _span([quote.minutes(run) for run in members], _minutes)
    if gpu := members[0]["machine"]["gpu"]:
        took += f" on {gpu}"
    return (chapter, profile, seeds, _span(counted, two_digits), took, *gpus)


def _sums(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Rows: one seed of every chapter (the mean over its seeds) at each profile, and all that is recorded."""
    rows = []
    for profile in PROFILES:
        mine = [run for run in runs if run["profile"] == profile]
        there = dict.fromkeys(run["chapter"] for run in mine)
        if not there:
            continue
        missing = [name for name in CHAPTERS if profile in profiles(name) and name not in there]
        what = f"one seed of the book at {profile}{f', without {_listed(missing)}' * bool(missing)}"
        rows.append(_sum(what, [[run for run in mine if run["chapter"] == name] for name in there]))
    return [*rows, _sum(f"all {len(runs)} recorded runs", [[run] for run in runs])]


def _sum(what: str, parts: Sequence[Sequence[Run]]) -> tuple[str, ...]:
    """A row: the sum over ``parts`` of the mean of each. "At least" where a part has no number."""

    def total(value: Callable[[Run], float | None]) -> tuple[float, str]:
        means = []
        for part in parts:
            found = [each for run in part if (each := value(run)) is not None]
            means.append(sum(found) / len(found) if found else None)
        known = [mean for mean in means if mean is not None]
        return (sum(known), "at least " * (len(known) < len(means))) if known else (math.nan, "")

    def hours(minutes: tuple[float, str]) -> str:
        if minutes[0] != minutes[0]:
            return UNKNOWN
        return f"{minutes[1]}{two_digits(minutes[0] / 60)}" if minutes[0] >= 0.6 else "under 0.01"

    operations, least = total(petaflop)
    gpus = [hours((gpu.minutes(operations), least)) for gpu in GPUS]
    counted = f"{least}{two_digits(operations)}" if operations == operations else UNKNOWN
    return (what, counted, hours(total(quote.minutes)), hours(total(_shared_minutes)), *gpus)


def _shared_minutes(run: Run) -> float | None:
    """Minutes where several runs keep all cores busy; None for a run on a GPU."""
    machine = run["machine"]
    return None if machine["gpu"] else quote.minutes(run) * machine["threads"] / CORES


def _caption(runs: Sequence[Run]) -> str:
    """What the numbers mean, which were computed from what, and which are missing."""
    peaks = " and ".join(f"{1000 * gpu.peak:g} TFLOP/s in {gpu.kind} on {gpu.name}" for gpu in GPUS)
    shares = " and ".join(f"{100 * gpu.share:.0f} % on {gpu.name}" for gpu in GPUS)
    text = [
        "Operations (PFLOP: 10^15, two for each multiplication) and time are those of all trainings of a "
        "run, also of those that came from the cache. A training that several chapters share counts in each "
        "of them. Attacks, data-free thefts and evaluations are in the time, but not in the operations.",
        f"*Computed, not measured:* {CORES} cores are taken to be kept busy by runs of one thread each. Time "
        "on a GPU is that of the trainings: operations divided by peak and by the share of it that is used. "
        f"Peaks are those of NVIDIA's data sheets, without sparsity: {peaks}. Shares are assumptions: "
        f"{shares}. A plain ResNet-18 reaches {100 * MEASURED.share:.0f} % on {MEASURED.name} in "
        "[airbench](https://github.com/KellerJordan/cifar10-airbench)'s table, and small networks fill a "
        "larger GPU less.",
    ]
    old = [run for run in runs if petaflop(run) is None]
    if old:
        names = dict.fromkeys(f"{run['chapter']} at {run['profile']}" for run in old)
        text.append(
            f"Recorded before operations were counted, and in no sum of them: {_listed(list(names))}."
        )
    return "\n\n".join(text)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _ranges(seeds: Sequence[int]) -> str:
    """``0 to 4, 7``."""
    starts = [seed for seed in seeds if seed - 1 not in seeds]
    ends = [seed for seed in seeds if seed + 1 not in seeds]
    pairs = zip(starts, ends, strict=True)
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in pairs)


def _span(values: Sequence[float], form: Callable[[float], str]) -> str:
    if not values:
        return UNKNOWN
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"


def _minutes(value: float) -> str:
    return f"{value:.1f}" if value >= 0.05 else "under 0.1"
