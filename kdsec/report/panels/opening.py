"""Figures and tables of chapter 1, on distillation and stealing by it.

Functions of ``recordings`` draw recorded rows, one part per profile; the others draw the networks of one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kdsec.data import ImageSet
from kdsec.report import interactive, plots, summary
from kdsec.report.panels import Markdown, Recordings, stack, verdict

STUDENTS = (
    *("labels", "label smoothing", "KD", "KD, negatives even", "KD, negatives shuffled"),
    "attention transfer",
)
THIEVES = (
    *("soft labels", "soft labels, every view", "hard labels", "smoothed hard labels"),
    "labelled by hand",
)


def students(recordings: Recordings) -> Figure:
    """Test accuracy of the owner's students, a row per loss; dashed: labels alone."""

    def draw(ax: Axes, rows: pd.DataFrame, settings: Any) -> None:
        plots.arm_dots(ax, rows, STUDENTS, lines=["labels"])
        level = rows[(rows["metric"] == "test accuracy") & (rows["setting"] == "")]
        mean = 100 * level[level["arm"].isin(STUDENTS)].groupby("arm")["value"].mean()
        gains = [f"{arm} {mean[arm] - mean['labels']:+.1f}" for arm in STUDENTS[2:4] if arm in mean]
        ax.set_title(f"Points above labels alone: {', '.join(gains)}")

    return stack(recordings, draw, 7, lambda settings: 3)


def thieves(recordings: Recordings) -> Figure:
    """Test accuracy of copies by number of queries, a curve per kind of answer; dashed: the teacher."""

    def draw(ax: Axes, rows: pd.DataFrame, settings: Any) -> None:
        level = summary.select(rows, "teacher", "test accuracy").mean()
        plots.arm_curves(ax, rows, THIEVES, x="queries", lines={"teacher": level})
        ax.set(xlabel="images sent to the teacher", ylabel="accuracy of the copy (%)")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        gain = _gain(rows)
        few, most = (f"{gain[queries]:+.1f} points with {queries:,g}" for queries in gain.index[[0, -1]])
        ax.set_title(f"Probabilities against decisions: {few} images, {most}")

    return stack(recordings, draw, 7, lambda settings: 3.2)


def _gain(rows: pd.DataFrame) -> pd.Series:
    """What soft labels add to hard ones, in points, by number of queries."""
    wide = summary.expand(rows[rows["metric"] == "test accuracy"])
    level = 100 * wide.pivot_table("value", "queries", "arm")
    return (level["soft labels"] - level["hard labels"]).dropna()


def thief_table(settings: Any, rows: pd.DataFrame) -> Markdown:
    """Mean test accuracy of every thief by number of queries, and what probabilities add to decisions.

    The last row, *room*: the thief chosen on validation minus the hard-label thief, in points. ± is a
    standard error. Arms and budgets without rows are left empty.
    """
    share = rows[rows["metric"] == "test accuracy"].set_index(["arm", "setting"])
    level = share.groupby(level=[0, 1])["value"].mean()

    def text(arm: str, setting: str) -> str:
        if (arm, setting) not in level:
            return ""
        p, n = level[arm, setting], share.loc[[(arm, setting)], "n"].iloc[0]
        one_seed = rows["seed"].nunique() == 1
        return f"{p:.1%} ± {math.sqrt(p * (1 - p) / n):.1%}" if one_seed else f"{p:.1%}"

    table = pd.DataFrame({"thief": [*THIEVES, f"soft labels of {settings.surrogate}", "room"]})
    for queries in settings.queries:
        at = f"queries={queries}"
        foreign = text("surrogate images", "") if queries == max(settings.queries) else ""
        room = 100 * (level.get(("best thief", at), math.nan) - level.get(("hard labels", at), math.nan))
        added = "" if math.isnan(room) else f"{room:+.1f}"
        table[f"{queries:,} queries"] = [*(text(arm, at) for arm in THIEVES), foreign, added]
    return Markdown(summary.markdown(table))


def show_verdict(recordings: Recordings) -> None:
    """A table of the thieves at every profile."""
    verdict("opening", recordings, {"The thieves": thief_table}, claims=False)


FIGURES: dict[str, Callable[[Recordings], Figure]] = {
    "students": students,
    "thieves": thieves,
}


def answers(images: ImageSet, logits: Tensor, temperatures: Sequence[float]) -> Figure:
    """Images, and under each the teacher's probabilities at several temperatures."""
    softened = {f"τ = {tau:g}": (logits / tau).softmax(1) for tau in temperatures}
    return plots.soft_labels(images.float_images(), softened, images.classes)


def explorer(images: ImageSet, logits: Tensor) -> interactive.Live:
    """The teacher's answer to one image, with sliders for temperature and number of classes kept."""
    still = answers(images.subset(slice(0, 4)), logits[:4], (0.5, 1.0, 4.0, 20.0))
    return interactive.probability_explorer(logits, images.images, images.labels, images.classes, still=still)


def entropy_curve(temperatures: Tensor, entropy: Sequence[float], tau: float, classes: int) -> Figure:
    """Mean entropy of softened answers by temperature, from one-hot to uniform; ``tau`` is marked."""
    figure, ax = plt.subplots(figsize=(7, 2.4))
    ax.semilogx(temperatures, entropy, color=plots.BLUE, lw=2)
    ax.axhline(math.log(classes), color="#7F7F7F", ls="--", lw=1.2)
    ax.axvline(tau, color=plots.RED, ls="--", lw=1.2)
    ax.text(tau * 1.15, 0.1, f"τ = {tau:g}", color=plots.RED)
    ax.text(0.12, 0.93 * math.log(classes), "ln K", va="top", color="#555555")
    ax.set(xlabel="temperature τ", ylabel="mean entropy (nats)")
    return figure


def class_map(matrix: Tensor, classes: Sequence[str]) -> Figure:
    """Mean probability that images of one class (rows) get for every other class (columns)."""
    figure, ax = plt.subplots(figsize=(5.2, 4))
    plots.class_matrix(ax, matrix, classes, cbar_kws={"label": "mean probability"})
    ax.set(xlabel="other class", ylabel="true class")
    return figure
