"""Recorded rows by arm and seed, and their tables in Markdown."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

from kdsec.errors import KdsecError
from kdsec.report.records import expand
from kdsec.report.statistics import Difference, interval
from kdsec.report.text import markdown_table

if TYPE_CHECKING:
    import pandas as pd


def select(frame: pd.DataFrame, arm: str, metric: str, **setting: float | str) -> pd.Series:
    """Values of one arm by seed.

    Raises:
        KdsecError: there are no such rows, or more than one a seed.
    """
    chosen = expand(frame[(frame["arm"] == arm) & (frame["metric"] == metric)])
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


def markdown(rows: pd.DataFrame) -> str:
    """A Markdown table of a frame's text, for display in a page."""
    return markdown_table([list(rows.columns), *rows.astype(str).to_numpy().tolist()])


def folded(heading: str, text: str) -> str:
    """Markdown under a heading that the reader unfolds."""
    return f'<details class="folded"><summary>{html.escape(heading)}</summary>\n\n{text}\n\n</details>'
