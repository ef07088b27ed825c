"""Figures and tables of chapter 5, on purification.

Functions of ``recordings`` draw recorded rows, one part per profile; the others show the networks of one run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from kdsec.attacks.gradient_masking import Check
from kdsec.defenses.purification import READINGS
from kdsec.report import plots, summary
from kdsec.report.panels import Markdown, Recordings, heat_map, says, stack, stack_parts, verdict

THREATS = ("grey box", "transfer", "rebuilt purifier", "white box", "worst case")
OTHER_THREATS = ("own gradient", "5 restarts", "AutoAttack")
RESIDUAL = ("residual, no teacher", "residual, two teachers")
UNTRAINED = ("bit depth", "median", "blur", "JPEG", "noise")
ROBUST = ("PGD-AT", "PGD-AT, purified", "PGD-AT, own purifier")


def headline(settings: Any) -> str:
    """The arm that the paper's claims are about: the ensemble's student in the first reading."""
    return f"ensemble, {settings.readings[0]}"


def defences(settings: Any) -> list[str]:
    """The arms of the main figure, from no defence to adversarially trained classifiers."""
    teachers = ("normal teacher", "adversarial teacher")
    trained = ("plain denoiser", *teachers, headline(settings), "no teacher", *RESIDUAL, "end to end")
    return ["undefended", *UNTRAINED, *trained, "PGD-AT", "TRADES"]


def ablation_arms(settings: Any) -> list[str]:
    """Every trained purifier of the chapter, the two teachers first."""
    return [
        *("normal teacher", "adversarial teacher", "student of normal", "student of adversarial"),
        *(f"ensemble, {reading}" for reading in settings.readings),
        "ensemble, reconstruction",
        *(f"ensemble, {level}" for level in settings.levels[1:]),
        *("no teacher", "no teacher, clean too", "plain denoiser", "end to end", *RESIDUAL),
    ]


def slope_arms(settings: Any) -> list[str]:
    """The five defences of the first figure."""
    return [headline(settings), RESIDUAL[1], "end to end", "PGD-AT", "TRADES"]


def curve_arms(settings: Any) -> list[str]:
    """The defences that are attacked at every budget."""
    return ["undefended", headline(settings), "end to end", "PGD-AT", "TRADES"]


def strong_arms(settings: Any) -> list[str]:
    """The defences that are attacked with more restarts."""
    return [headline(settings), "no teacher", *RESIDUAL, "end to end", "PGD-AT", "TRADES"]


def explain_readings() -> Markdown:
    """What the student and the normal teacher look at in each reading of the abstract."""
    rows = pd.DataFrame(READINGS.items(), columns=["reading", "in the normal teacher's lesson"])
    return Markdown(summary.markdown(rows))


def threat_table(frame: pd.DataFrame, arms: Sequence[str], threats: Sequence[str] = THREATS) -> Markdown:
    """Means over seeds in per cent: accuracy on the clean test set, and under each threat model."""
    wide = summary.expand(frame)
    clean = wide[(wide["metric"] == "test accuracy") & wide["threat"].isna()]
    clean = clean.groupby("arm")["value"].mean()
    mean = wide[wide["metric"] == "accuracy"].pivot_table("value", "arm", "threat")
    threats = [threat for threat in threats if threat in mean.columns]
    rows = []
    for arm in (arm for arm in arms if arm in mean.index):
        values = {threat: mean.loc[arm, threat] for threat in threats}
        texts = {threat: "" if pd.isna(value) else f"{100 * value:.1f}" for threat, value in values.items()}
        rows.append({"arm": arm, "clean": f"{100 * clean[arm]:.1f}"} | texts)
    return Markdown(summary.markdown(pd.DataFrame(rows)))


def defence_table(settings: Any, frame: pd.DataFrame) -> Markdown:
    """Every defence of the main figure under every threat model."""
    table = threat_table(frame, defences(settings), (*THREATS, *OTHER_THREATS))
    return Markdown(f"Budget of the attacks: {settings.eps:.3g}\n\n{table}")


def this_run(recordings: Recordings) -> Markdown:
    """The defences of the run in hand, folded."""
    ((settings, frame),) = recordings.values()
    heading = f"Every defence in this run: {settings.dataset}, one seed"
    return Markdown(summary.folded(heading, defence_table(settings, frame)))


def ablation_table(settings: Any, frame: pd.DataFrame) -> Markdown:
    """Every purifier of the ablation under the five threat models."""
    return threat_table(frame, ablation_arms(settings))


def robust_table(settings: Any, frame: pd.DataFrame) -> Markdown:
    """A robust classifier alone, and behind two purifiers."""
    return threat_table(frame, ROBUST, ("own grey box", "white box", "worst case"))


def cost_table(frame: pd.DataFrame, seconds: Mapping[str, float]) -> Markdown:
    """Parameters, multiply-adds and time per image; the first model of ``seconds`` is the unit of time."""
    table = frame[frame["arm"].isin(seconds)].pivot(index="arm", columns="metric", values="value")
    table = table.loc[list(seconds), ["parameters", "multiply-adds"]].map("{:,.0f}".format)
    unit = next(iter(seconds.values()))
    table["time, as a multiple"] = [f"{time / unit:.1f}" for time in seconds.values()]
    table = table.rename(columns={"multiply-adds": "multiply-adds per image"}).rename_axis("model")
    return Markdown(summary.markdown(table.reset_index()))


def masking_table(checks: Mapping[str, Sequence[Check]]) -> Markdown:
    """What each check for masked gradients measured on each defence, and what is suspicious."""
    rows = []
    for same_check in zip(*checks.values(), strict=True):
        row = {"first must not be above second": same_check[0].name}
        for arm, check in zip(checks, same_check, strict=True):
            mark = " **suspicious**" if check.suspicious else ""
            row[arm] = f"{check.measured:.0%}, {check.limit:.0%}{mark}"
        rows.append(row)
    return Markdown(summary.markdown(pd.DataFrame(rows)))


def show_verdict(recordings: Recordings) -> None:
    """The chapter's three tables for every profile, to unfold."""
    tables = {
        "Every threat model": defence_table,
        "The ablation": ablation_table,
        "In front of a robust classifier": robust_table,
    }
    verdict("purification", recordings, tables, networks=("classifier",), claims=False)


def _shares(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy in per cent: a row per arm, a column per threat model, the clean test set first."""
    wide = summary.expand(rows)
    attacked = wide[wide["metric"] == "accuracy"].pivot_table("value", "arm", "threat")
    clean = wide[(wide["metric"] == "test accuracy") & wide["threat"].isna()].groupby("arm")["value"].mean()
    return 100 * attacked.assign(clean=clean)


def slope(recordings: Recordings) -> Figure:
    """Accuracy of five defences in the grey box (left) and in the white box (right), a dot per seed."""
    boxes = ("grey box", "white box")

    def draw(ax: Axes, rows: pd.DataFrame, settings: Any) -> None:
        mean = _shares(rows)
        arms = [arm for arm in slope_arms(settings) if arm in mean.index]
        for arm in arms:
            ax.plot([0, 1], mean.loc[arm, list(boxes)], color=plots.colour(arm), lw=2.5)
            for place, box in enumerate(boxes):
                seeds = rows[(rows["arm"] == arm) & (rows["setting"] == f"threat={box}")]["value"]
                looks: Any = {"color": plots.colour(arm), "s": 30, "alpha": 0.6, "linewidths": 0}
                ax.scatter([place] * len(seeds), 100 * seeds, zorder=3, **looks)
        names = {headline(settings): "purifier of two teachers", RESIDUAL[1]: "residual purifier"}
        below = 104.0
        for arm, level in mean.loc[arms, "white box"].sort_values(ascending=False).items():
            below = min(below - 7, level)
            text = f"{names.get(str(arm), arm)}: {level:.0f} %"
            ax.annotate(text, (1.03, below), color=plots.colour(str(arm)), va="center", annotation_clip=False)
        ax.set_xticks([0, 1], ["the attacker knows\nno purifier", "the attacker\nknows everything"])
        ax.set(xlim=(-0.08, 1.75), ylim=(-6, 104), ylabel="accuracy on attacked images (%)")
        ax.spines["bottom"].set_visible(False)
        lost = mean["grey box"] - mean["white box"]
        text = "Lost to an attacker who knows: purifier {:.0f} points, PGD-AT {:.0f}"
        says(ax.figure, text.format(lost[headline(settings)], lost["PGD-AT"]))

    return stack(recordings, draw, 7, lambda settings: 3.8)


def threats(recordings: Recordings) -> Figure:
    """Accuracy of every defence under every threat model, as heat maps on one colour scale."""

    def draw(ax: Axes, rows: pd.DataFrame, settings: Any) -> None:
        mean = _shares(rows)
        columns = [name for name in ("clean", *THREATS, "own gradient") if name in mean.columns]
        grid = mean.loc[[arm for arm in defences(settings) if arm in mean.index], columns]
        heat_map(ax, grid, fmt=".0f", vmin=0, vmax=100)
        ax.set_xticks(ax.get_xticks(), [name.replace(" ", "\n") for name in columns])
        worst = grid["worst case"]
        says(ax.figure, f"Highest in the worst case: {worst.idxmax()}, {worst.max():.0f} %")

    return stack(recordings, draw, 7.4, lambda settings: 0.27 * len(defences(settings)) + 1)


def ablation(recordings: Recordings) -> Figure:
    """Accuracy behind every purifier; the dashed line is the student without teachers."""
    chosen = {"clean": {"metric": "test accuracy"}}
    for threat in ("grey box", "worst case"):
        chosen[threat] = {"metric": "accuracy", "setting": f"threat={threat}"}

    def recorded(rows: pd.DataFrame, settings: Any) -> list[str]:
        return [arm for arm in ablation_arms(settings) if arm in set(rows["arm"])]

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        axes = part.subplots(1, len(chosen), sharey=True)
        for ax, (title, which) in zip(axes, chosen.items(), strict=True):
            plots.arm_dots(ax, rows, recorded(rows, settings), lines=["no teacher"], **which)
            ax.set(title=title, xlabel="accuracy (%)")
        grey = _shares(rows)["grey box"]
        gain = grey[headline(settings)] - grey["no teacher"]
        says(part, f"Two teachers against none, in the grey box: {gain:+.1f} points")

    return stack_parts(recordings, draw, 7.4, lambda *run: 0.28 * (len(recorded(*run)) + 4))


def budgets(recordings: Recordings) -> Figure:
    """Accuracy over the budget, in the grey box and in the white box; the unlimited budget is left out."""

    def draw(part: SubFigure, rows: pd.DataFrame, settings: Any) -> None:
        limited = rows[rows["setting"] != "eps=1"]
        axes = part.subplots(1, 2, sharey=True)
        for ax, box in zip(axes, ("grey", "white"), strict=True):
            metric = f"{box}-box accuracy"
            plots.arm_curves(ax, limited, curve_arms(settings), x="eps", metric=metric)
            ticks = sorted(set(summary.expand(limited[limited["metric"] == metric])["eps"]))
            ax.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
            ax.set(title=f"{box} box", xlabel="budget", ylabel="accuracy (%)", ylim=(-3, 103))
        axes[1].set_ylabel("")
        part.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)

    return stack_parts(recordings, draw, 7.4, lambda *run: 3.6)


FIGURES: dict[str, Callable[[Recordings], Figure]] = {
    "slope": slope,
    "threats": threats,
    "ablation": ablation,
    "budgets": budgets,
}


def restored(
    clean: Tensor, attacked: Tensor, purified: Mapping[str, Tensor], eps: float, rows: Sequence[int]
) -> Figure:
    """Images ``(N, C, H, W)``: clean, attacked, purified by each teacher, and differences from clean."""
    images = {"clean": clean, "attacked": attacked}
    images |= {name.replace(" ", "\n"): pictures for name, pictures in purified.items()}
    changed = list(images)[1:]
    figure, axes = plt.subplots(len(rows), len(images) + len(changed), figsize=(7.2, 4.5))
    for line, item in zip(axes, rows, strict=True):
        for ax, pictures in zip(line, images.values(), strict=False):
            plots.picture(ax, pictures[item])
        for ax, name in zip(line[len(images) :], changed, strict=True):
            change = (images[name][item] - clean[item]).mean(0).cpu()
            ax.imshow(change, cmap="RdBu_r", vmin=-1.5 * eps, vmax=1.5 * eps)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    for ax, title in zip(axes[0], [*images, *(f"{name}\nminus clean" for name in changed)], strict=True):
        ax.set_title(title, fontsize=9)
    return figure
