"""The picture that a link to the book shows elsewhere: the title, and one figure from the records."""

from __future__ import annotations

import itertools
import pathlib
from typing import Any

import yaml

from kdsec.report import plots, records, tables

ROOT = pathlib.Path(__file__).resolve().parent.parent
SIZE = (1200, 630)  # pixels, what most sites crop a preview to
PAPER, INK, QUIET = "#FFFFFF", "#1F2A37", "#5B6673"
# Accuracy under attack by whether the attacker knows of the defence: the whole book in one picture.
CHAPTER, ARMS = "purification", ("undefended", "ensemble, averaged", "end to end", "PGD-AT")
NAMES = {
    "undefended": "no defence",
    "ensemble, averaged": "purifier",
    "end to end": "purifier, end to end",
    "PGD-AT": "adversarial training",
}
THREATS = {"threat=grey box": "attacker does\nnot know", "threat=worst case": "attacker\nknows"}


def draw(folder: Any, path: pathlib.Path) -> None:
    """Write the picture, ``SIZE`` pixels, as PNG; without records of the figure, the title alone.

    Args:
        folder: of records, as ``kdsec run --out`` wrote them.
        path: of the picture.
    """
    import matplotlib.pyplot as plt

    title = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    with plt.rc_context({"font.family": "DejaVu Sans", "figure.constrained_layout.use": False}):
        figure = plt.figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100, facecolor=PAPER)
        _networks(figure.add_axes((0.055, 0.70, 0.30, 0.22)))
        words = title.split()
        for row, line in enumerate([" ".join(words[:2]), " ".join(words[2:])]):
            figure.text(0.055, 0.575 - 0.115 * row, line, size=36, weight="bold", color=INK, va="center")
        about = "A book to read, run and check:\nfive papers on the security of\nknowledge distillation"
        figure.text(0.055, 0.29, about, size=19, color=QUIET, va="center", linespacing=1.45)
        figure.text(0.055, 0.09, "kdsec", size=21, weight="bold", color=plots.BLUE, va="center")
        rows = _recorded(folder)
        if rows is not None:
            _slopes(figure.add_axes((0.565, 0.13, 0.16, 0.64)), rows)
        figure.savefig(path, dpi=100, facecolor=PAPER)
        plt.close(figure)


def _recorded(folder: Any) -> Any:
    """Means over seeds, arms by threats, in per cent, of the first profile that has them all; or None."""
    for profile in ("small", "quick"):
        rows = records.read(folder, profile, CHAPTER)
        rows = rows[(rows["metric"] == "accuracy") & rows["arm"].isin(ARMS) & rows["setting"].isin(THREATS)]
        means = 100 * rows.groupby(["arm", "setting"])["value"].mean().unstack()
        if means.shape == (len(ARMS), len(THREATS)) and means.notna().all(axis=None):
            means.attrs["dataset"] = tables.in_print(rows["dataset"].iloc[0])
            means.attrs["seeds"] = rows["seed"].nunique()
            return means
    return None


def _slopes(ax: Any, means: Any) -> None:
    """One line an arm, from what it holds in the grey box to what it holds in the worst case."""
    ax.set_title(
        f"Accuracy under attack, {means.attrs['dataset']}",
        size=15,
        color=INK,
        loc="left",
        pad=46,
        weight="bold",
    )
    left, right = (means[key] for key in THREATS)
    for arm in ARMS:
        colour = plots.colour(arm)
        ax.plot([0, 1], [left[arm], right[arm]], color=colour, lw=5, marker="o", ms=11, clip_on=False)
        ax.annotate(
            f"{left[arm]:.0f} %",
            (0, left[arm]),
            (-14, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            size=13.5,
            color=colour,
        )
    for arm, height in _apart(right, 4.5).items():
        ax.annotate(
            f"{right[arm]:.0f} %  {NAMES[arm]}",
            (1, height),
            (14, 0),
            textcoords="offset points",
            va="center",
            size=13.5,
            color=plots.colour(arm),
        )
    for place, text in enumerate(THREATS.values()):
        ax.annotate(
            text,
            (place, 1),
            (0, 10),
            xycoords=("data", "axes fraction"),
            ha="center",
            size=12,
            textcoords="offset points",
            color=QUIET,
        )
    ax.set(xlim=(0, 1), ylim=(0, max(left.max(), right.max()) * 1.04))
    ax.axis("off")
    ax.text(0, -0.12, f"mean of {means.attrs['seeds']} seeds", transform=ax.transAxes, size=12, color=QUIET)


def _apart(values: Any, least: float) -> dict[str, float]:
    """Heights for labels at ``values``, in their order and at least ``least`` apart."""
    placed: dict[str, float] = {}
    below = -least
    for arm, value in values.sort_values().items():
        below = placed[arm] = max(float(value), below + least)
    return placed


def _networks(ax: Any) -> None:
    """The book's sign: a teacher, a lock, a student."""
    layers = [(0.0, (0.1, 0.5, 0.9)), (0.17, (0.3, 0.7)), (0.33, (0.5,))]
    mirrored = [(0.67, (0.5,)), (0.83, (0.3, 0.7)), (1.0, (0.5,))]
    for net, colour, size in ((layers, plots.BLUE, 13), (mirrored, plots.RED, 11)):
        for (x, ys), (x_next, ys_next) in itertools.pairwise(net):
            for y in ys:
                for y_next in ys_next:
                    ax.plot([x, x_next], [y, y_next], color="#9AA5B1", lw=1.5, zorder=1)
        for x, ys in net:
            ax.plot([x] * len(ys), ys, "o", color=colour, ms=size, zorder=2, clip_on=False)
    ax.plot([0.33, 0.67], [0.5, 0.5], ":", color="#9AA5B1", lw=2, zorder=1)
    ax.plot([0.5], [0.45], "s", color=QUIET, ms=24, zorder=3)
    ax.plot([0.5], [0.66], "o", mfc="none", mec=QUIET, mew=4, ms=17, zorder=2)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.axis("off")
