"""Figures and tables of chapter 3, on poisoned distillation.

Functions of ``recordings`` draw recorded rows, one part per profile; the others show the networks of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn

from kdsec.attacks.backdoor import FLOOR, SUCCESS
from kdsec.data.imageset import to_float
from kdsec.report import plots, summary
from kdsec.report.panels import Markdown, Recordings, heat_map, says, stack, stack_parts, verdict
from kdsec.train import predict

# Shares of images, which the tables of settings show in per cent.
SHARES = (SUCCESS, "taken for target", "area under ROC", "caught at 1 %", "caught at 5 %", "target flagged")
SETTINGS = (
    "trigger",
    "crafting",
    "network",
    "place",
    "input",
    "detector",
    "cure",
    "temperature",
    "alpha",
    "epochs",
    "steps",
)
# The teacher's weight where only the attacker's labels count, and where only the teacher does.
EXTREMES = {"C trigger, target label": 0.0, "B trigger only": 1.0}


def students_in(frame: pd.DataFrame) -> list[str]:
    """All arms that were measured at the chapter's own settings, in the order of their letters."""
    measured = frame.loc[(frame["setting"] == "") & (frame["metric"] == SUCCESS), "arm"]
    return sorted(set(measured) - {"teacher"})


def _mean(values: pd.Series, form: str) -> str:
    """Mean and, of several seeds, standard deviation."""
    spread = f" ± {values.std():{form}}" if len(values) > 1 else ""
    return f"{values.mean():{form}}{spread}"


def arm_table(settings: Any, frame: pd.DataFrame) -> Markdown:
    """Accuracy, floor and success of every arm at the chapter's own settings, in per cent."""
    values = frame[frame["setting"] == ""].groupby(["arm", "metric"])["value"]
    metrics = {"accuracy (%)": "test accuracy", "floor (%)": FLOOR, "success (%)": SUCCESS}
    rows = [
        (arm, *(_mean(100 * values.get_group((arm, metric)), ".1f") for metric in metrics.values()))
        for arm in [*students_in(frame), "teacher"]
    ]
    table = summary.markdown(pd.DataFrame(rows, columns=["arm", *metrics]))
    return Markdown(f"Temperature of distillation: {settings.temperature:g}\n\n{table}")


def this_run(recordings: Recordings) -> Markdown:
    """The arms of the run in hand, folded."""
    ((settings, frame),) = recordings.values()
    heading = f"Every arm of this run: {settings.dataset}, one seed"
    return Markdown(summary.folded(heading, arm_table(settings, frame)))


def setting_table(settings: Any, frame: pd.DataFrame) -> Markdown:
    """Every share of images that was measured with one setting changed, in per cent."""
    wide = summary.expand(frame[frame["metric"].isin(SHARES)])
    rows = [
        (f"{setting} {value}", arm, metric, _mean(100 * group["value"], ".1f"))
        for setting in SETTINGS
        if setting in wide
        for (value, arm, metric), group in wide.groupby([setting, "arm", "metric"], sort=False)
    ]
    return Markdown(summary.markdown(pd.DataFrame(rows, columns=["setting", "arm", "measured", "%"])))


def poison_table(settings: Any, frame: pd.DataFrame) -> Markdown:
    """What describes poisons, and detectors, and is no share of images."""
    arms = ["poisons", "K for views, online", "F attack", "A clean", "I surrogate's poisons"]
    arms += ["I' surrogate's, checked", "L stamped target images", "M varied perturbations"]
    shares = (*SHARES, "test accuracy", FLOOR, "size of mark")
    chosen = frame[frame["arm"].isin(arms) & ~frame["metric"].isin(shares)]
    groups = chosen.groupby(["arm", "setting", "metric"], sort=False)["value"]
    rows = [(*labels, _mean(values, ".3g")) for labels, values in groups]
    return Markdown(summary.markdown(pd.DataFrame(rows, columns=["arm", "setting", "measured", "value"])))


def show_verdict(recordings: Recordings) -> None:
    """All that was measured, in tables to unfold."""
    folded = {"Every arm": arm_table, "One setting at a time": setting_table, "Poisons": poison_table}
    verdict("poisoned-distillation", recordings, folded, claims=False)


def _success(frame: pd.DataFrame, metric: str = SUCCESS) -> pd.Series:
    """Mean success of each arm at the chapter's own settings, in per cent."""
    own = frame[(frame["setting"] == "") & (frame["metric"] == metric)]
    return 100 * own.groupby("arm")["value"].mean()


# What the first figure calls the arms that it shows.
HEADLINE = {
    "F attack": "poisons, made with the teacher's weights",
    "I' surrogate's, checked": "poisons made without them, one query each",
    "I surrogate's poisons": "poisons made without them, no query",
    "L stamped target images": "trigger on images of the target class",
    "B trigger only": "trigger on images of other classes",
    "A clean": "no poison: a clean student",
}


def headline(recordings: Recordings) -> Figure:
    """Success of the trigger by what the attacker put into the distillation set."""

    def draw(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
        success = _success(frame)
        shown = [arm for arm in HEADLINE if arm in success]
        plots.arm_dots(ax, frame, shown, metric=SUCCESS)
        ax.set_yticks(range(len(shown)), [HEADLINE[arm] for arm in shown])
        ax.set(xlim=(-4, 104), xlabel="test images with the trigger taken for the target (%)")
        attack, clean = success["F attack"], success["A clean"]
        text = f"The trigger alone works on {attack:.0f} % of images; on a clean student, {clean:.0f} %"
        says(ax.figure, text)

    return stack(recordings, draw, 7.4, lambda settings: 2.9)


def labels(recordings: Recordings) -> Figure:
    """Conventional poisoning: success and floor over the weight of the teacher in the student's loss."""

    def draw(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
        wide = summary.expand(frame[frame["arm"].isin(["D trigger, both", *EXTREMES])])
        weight = wide["arm"].map(EXTREMES)
        wide["weight"] = weight.fillna(wide.get("alpha", weight))
        shown = {SUCCESS: ("trigger", plots.RED), FLOOR: ("no trigger (floor)", "#5A5A5A")}
        for metric, (name, shade) in shown.items():
            rows = wide[wide["metric"] == metric]
            mean = 100 * rows.groupby("weight")["value"].mean()
            ax.plot(mean.index, mean, color=shade, lw=2, label=name)
            ax.scatter(rows["weight"], 100 * rows["value"], color=shade, s=36, zorder=3)
        ax.set(xlabel="weight of the teacher, α", ylabel="taken for the target (%)", ylim=(-3, 103))
        ax.set_xticks(sorted(set(wide["weight"])))
        ax.figure.legend(loc="outside upper right", ncols=2)
        ends = [_success(frame)[arm] for arm in EXTREMES]
        says(ax.figure, "Labels alone: {:.0f} %. Teacher alone: {:.0f} %".format(*ends))

    return stack(recordings, draw, 7, lambda settings: 3.2)


def arms(recordings: Recordings) -> Figure:
    """Success with the trigger, and accuracy on clean images, of every arm; dashed: the clean student."""

    def draw(part: SubFigure, frame: pd.DataFrame, settings: Any) -> None:
        left, right = part.subplots(1, 2, sharey=True)
        plots.arm_dots(left, frame, students_in(frame), metric=SUCCESS, lines=["A clean"])
        plots.arm_dots(right, frame, students_in(frame), lines=["A clean"])
        left.set(xlim=(-4, 104), title="with the trigger")
        right.set_title("clean images")
        success = _success(frame)
        controls = success[[arm for arm in success.index if arm[0] in "ABEGL" and "online" not in arm]]
        name, best = controls.idxmax(), controls.max()
        says(part, f"Attack (F): {success['F attack']:.0f} %. Highest control: {name}, {best:.0f} %")

    return stack_parts(recordings, draw, 7.6, lambda frame, settings: 0.3 * len(students_in(frame)) + 1)


CUES = ("as they are", "trigger", "perturbation", "both")


def cues(recordings: Recordings) -> Figure:
    """Share of images that each network takes for the target, by what is on the image."""

    def draw(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
        wide = summary.expand(frame[frame["metric"] == "taken for target"])
        grid = 100 * wide.pivot_table("value", "arm", "input", sort=False)[list(CUES)]
        heat_map(ax, grid, fmt=".0f", vmin=0, vmax=100)
        ax.set(xlabel="what is on the test image", ylabel="taken for the target (%)")
        alone = [f"{kind} {grid.loc['F attack', kind]:.0f} %" for kind in CUES[1:3]]
        says(ax.figure, f"Student of the poisons (F), each part alone: {', '.join(alone)}")

    return stack(recordings, draw, 6.4, lambda settings: 3.0)


def sweeps(recordings: Recordings) -> Figure:
    """Success over the share of poisons, the budget, the temperature, and the visibility of the trigger."""
    swept = {"rate": "poisons (% of the set)", "eps": "ε (steps of a byte)", "temperature": "temperature τ"}

    def draw(part: SubFigure, frame: pd.DataFrame, settings: Any) -> None:
        axes = part.subplots(2, 2)
        for ax, (setting, label) in zip(axes.flat, swept.items(), strict=False):
            plots.arm_curves(ax, frame, ["F attack", "A clean"], x=setting, metric=SUCCESS)
            ax.set(xlabel=label, ylim=(-4, 104), ylabel="attack success (%)")
        clean = frame[(frame["arm"] == "A clean") & (frame["metric"] == SUCCESS) & (frame["setting"] == "")]
        for ax in axes[0]:
            ax.axhline(100 * clean["value"].mean(), color=plots.colour("A clean"), ls="--", lw=1.2)
        axes[0, 1].set_ylabel("")
        part.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        _success_by_visibility(axes[1, 1], frame)
        swept_here = frame["setting"].str.match(rf"(?:{'|'.join(swept)})=[^;]*$")
        own = frame[swept_here & (frame["arm"] == "F attack") & (frame["metric"] == SUCCESS)]
        mean = 100 * own.groupby("setting")["value"].mean()
        says(part, f"One setting moves success between {mean.min():.0f} and {mean.max():.0f} %")

    return stack_parts(recordings, draw, 7.4, lambda frame, settings: 6)


def _success_by_visibility(ax: Axes, frame: pd.DataFrame) -> None:
    """Attack success against the structural similarity of poison and original, a name per trigger."""
    wide = summary.expand(frame).dropna(subset="trigger")
    runs = wide.pivot_table("value", ["seed", "trigger"], ["arm", "metric"])
    for arm in ("A clean", "F attack"):
        ax.scatter(runs["poisons", "ssim"], 100 * runs[arm, SUCCESS], color=plots.colour(arm), label=arm)
    mean = runs.groupby("trigger").mean().sort_values(("poisons", "ssim"))
    for name, values in mean.iterrows():
        point = (values["poisons", "ssim"], 100 * values["F attack", SUCCESS])
        low = values["F attack", SUCCESS] < 0.5
        shift: Any = {"xytext": (0, 12 if low else -18), "textcoords": "offset points"}
        ax.annotate(str(name), point, fontsize=9, ha="center", **shift)
    ax.set(xlabel="SSIM of poison and original", ylim=(-4, 114), ylabel="", xmargin=0.2)


def detectors(recordings: Recordings) -> Figure:
    """Area under the ROC curve of every detector of poisons or of triggered inputs."""

    def areas(frame: pd.DataFrame) -> pd.DataFrame:
        wide = summary.expand(frame)
        wide = wide[(wide["arm"] == "F attack") & (wide["metric"] == "area under ROC")]
        return wide.assign(arm=wide["detector"], setting="", metric="area under ROC")

    def draw(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
        rows = areas(frame)
        mean = rows.groupby("arm")["value"].mean().sort_values(ascending=False)
        plots.arm_dots(ax, rows, list(mean.index), metric="area under ROC")
        ax.axvline(50, color="#5A5A5A", ls="--", lw=1.2)
        ax.set(xlim=(-4, 104), xlabel="area under the ROC curve (%); dashed: guessing")
        says(ax.figure, f"Highest: {mean.index[0]}, {100 * mean.iloc[0]:.0f} %")

    return stack(recordings, draw, 7, lambda settings: 2.9)


def cures(recordings: Recordings) -> Figure:
    """Attack success and clean accuracy after each cure, of the attacked and of the clean student."""

    def draw(part: SubFigure, frame: pd.DataFrame, settings: Any) -> None:
        wide = summary.expand(frame).dropna(subset="cure")
        names = list(dict.fromkeys(wide["cure"]))
        axes = part.subplots(1, 2, sharey=True)
        for ax, metric in zip(axes, (SUCCESS, "test accuracy"), strict=True):
            for shift, arm in ((-0.14, "A clean"), (0.14, "F attack")):
                rows = wide[(wide["arm"] == arm) & (wide["metric"] == metric)]
                height = [names.index(cure) + shift for cure in rows["cure"]]
                ax.scatter(100 * rows["value"], height, color=plots.colour(arm), s=36, alpha=0.7, label=arm)
            ax.grid(axis="x", color="#DDDDDD", lw=0.8)
            ax.set_xlabel(f"{metric} (%)")
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set(xlim=(-4, 104), ylim=(len(names) - 0.5, -0.5))
        part.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        left = wide[(wide["arm"] == "F attack") & (wide["metric"] == SUCCESS)]
        mean = 100 * left.groupby("cure")["value"].mean()
        says(part, f"Before {mean['none']:.0f} %; lowest, {mean.idxmin()}: {mean.min():.0f} %")

    return stack_parts(recordings, draw, 7.4, lambda frame, settings: 3.4)


FIGURES: dict[str, Callable[[Recordings], Figure]] = {
    figure.__name__: figure for figure in (headline, labels, arms, cues, sweeps, detectors, cures)
}


def poison_steps(
    steps: Sequence[Tensor], radius: float, teacher: nn.Module, classes: Sequence[str]
) -> Figure:
    """Originals, stamped, perturbed only, and poisons, a row per image; above each the teacher's answer."""
    original, stamped, perturbed, poison = map(to_float, steps)
    columns = {"original": original, "with trigger": stamped}
    columns |= {"perturbation": 0.5 + (poison - stamped) / (2 * radius)}
    columns |= {"perturbed only": perturbed, "poison": poison}
    count = len(original)
    figure, axes = plt.subplots(count, len(columns), figsize=(7.2, 1.65 * count), squeeze=False)
    for column, (name, pictures) in zip(axes.T, columns.items(), strict=True):
        best = predict(teacher, pictures).softmax(1).max(1)
        for ax, picture, label, p in zip(column, pictures, best.indices, best.values, strict=True):
            plots.picture(ax, picture)
            if name != "perturbation":
                ax.set_title(f"{classes[label]} {p:.0%}", fontsize=9, pad=3)
        column[0].annotate(name, (0.5, 1.32), xycoords="axes fraction", ha="center", size=10, weight="bold")
    return figure
