"""Figures and tables of chapter 2, on teachers that are trained to mislead students.

Functions of ``recordings`` draw recorded rows, one part per profile; the others draw the networks of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn

from kdsec.data import ImageSet
from kdsec.defenses.sparse_teacher import exponential_predictive_divergence as epd
from kdsec.report import interactive, plots, summary
from kdsec.report.panels import (
    Markdown,
    Recordings,
    by_hand,
    copies,
    copies_map,
    current,
    main,
    most_taken,
    realised,
    stack,
    stack_parts,
    verdict,
)
from kdsec.train import predict

TEACHERS = ("normal", "smoothed", "nasty", "stingy", "AST")
SUSPECTS = ("normal", "nasty", "stingy", "AST")  # whom the thieves attack
FOREIGN = ("soft labels",)  # what a thief with foreign images tries
CHOICES = {"best": "chosen (agreement)", "best, labelled": "chosen (validation labels)"}
PATHS = ("normal", "smoothed", "stingy", "nasty", "AST")
HEAT = (plots.BLUE, plots.GREEN, plots.ORANGE, plots.RED)  # temperatures from low to high
CHOSEN = "none, T chosen"  # students without labels who choose their temperature
# How many labels students know, and the students without a teacher to compare with there.
LABELS = {"all": ["labels", "label smoothing"], "few": ["labels"], "none": []}


def teacher_table(settings: Any, rows: pd.DataFrame) -> Markdown:
    """A row per teacher, means over seeds: accuracy, decisions, calibration, entropy, shared change."""
    plain = rows[(rows["model"] == settings.teacher) & ~rows["setting"].str.contains("strength")]

    columns: dict[str, tuple[str, str, dict[str, float]]] = {
        "test accuracy": ("{:.1%}", "test accuracy", {}),
        "agreement": ("{:.1%}", "agreement", {}),
        "calibration error": ("{:.3f}", "calibration error", {}),
        "entropy": ("{:.2f}", "entropy", {"temperature": 1.0}),
        "softened": ("{:.2f}", "entropy", {"temperature": settings.temperature}),
        "shared change": ("{:.0%}", "shared change", {}),
    }
    table = pd.DataFrame({"teacher": TEACHERS})
    for column, (form, metric, setting) in columns.items():
        means = [summary.select(plain, arm, metric, **setting).mean() for arm in TEACHERS]
        table[column] = [form.format(mean) for mean in means]
    return Markdown(summary.markdown(table))


def student_table(settings: Any, rows: pd.DataFrame) -> Markdown:
    """Students' accuracy by teacher in per cent, with the standard deviation over seeds."""
    first, *others = settings.students
    columns = [(first, labels) for labels in LABELS] + [(student, "all") for student in others]
    tested = rows[rows["metric"] == "test accuracy"].groupby(["arm", "model", "setting"])["value"]
    level = tested.agg(["mean", "std", "count"])

    def text(arm: str, student: str, labels: str) -> str:
        place = (arm, student, f"labels={labels}")
        if place not in level.index:
            return ""
        mean, sd, seeds = level.loc[place]
        return f"{100 * mean:.1f} ± {100 * sd:.1f}" if seeds > 1 else f"{100 * mean:.1f}"

    table = [
        {"teacher": f"none: {arm}" if arm in LABELS["all"] else arm}
        | {f"{student}, {labels}": text(arm, student, labels) for student, labels in columns}
        for arm in (*LABELS["all"], *TEACHERS)
    ]
    return Markdown(summary.markdown(pd.DataFrame(table)))


def students(recordings: Recordings) -> Figure:
    """Students' accuracy by teacher, a panel per share of labels; dashed: students without a teacher."""

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        own = rows[rows["model"] == settings.students[0]]
        axes = part.subplots(1, len(LABELS), sharex=True, sharey=True)
        for ax, (labels, lines) in zip(axes, LABELS.items(), strict=True):
            plots.arm_dots(ax, own, TEACHERS, setting=f"labels={labels}", lines=lines)
            ax.set(title="no labels" if labels == "none" else f"{labels} labels", xlabel="")
        axes[1].set_xlabel("students' test accuracy (%)")
        tested = own[(own["metric"] == "test accuracy") & (own["setting"] == "labels=all")]
        level = 100 * tested.groupby("arm")["value"].mean()
        taken = level["normal"] - level[list(SUSPECTS[1:])]
        found = (
            f"{taken.idxmax()} takes {taken.max():.1f} points" if taken.max() > 0 else "none takes anything"
        )
        part.suptitle(f"With all labels, at the papers' temperature: {found}", fontsize=11)

    return stack_parts(recordings, draw, 7, lambda rows, settings: 3)


def trade_off(recordings: Recordings) -> Figure:
    """Accuracy of a student without labels against its teacher's; a path joins strengths of one defence."""

    def draw(ax: Axes, rows: pd.DataFrame, settings: Any) -> None:
        x, y = _trade_off(ax, rows, settings)
        lost = {
            arm: (x["normal"].iloc[0] - x[arm].iloc[0], y["normal"].iloc[0] - y[arm].iloc[0]) for arm in PATHS
        }
        below = [
            arm for arm, (teacher, student) in lost.items() if student > max(teacher, 0) and arm != "normal"
        ]
        ax.set_title(f"Below the line, on average: {', '.join(below) or 'none'}")
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return stack(recordings, draw, 6.4, lambda settings: 3.4)


def _trade_off(ax: Axes, rows: pd.DataFrame, settings: Any) -> tuple[pd.Series, pd.Series]:
    columns = ["arm", "model", "value", "labels", "strength"]
    wide = summary.expand(rows[rows["metric"] == "test accuracy"]).reindex(columns=columns)
    wide["strength"] = wide["strength"].fillna(-1.0)  # the headline teacher: the first of its path
    of_teacher = wide[(wide["model"] == settings.teacher) & wide["labels"].isna()]
    of_student = wide[(wide["model"] == settings.students[0]) & (wide["labels"] == _no_labels(rows))]
    x, y = (
        100 * part.groupby(["arm", "strength"], sort=False)["value"].mean()
        for part in (of_teacher, of_student)
    )
    for arm in PATHS:
        path = pd.concat([x[arm], y[arm]], axis=1, join="inner").to_numpy().T
        ax.plot(*path, color=plots.colour(arm), marker="o", lw=1.5, label=arm)
    ax.axline((x["normal"].iloc[0], y["normal"].iloc[0]), slope=1, color="#7F7F7F", ls=":", lw=1.2)
    ax.set(xlabel="teacher's test accuracy (%)", ylabel="student's (%)")
    ax.grid(color="#DDDDDD", lw=0.8)
    return x, y


def _no_labels(rows: pd.DataFrame) -> str:
    """Students without labels; older records have those at the papers' temperature only."""
    return CHOSEN if (rows["setting"] == f"labels={CHOSEN}").any() else "none"


def variants(recordings: Recordings) -> Figure:
    """Accuracy of AST and its variants, and of their students without labels, where they were trained."""
    varied = {
        profile: part
        for profile, part in current(recordings).items()
        if set(part[0].variants) <= set(part[1]["arm"]) and part[0].variants
    }

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        left, right = part.subplots(1, 2, sharey=True)
        arms = ["normal", "AST", *settings.variants]
        plots.arm_dots(left, rows[rows["model"] == settings.teacher], arms, lines=["normal"])
        own = rows[rows["model"] == settings.students[0]]
        plots.arm_dots(right, own, arms, setting=f"labels={_no_labels(rows)}", lines=["AST"])
        left.set(title="teacher", xlabel="test accuracy (%)")
        right.set(title="student, no labels", xlabel="test accuracy (%)")

    return stack_parts(main(varied), draw, 7, lambda rows, settings: 0.3 * len(settings.variants) + 1.8)


def knobs(recordings: Recordings) -> Figure:
    """Accuracy of a student with all labels by the weight of its teacher, a line per temperature."""

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        wide = summary.expand(rows[rows["metric"].isin(["test accuracy", "validation accuracy"])])
        wide = wide[wide["alpha"].notna()]
        own = rows[rows["model"] == settings.students[0]]
        alone = 100 * summary.select(own, "labels", "test accuracy", labels="all").mean()
        arms = [arm for arm in ("normal", "AST") if arm in set(wide["arm"])]
        for ax, arm in zip(part.subplots(1, len(arms), sharey=True, squeeze=False)[0], arms, strict=True):
            parts = wide[wide["arm"] == arm].groupby("metric")
            level = {
                metric: 100 * part.pivot_table("value", "alpha", "temperature") for metric, part in parts
            }
            grid, chosen = level["test accuracy"], level["validation accuracy"].max().idxmax()
            for shade, (tau, line) in zip(HEAT, grid.items(), strict=False):
                ax.plot(line.index, line, "o-", color=shade, lw=2, label=f"τ = {tau:g}")
            ax.axhline(alone, color="#5A5A5A", ls="--", lw=1.2, label="labels alone")
            ax.grid(axis="y", color="#DDDDDD", lw=0.8)
            ax.set(title=f"{arm}: validation chooses τ = {chosen:g}", xlabel="α, weight of the teacher")
            ax.set_xticks(list(grid.index))
        part.axes[0].set_ylabel("test accuracy (%)")
        part.legend(*part.axes[0].get_legend_handles_labels(), loc="outside right center")

    return stack_parts(recordings, draw, 7, lambda rows, settings: 2.9)


def thieves(recordings: Recordings) -> Figure:
    """Accuracy of every copy of every teacher; last rows: foreign images, and the thief's own choice."""

    def draw(ax: Axes, rows: pd.DataFrame, settings: Any) -> None:
        grid = copies(rows)
        names = [name for name in settings.thieves if name in grid.index]
        last = [name for name in (*(f"foreign {each}" for each in FOREIGN), *CHOICES) if name in grid.index]
        copies_map(ax, grid.loc[[*names, *last], list(SUSPECTS)], by_hand(grid))
        ax.set_yticklabels([CHOICES.get(name, name) for name in (*names, *last)])
        ax.axhline(len(names), color="white", lw=4)
        ax.set_title(most_taken(rows, SUSPECTS))

    return stack(recordings, draw, 6.8, lambda settings: 0.34 * len(settings.thieves) + 2.2)


def show_verdict(recordings: Recordings) -> None:
    """Manipulation checks, teachers and their students at every profile."""
    folded = {
        "Was the objective reached?": lambda settings, rows: realised(rows),
        "The teachers": teacher_table,
        "Their students": student_table,
    }
    verdict("sparse-teacher", recordings, folded, ("teacher", "students"), claims=False)


FIGURES: dict[str, Callable[[Recordings], Figure]] = {
    "students": students,
    "thieves": thieves,
    "knobs": knobs,
    "trade-off": trade_off,
    "variants": variants,
}


def perturbed(model: nn.Module, clean: ImageSet, kinds: Mapping[str, Tensor]) -> Figure:
    """Rows of images by kind of perturbation, and above each the class that ``model`` sees."""
    decisions = {
        name: predict(model, clean.replace(images=images)).argmax(1) for name, images in kinds.items()
    }
    titles = {name: [clean.classes[k] for k in decided] for name, decided in decisions.items()}
    return plots.picture_rows(kinds, titles)


def two_divergences() -> Figure:
    """EPD and relative entropy along straight lines from the uniform answer to q, and on to a one-hot one."""
    uniform, one_hot = torch.full((10,), 0.1), torch.eye(10)[0]
    q = F.pad(torch.tensor([0.6, 0.4]), (0, 8))
    steps = torch.linspace(0, 1, 101)[:, None]
    path = torch.cat([torch.lerp(uniform, q, steps), torch.lerp(q, one_hot, steps)])
    entropy = F.kl_div(path.clamp(min=1e-12).log(), q.expand_as(path), reduction="none").sum(1)
    where = torch.linspace(-1, 1, len(path))
    figure, ax = plt.subplots(figsize=(7, 3.4))
    ax.plot(where, [epd(q[None], p[None]) for p in path], color=plots.BLUE, lw=2, label="EPD (as coded)")
    ax.plot(where, entropy, color=plots.ORANGE, lw=2, label="relative entropy KL(q‖p)")
    ax.axhline(0, color="#7F7F7F", lw=0.8)
    ax.set_xticks([-1, 0, 1], ["uniform", "p = q", "one-hot"])
    ax.set(ylim=(-0.4, 1.7), xlabel="answer p", ylabel="divergence from q")
    ax.legend(loc="upper center")
    return figure


def answers(images: ImageSet, logits: Mapping[str, Tensor], temperature: float) -> Figure:
    """Images, and beside each a heat map of the teachers' softened probabilities, teacher by class."""
    size = (7, 1.7 * len(images) + 0.6)
    figure, axes = plt.subplots(len(images), 2, figsize=size, width_ratios=[1, 3.6])
    options: Any = {"vmin": 0, "vmax": 0.5, "cmap": "cividis", "cbar": False, "linewidths": 0.4}
    for index, (left, right) in enumerate(axes):
        plots.picture(left, images.float_images(slice(index, index + 1))[0])
        left.set_title(f"label: {images.classes[images.labels[index]]}", fontsize=9)
        rows = torch.stack([(z[index] / temperature).softmax(0) for z in logits.values()]).cpu().numpy()
        names: Any = list(images.classes) if index == len(images) - 1 else False
        sns.heatmap(rows, ax=right, yticklabels=list(logits), xticklabels=names, **options)
        right.tick_params(length=0, labelsize=9, labelrotation=0)
    axes[-1, 1].tick_params(axis="x", labelrotation=90 if max(map(len, images.classes)) > 2 else 0)
    bar: Any = {"location": "bottom", "shrink": 0.6, "extend": "max", "label": "softened probability"}
    figure.colorbar(axes[0, 1].collections[0], ax=axes, **bar)
    return figure


def explorer(images: ImageSet, logits: Mapping[str, Tensor], temperature: float) -> interactive.Live:
    """The teachers' answers to one image, with sliders for temperature and number of classes kept."""
    softened = {arm: (z / temperature).softmax(1) for arm, z in logits.items()}
    still = plots.soft_labels(images.float_images(), softened, images.classes, columns=2)
    shown = images.images, images.labels, images.classes
    return interactive.probability_explorer(logits, *shown, still=still, temperature=temperature)
