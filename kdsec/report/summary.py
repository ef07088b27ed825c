"""From rows over seeds to a statement: means with spread, and differences with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsec.errors import KdsecError
from kdsec.report.records import expand

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Difference:
    """Mean difference of two arms over seeds, with the 95 % interval of Student's t.

    Seeds pair the arms: in one seed both have the same split, the same teacher and the same initial weights.
    """

    mean: float
    low: float
    high: float
    seeds: int

    def verdict(self, at_least: float = 0.0) -> str:
        """``supported`` if the whole interval lies above ``at_least``, ``not supported`` if it lies below.

        ``undecided`` otherwise; fewer than three seeds decide nothing.
        """
        if self.seeds < 3 or self.low <= at_least <= self.high:
            return "undecided"
        return "supported" if self.low > at_least else "not supported"


def select(frame: pd.DataFrame, arm: str, metric: str, **setting: float | str) -> pd.Series:
    """Values of one arm by seed.

    Raises:
        KdsecError: there are no such rows, or more than one a seed.
    """
    wide = expand(frame)
    chosen = wide[(wide["arm"] == arm) & (wide["metric"] == metric)]
    for key, value in setting.items():
        chosen = chosen[chosen[key] == value] if key in chosen else chosen.iloc[:0]
    label = ", ".join([arm, metric, *(f"{key}={value}" for key, value in setting.items())])
    if chosen.empty:
        arms = ", ".join(sorted(set(frame["arm"])))
        raise KdsecError(f"no rows for {label}; arms recorded here: {arms or 'none'}")
    return by_seed(chosen, label)


def by_seed(rows: pd.DataFrame, label: str) -> pd.Series:
    """Values of ``rows``, which are of one arm and metric, by seed.

    Raises:
        KdsecError: more than one a seed; ``label`` says of what.
    """
    if rows["seed"].duplicated().any():
        raise KdsecError(f"more than one row a seed for {label}; name a setting that tells them apart")
    return rows.set_index("seed")["value"].sort_index()


def difference(
    frame: pd.DataFrame, first: str, second: str, metric: str = "test accuracy", **setting: float | str
) -> Difference:
    """Mean of ``first - second`` over the seeds that both have.

    Raises:
        KdsecError: an arm has no rows, or the two share no seed.
    """
    return interval(select(frame, first, metric, **setting) - select(frame, second, metric, **setting))


def interval(values: pd.Series) -> Difference:
    """Mean and 95 % t-interval of one value a seed (infinite for a single seed)."""
    from scipy.stats import t

    values = values.dropna()
    count = len(values)
    if count == 0:
        raise KdsecError("the two arms share no seed; run both at the same seeds")
    mean = float(values.mean())
    if count == 1:
        return Difference(mean, -math.inf, math.inf, 1)
    half = float(t.ppf(0.975, count - 1) * values.std(ddof=1) / math.sqrt(count))
    return Difference(mean, mean - half, mean + half, count)


def table(frame: pd.DataFrame, metric: str = "test accuracy") -> pd.DataFrame:
    """Mean, standard deviation and number of seeds per arm, model and setting, in the order recorded."""
    chosen = frame[frame["metric"] == metric]
    grouped = chosen.groupby(["arm", "model", "setting"], sort=False)["value"]
    return grouped.agg(mean="mean", sd="std", seeds="count").reset_index()


def markdown(rows: pd.DataFrame) -> str:
    """A Markdown table of a frame's text, for display in a page."""
    lines = [list(rows.columns), ["---"] * rows.shape[1], *rows.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def folded(heading: str, text: str) -> str:
    """Markdown under a heading that the reader clicks open: pages with many tables stay short."""
    return f'<details class="folded"><summary>{heading}</summary>\n\n{text}\n\n</details>'
