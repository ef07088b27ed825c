"""Figures and tables of chapter 4, on reversed maximization.

Functions of ``recordings`` draw recorded rows, one part per profile; the others draw the networks of one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from kdsec.attacks.extraction import RECOVERY, ExtractionResult, powers
from kdsec.data import ImageSet
from kdsec.data.names import GROUPS
from kdsec.logits import READINGS, negatives, reverse
from kdsec.report import plots, summary
from kdsec.report.panels import (
    Markdown,
    Recordings,
    by_hand,
    copies,
    copies_map,
    heat_map,
    most_taken,
    stack,
    stack_parts,
    verdict,
)

TEACHERS = ("normal", "smoothed", "nasty", "stingy", "AST", *READINGS)
MEASURED = (
    *("test accuracy", "strength", "agreement with honest", "agreement with witness"),
    *("likeliest negative in own group", "unevenness", "largest negative", "label's probability"),
    "realised",
)
WRAPPERS = ("as they are", "exact reversal", "rounded", "top classes", "MAD")
COST = ("L1 distance", "rank correlation", "calibration error")
STORED = ("soft labels", "negatives dropped", "negatives negated", "smoothed hard labels")
CUSTOMER = (
    *("test accuracy", "top-3 accuracy", "top-5 accuracy", "log loss", "Brier score"),
    *("calibration error", "risk"),
)


def teachers_in(frame: pd.DataFrame) -> list[str]:
    """The teachers of this chapter that have rows, in the order of the tables."""
    return [arm for arm in TEACHERS if arm in set(frame["arm"])]


def facts(frame: pd.DataFrame, wanted: Sequence[str]) -> Markdown:
    """Table of the teachers: means over seeds of the wanted metrics, as far as they were recorded."""
    plain = frame[frame["setting"] == ""]
    mean = plain.groupby(["arm", "metric"])["value"].mean()
    columns = [metric for metric in wanted if metric in set(plain["metric"])]

    def text(arm: str, metric: str) -> str:
        value = mean.get((arm, metric), math.nan)
        form = "{:.1%}" if metric.endswith("accuracy") else "{:.2f}"
        return "" if math.isnan(value) else form.format(value)

    rows = [
        {"teacher": arm} | {metric: text(arm, metric) for metric in columns} for arm in teachers_in(frame)
    ]
    return Markdown(summary.markdown(pd.DataFrame(rows)))


def students(recordings: Recordings) -> Figure:
    """Students' accuracy by teacher, with all labels and with none; dashed lines are students without it."""

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        own = rows[rows["model"] == settings.student]
        for ax, labels in zip(part.subplots(1, 2, sharey=True), ("all", "none"), strict=True):
            lines = ["labels", "label smoothing"] if labels == "all" else ["normal"]
            plots.arm_dots(ax, own, teachers_in(rows), setting=f"labels={labels}", lines=lines)
            title = "no labels" if labels == "none" else "all labels"
            ax.set(title=title, xlabel="students' test accuracy (%)")
        tested = own[(own["metric"] == "test accuracy") & (own["setting"] == "labels=none")]
        level = 100 * tested.groupby("arm")["value"].mean()
        gap = level["normal"] - level[settings.readings[0]]
        found = f"{settings.readings[0]} takes {gap:.1f} points" if gap > 0 else "reversal takes nothing"
        part.suptitle(f"No labels, at the papers' temperature: {found}", fontsize=11)

    return stack_parts(recordings, draw, 7.2, lambda rows, settings: 0.24 * len(teachers_in(rows)) + 1.5)


def trade_off(recordings: Recordings) -> Figure:
    """Student's accuracy against teacher's, a point per strength; dotted: equal losses."""

    def draw(ax: Axes, rows: pd.DataFrame, settings: Any) -> None:
        _trade_off(ax, rows, settings)
        ax.set_title("What each strength costs the teacher and takes from the student")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return stack(recordings, draw, 7.2, lambda settings: 3.4)


def _trade_off(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
    wide = summary.expand(frame[frame["metric"] == "test accuracy"]).reindex(
        columns=["arm", "model", "value", "strength", "labels", "temperature"]
    )
    student = wide[
        (wide["model"] == settings.student) & (wide["labels"] == "none") & wide["temperature"].isna()
    ]
    teacher = wide[wide["model"] == settings.teacher]
    keys = ["arm", "strength"]
    means = [100 * rows.groupby(keys)["value"].mean() for rows in (teacher, student)]
    tried = pd.concat(dict(zip("xy", means, strict=True)), axis=1).dropna()
    for arm in ("normal", "smoothed", "stingy"):
        x, y = (
            100 * rows.loc[(rows["arm"] == arm) & rows["strength"].isna(), "value"].mean()
            for rows in (teacher, student)
        )
        ax.plot(x, y, "o", color=plots.colour(arm), label=arm)
        if arm == "normal":
            ax.axline((x, y), slope=1, color="#7F7F7F", ls=":")
    for arm, rows in tried.groupby(level="arm", sort=False):
        ax.plot(rows["x"], rows["y"], marker="o", color=plots.colour(arm), label=arm)
    ax.set(xlabel="teacher's test accuracy (%)", ylabel="student's (%)")
    ax.grid(color="#DDDDDD", lw=0.8)


def _part(grid: pd.DataFrame, names: Sequence[str], arms: Sequence[str]) -> pd.DataFrame:
    """The rows and columns that were recorded, in this order."""
    return grid.reindex([name for name in names if name in grid.index])[
        [arm for arm in arms if arm in grid.columns]
    ]


# What thieves make of the negatives, for the best of each kind.
KINDS = {
    "best ignoring": ("hard labels", "smoothed hard labels", "negatives dropped"),
    "best undoing": ("negatives negated", RECOVERY),
}
# Chosen by agreement with the teacher, the last by labels.
CHOSEN = ("best", *KINDS, "best, labelled")


def by_kind(results: Sequence[ExtractionResult]) -> dict[str, list[ExtractionResult]]:
    """The results of each of ``KINDS``, without those of which no attack was run."""
    found = {kind: [each for each in results if each.name in names] for kind, names in KINDS.items()}
    return {kind: group for kind, group in found.items() if group}


def thieves(recordings: Recordings) -> Figure:
    """Test accuracy of every attack on every teacher; below, those chosen, and foreign images."""

    def draw(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
        grid = copies(frame)
        names = [name for name in (*settings.thieves, *powers(settings.powers)) if name in grid.index]
        last = [name for name in (*CHOSEN, "foreign best") if name in grid.index]
        copies_map(ax, _part(grid, [*names, *last], settings.suspects), by_hand(grid))
        ax.axhline(len(names), color="white", lw=4)
        ax.set_title(most_taken(frame, settings.suspects))

    return stack(recordings, draw, 6.8, lambda at: 0.34 * (len(at.thieves) + len(at.powers)) + 2.2)


def temperatures(recordings: Recordings) -> Figure:
    """Students without labels by the temperature of their distillation, a curve per teacher."""

    def draw(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
        wide = summary.expand(frame)
        chosen = (wide["model"] == settings.student) & (wide["labels"] == "none")
        rows = frame[chosen & (frame["metric"] == "test accuracy") & frame["setting"].str.contains("temp")]
        plots.arm_curves(ax, rows, settings.suspects, x="temperature")
        own = 100 * summary.expand(rows).pivot_table("value", "temperature", "arm")
        gap = (own["normal"] - own[settings.readings[0]]).round(1)
        found = ", ".join(f"{each:+.1f} at τ = {tau:g}" for tau, each in gap.items())
        ax.set_title(f"What {settings.readings[0]} takes from its student, in points: {found}")
        ax.set(xlabel="temperature of the student's distillation")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return stack(recordings, draw, 6.4, lambda at: 3.0)


def wrappers(frame: pd.DataFrame, settings: Any) -> Markdown:
    """Training-free protections: what they cost a customer, and the thieves on the stored table."""
    grid = copies(frame)
    plain = frame[frame["setting"] == ""].groupby(["arm", "metric"])["value"].mean()
    rows = []
    for arm in WRAPPERS:
        cost = {metric: f"{plain[arm, metric]:.2f}" for metric in COST}
        stolen = {f"thief: {name}": f"{grid.loc[name, arm]:.1f} %" for name in (*STORED, "best")}
        rows.append({"answers": arm, "accuracy": f"{plain[arm, 'test accuracy']:.1%}"} | cost | stolen)
    return Markdown(summary.markdown(pd.DataFrame(rows)))


def data_free(recordings: Recordings) -> Figure:
    """Test accuracy of students that were trained without data, by way of attack and teacher."""

    def draw(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
        names = ["game", "generator", *(f"inversion, {target}" for target in settings.datafree_targets)]
        arms = [arm for arm in TEACHERS if arm in settings.drawn_from]
        grid = _part(copies(frame, "datafree"), [*names, "best"], arms)
        heat_map(ax, grid, vmin=0, vmax=100)
        best = copies(frame, "datafree").loc["best"]
        gap = best["normal"] - best[settings.readings[0]]
        ax.set_title(f"Best attack without data: {settings.readings[0]} takes {gap:.1f} points")

    return stack(recordings, draw, 6.8, lambda at: 0.4 * len(at.datafree_targets) + 2.4)


def crossed(recordings: Recordings) -> Figure:
    """Students of images drawn from one network and answers of another."""

    def draw(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
        heat_map(ax, copies(frame, "drawn"), vmin=0, vmax=100)
        ax.set(xlabel="answers of", ylabel="images drawn from")

    return stack(recordings, draw, 3.6, lambda at: 2.2)


def explain_readings() -> Markdown:
    """Table of the readings of "reversed"."""
    rows = pd.DataFrame(READINGS.items(), columns=["reading", "what the negatives are taught"])
    return Markdown(summary.markdown(rows))


def show_verdict(recordings: Recordings) -> None:
    """Tables of the teachers at every profile."""
    folded = {
        "The teachers": lambda settings, rows: facts(rows, MEASURED),
        "What they are worth to a customer": lambda settings, rows: facts(rows, CUSTOMER),
    }
    verdict("reversed-maximization", recordings, folded, claims=False)


FIGURES: dict[str, Callable[[Recordings], Figure]] = {
    "students": students,
    "thieves": thieves,
    "data-free": data_free,
    "trade-off": trade_off,
}


def among_negatives(logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Probabilities ``(N, K)`` among the negatives alone; zero for the label itself."""
    log_p = negatives(logits, labels, temperature)
    is_negative = ~F.one_hot(labels, logits.shape[1]).bool()
    return torch.zeros_like(logits.float()).masked_scatter(is_negative, log_p.exp())


def own_group(logits: Tensor, test: ImageSet, temperature: float) -> dict[str, float]:
    """Share of images whose likeliest negative is in the label's super-class, where there are such."""
    groups = GROUPS.get(test.name)
    if groups is None:
        return {}
    group = [next(name for name in groups if each in groups[name]) for each in test.classes]
    likeliest = among_negatives(logits, test.labels, temperature).argmax(1).tolist()
    hits = [group[a] == group[b] for a, b in zip(likeliest, test.labels.tolist(), strict=True)]
    return {"likeliest negative in own group": sum(hits) / len(hits)}


def _by_group(test: ImageSet) -> list[int]:
    """The classes, members of a super-class beside each other."""
    groups = GROUPS.get(test.name)
    if groups is None:
        return list(range(test.num_classes))
    return [test.classes.index(name) for members in groups.values() for name in members]


def class_maps(logits: Mapping[str, Tensor], test: ImageSet, temperature: float, **options: Any) -> Figure:
    """Mean probabilities among the negatives, label by wrong class, a map per teacher on one colour scale."""
    order = _by_group(test)
    named = test.num_classes <= 20 and len(logits) == 1
    names: Any = [test.classes[k] for k in order] if named else []
    looks: dict[str, Any] = {} if named else {"xticklabels": False, "yticklabels": False}
    if test.num_classes > 20:
        looks["linewidths"] = 0
    size = (5.6, 4.6) if len(logits) == 1 else (2.55 * len(logits), 2.9)
    figure, axes = plt.subplots(1, len(logits), figsize=size, squeeze=False)
    for ax, (arm, each) in zip(axes[0], logits.items(), strict=True):
        p = among_negatives(each, test.labels, temperature)
        one_hot = F.one_hot(test.labels, p.shape[1]).to(p)
        matrix = (one_hot.T @ p / one_hot.sum(0).clamp(min=1)[:, None]).cpu()[order][:, order]
        plots.class_matrix(ax, matrix, names, **(looks | options))
        ax.set_title(arm)
    if len(logits) == 1:
        axes[0, 0].set(xlabel="wrong class", ylabel="label")
    return figure


def readings(test: ImageSet, index: int, logits: Tensor, temperature: float) -> Figure:
    """One image, the softened honest answer ``logits`` (1, K) to it, and what each reading makes of that."""
    label = test.labels[index : index + 1]
    targets = {"honest": logits} | {
        name: reverse(logits, label, name, temperature) for name in READINGS if name not in ("away", "copy")
    }
    bars = {name: (each / temperature).softmax(1)[0].cpu() for name, each in targets.items()}
    order = _by_group(test)
    short = [test.classes[k][:5] for k in order] if test.num_classes <= 20 else []
    turned = 90 if short and max(map(len, short)) > 2 else 0
    figure, axes = plt.subplots(2, 4, figsize=(7.4, 3.9))
    plots.picture(axes[0, 0], test.float_images(slice(index, index + 1))[0])
    axes[0, 0].set_title(f"label: {test.classes[int(label)]}", fontsize=10)
    for ax, (name, p) in zip(axes.flat[1:], bars.items(), strict=False):
        shades = [plots.BLACK if k == int(label) else plots.ORANGE for k in order]
        ax.bar(range(len(p)), p[order], color=shades)
        ax.set_title(name, fontsize=10)
        ax.set_ylim(0, 1.1 * max(each.max() for each in bars.values()))
        ax.set_xticks(range(len(short)), short, rotation=turned, fontsize=8)
        ax.tick_params(axis="y", labelsize=8)
        if ax not in (axes[0, 1], axes[1, 0]):
            ax.set_yticklabels([])
    for ax in axes.flat[1 + len(bars) :]:
        ax.axis("off")
    return figure
