"""Figures and tables of chapter 7, where every attack meets every defence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from kdsec.attacks.backdoor import SUCCESS
from kdsec.report import interactive, plots, summary
from kdsec.report.panels import (
    Markdown,
    Recordings,
    about,
    by_hand,
    copies,
    copies_map,
    current,
    heat_map,
    main,
    most_taken,
    realised,
    stack_parts,
    verdict,
)

PLAIN = ["#ECECEC"]  # a strip of numbers without colours
FOREIGN = ("soft labels",)  # what a thief with foreign images tries
LAST = [*(f"foreign {name}" for name in FOREIGN), "best"]
DEFENDED = ["nothing", "purifier", "PGD-AT", "differentiators"]


def knows(recordings: Recordings) -> interactive.Live | Markdown:
    """What the attacker gets from each defence, without and with knowing it, at the papers' scale."""
    ((profile, (settings, rows)),) = main(recordings).items()
    groups = {
        "copies: accuracy": _both(rows, "test accuracy", settings.teachers, "thief", ("soft labels", "best")),
        "changed images: accepted and wrong": _both(rows, "harm", DEFENDED, "attack", ("PGD", "knows")),
    }
    lines = [(name, values) for group in groups.values() for name, values in group.items()]
    if not lines:
        return Markdown("Nothing is recorded yet.")
    figure, ax = plt.subplots(figsize=(6, 0.34 * len(lines) + 1))
    for place, (_, (off, on)) in enumerate(lines):
        ax.plot([100 * off, 100 * on], [place, place], color="#B0B0B0", zorder=1)
        ax.scatter([100 * off], [place], color=plots.SKY, label="does not know" if place == 0 else None)
        ax.scatter([100 * on], [place], color=plots.RED, label="knows" if place == 0 else None)
    ax.set_yticks(range(len(lines)), [name for name, _ in lines])
    ax.axhline(len(groups["copies: accuracy"]) - 0.5, color="#DDDDDD")
    ax.set(
        xlim=(-3, 103),
        ylim=(len(lines) - 0.5, -0.5),
        xlabel="accuracy of the copy; below, accepted and wrong (%)",
    )
    figure.legend(loc="outside upper right", ncols=2)
    return interactive.knows_switch(figure, groups, f"Means over seeds; {about(profile, settings, rows)}.")


def _both(
    rows: pd.DataFrame, metric: str, arms: Sequence[str], key: str, settings: tuple[str, str]
) -> dict[str, tuple[float, float]]:
    """Means of each arm at two settings; without arms that lack one."""
    found = {}
    for arm in arms:
        of = rows[(rows["arm"] == arm) & (rows["metric"] == metric)]
        values = [of.loc[of["setting"] == f"{key}={each}", "value"].mean() for each in settings]
        if all(value == value for value in values):  # nan: not recorded
            found[arm] = (round(values[0], 4), round(values[1], 4))
    return found


def thieves(recordings: Recordings, attacks: Sequence[str] = (), teachers: Sequence[str] = ()) -> Figure:
    """Teachers' accuracy above, the accuracy of every copy below; last row: the attack that was chosen.

    Args:
        recordings: settings and rows by profile.
        attacks, teachers: names to add to those of the settings.
    """
    return _thieves(recordings, attacks, teachers)[0]


def thieves_hover(recordings: Recordings) -> interactive.Live:
    """The same, with the rows behind a cell shown on hover."""
    recordings = current(recordings)
    figure, pairs = _thieves(recordings)
    if not recordings:
        return interactive.Live("heatmap", {"cells": []}, figure)
    grids = []
    for (top, bottom), (settings, rows) in zip(pairs, recordings.values(), strict=True):
        tested = rows[rows["metric"] == "test accuracy"].rename(columns={"arm": "teacher"})
        owners = tested[tested["setting"] == ""].assign(thief="none")
        wide = summary.expand(tested)
        down = [name for name in (*settings.thieves, *LAST) if name in set(wide["thief"])]
        arms = list(settings.teachers)
        grids += [
            interactive.Grid(top, owners, "thief", "teacher", ["none"], arms),
            interactive.Grid(bottom, wide, "thief", "teacher", down, arms),
        ]
    return interactive.hover_heatmap(figure, *grids)


def _thieves(
    recordings: Recordings, attacks: Sequence[str] = (), teachers: Sequence[str] = ()
) -> tuple[Figure, list[Sequence[Axes]]]:
    """The figure, and the upper and lower axes of each profile."""
    pairs: list[Sequence[Axes]] = []

    def height(rows: pd.DataFrame, settings: Any) -> float:
        return 0.4 * (len(settings.thieves) + len(LAST) + len(attacks)) + 2.2

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        names, arms = [*settings.thieves, *attacks, *LAST], [*settings.teachers, *teachers]
        top, bottom = part.subplots(2, 1, height_ratios=[1, len(names)])
        pairs.append((top, bottom))
        own = rows[(rows["metric"] == "test accuracy") & (rows["setting"] == "")]
        own = own.groupby("arm")["value"].mean()
        grid = copies(rows)
        heat_map(top, 100 * own[arms].to_frame().T, cmap=PLAIN)
        top.set_yticks([0.5], ["teacher"], rotation=0)
        top.set(xticks=[], title=most_taken(rows, arms))
        copies_map(bottom, grid.loc[[name for name in names if name in grid.index], arms], by_hand(grid))
        bottom.tick_params(axis="x", rotation=40)
        plt.setp(bottom.get_xticklabels(), ha="right")

    return stack_parts(recordings, draw, 7.4, height), pairs


def price(frame: pd.DataFrame, settings: Any, seconds: Mapping[str, float]) -> Markdown:
    """What a protection costs its owner: points of accuracy, and time of a training step.

    Args:
        frame: rows of one run.
        settings: of the chapter.
        seconds: teacher to the time of a step, where it is trained.
    """
    owners = frame[(frame["setting"] == "") & (frame["model"] == settings.teacher)]
    accuracy = owners[owners["metric"] == "test accuracy"].groupby("arm")["value"].mean()
    times = {arm: f"{each / seconds['normal']:.1f}" for arm, each in seconds.items()}
    rows = [
        {
            "teacher": arm,
            "accuracy lost (points)": f"{100 * (accuracy['normal'] - accuracy[arm]):+.1f}",
            "time of a step (normal = 1)": times.get(arm, ""),
        }
        for arm in settings.teachers
    ]
    return Markdown(summary.markdown(pd.DataFrame(rows)))


def harm(rows: pd.DataFrame) -> pd.DataFrame:
    """Images that end accepted and wrong, in per cent: a row per attack on inputs, a column per defence."""
    grid = 100 * summary.expand(rows[rows["metric"] == "harm"]).pivot_table("value", "attack", "arm")
    return grid.loc[["mimicry", "PGD", "knows"], DEFENDED]


def harm_table(rows: pd.DataFrame) -> str:
    """The same as text."""
    return summary.markdown(harm(rows).round(1).reset_index())


def inputs(recordings: Recordings) -> Figure:
    """Harm by attack on inputs and defence; below, the clean images that are right and accepted."""

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        top, bottom = part.subplots(2, 1, height_ratios=[3, 1])
        grid = harm(rows)
        heat_map(top, grid, fmt=".0f", vmin=0, vmax=100)
        clean = rows[rows["metric"] == "right and accepted"].groupby("arm")["value"].mean()
        heat_map(bottom, 100 * clean[DEFENDED].to_frame().T, fmt=".0f", cmap=PLAIN)
        known = grid.loc["knows", DEFENDED[1:]]
        found = f"{known.idxmin()} leaves least: {known.min():.0f} %"
        top.set(xticks=[], title=f"Harm by an attacker who knows the defence: {found}")
        bottom.set_yticks([0.5], ["clean, right"], rotation=0)

    return stack_parts(recordings, draw, 6.6, lambda rows, settings: 3.2)


def poisons(recordings: Recordings) -> Figure:
    """Attack success of poisoned images by teacher, and by place of the purifier."""

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        axes = part.subplots(1, 2)
        _poisons(axes, rows, list(settings.victims))
        axes[0].set_title("by teacher (grey: clean images)", fontsize=10)
        axes[1].set_title("by place of the purifier", fontsize=10)

    return stack_parts(recordings, draw, 7.6, lambda rows, settings: 0.3 * len(settings.victims) + 1.6)


def _poisons(axes: Sequence[Axes], frame: pd.DataFrame, arms: list[str]) -> None:
    rows = summary.expand(frame[frame["metric"] == SUCCESS])
    places = list(dict.fromkeys(rows["purifier"].dropna()))
    groups = [
        (axes[0], place, shade, rows[(rows["arm"] == arm) & (rows["data"] == data)])
        for place, arm in enumerate(arms)
        for data, shade in (("clean", "#B0B0B0"), ("poisoned", plots.RED))
    ] + [(axes[1], place, plots.BLUE, rows[rows["purifier"] == name]) for place, name in enumerate(places)]
    for ax, place, shade, chosen in groups:
        ax.scatter(100 * chosen["value"], [place] * len(chosen), color=shade, s=40, alpha=0.7)
    for ax, names in zip(axes, (arms, places), strict=True):
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set(xlim=(-3, 103), xlabel="attack success (%)")
        ax.grid(axis="x", color="#DDDDDD", lw=0.8)


def robustness(recordings: Recordings) -> Figure:
    """Accuracy under the worst of two attacks on inputs, of teachers and of their students."""

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        named = {
            "teacher": [arm for arm in settings.teachers if arm != "stingy"],
            "student": ["labels", "normal", "PGD-AT"],
        }
        for ax, (who, names) in zip(part.subplots(1, 2), named.items(), strict=True):
            plots.arm_dots(ax, rows, names, metric="robust accuracy", setting=f"who={who}")
            ax.set(title=f"{who}s", xlim=(-3, 103), xlabel="accuracy under attack (%)")

    return stack_parts(recordings, draw, 7.6, lambda rows, settings: 0.26 * len(settings.teachers) + 1.5)


def show_verdict(recordings: Recordings) -> None:
    """The manipulation checks at every profile."""
    folded = {"Was the objective reached?": lambda settings, rows: realised(rows)}
    verdict("crossing", recordings, folded, claims=False)


FIGURES: dict[str, Callable[[Recordings], Figure]] = {
    "thieves": thieves,
    "inputs": inputs,
    "poisons": poisons,
    "robustness": robustness,
}
