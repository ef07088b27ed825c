"""Figures and tables of chapter 6, on attacks through a public teacher and distilled differentiators.

Functions of ``recordings`` draw recorded rows, one part per profile; the others draw the networks of one run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor, nn

from kdsec.errors import KdsecError
from kdsec.report import plots, summary
from kdsec.report.panels import Markdown, Recordings, heat_map, says, stack, stack_parts, verdict
from kdsec.report.records import DATASETS
from kdsec.train import predict

REJECTORS = ("differentiators", "not pruned", "confidence", "input dropout", "squeezing", "one full student")
# Students that are made harder to attack, and that nobody checks.
UNCHECKED = ("neuron distance", "full fine-tuning", "hardened teacher")
# What the attacker knows; the last is also recorded for every other defence.
RUNGS = ("nothing", "the method", "own copies", "the student", "everything")
CHANGES = {
    "targeted success": "{:.0%}",
    "wrong": "{:.0%}",
    "distance left": "{:.0%}",
    "DSSIM": "{:.4f}",
    "L2": "{:.2f}",
    "largest change": "{:.0f}",
}


def exact(frame: pd.DataFrame, arm: str, metric: str, **setting: Any) -> pd.Series:
    """Values by seed of one arm at exactly this setting; none where nothing was recorded."""
    text = ";".join(f"{key}={setting[key]}" for key in sorted(setting))
    try:
        return summary.select(frame[frame["setting"] == text], arm, metric)
    except KdsecError:
        return pd.Series(dtype=float)


def percent(frame: pd.DataFrame, arm: str, metric: str, **setting: Any) -> str:
    """Mean over seeds as text; empty where nothing was recorded."""
    values = exact(frame, arm, metric, **setting)
    form = "{:.2f}" if metric in ("AUC", "feature distance") else "{:.1%}"
    return form.format(values.mean()) if len(values) else ""


def table(rows: Sequence[Mapping[str, Any]]) -> Markdown:
    """A Markdown table of rows."""
    return Markdown(summary.markdown(pd.DataFrame(list(rows))))


def budget_names(settings: Any) -> list[str]:
    """Of the main table: DSSIM, and the largest change of a pixel in 255ths."""
    eps = sorted({settings.per_pixel.eps, *settings.epsilons})
    return [settings.main_budget, *(f"pixel {255 * each:.0f}" for each in eps)]


def students(settings: Any, frame: pd.DataFrame) -> Markdown:
    """Test accuracy of every student."""
    rows = [(f"keeps {keep} layers", "student", {"keep": keep}) for keep in settings.keeps]
    rows += [("no transfer", "no transfer", {})]
    if not settings.published:
        rows += [("the teacher, on its own classes", "teacher", {})]
    return table(
        [
            {"student": name, "test accuracy": percent(frame, arm, "test accuracy", **setting)}
            for name, arm, setting in rows
        ]
    )


def budgets(settings: Any, frame: pd.DataFrame) -> Markdown:
    """What mimicry reaches and changes at each budget, on the first student."""
    mine = summary.expand(frame[frame["arm"] == "mimicry"])
    mine = mine[mine["data"].isna()] if "data" in mine else mine
    grid = mine.pivot_table("value", "budget", "metric", sort=False)
    text = {metric: grid[metric].map(form.format) for metric, form in CHANGES.items() if metric in grid}
    return Markdown(summary.markdown(pd.DataFrame(text).reset_index()))


def by_budget(settings: Any, frame: pd.DataFrame) -> Markdown:
    """The main table: the committee at every budget, against who knows nothing and who knows everything."""
    main, *others = budget_names(settings)
    kinds: list[tuple[str, str, dict[str, str]]] = [(main, "targeted", {}), (main, "non-targeted", {})]
    kinds += [(name, "targeted", {"budget": name}) for name in others]
    rows = []
    for name, kind, setting in kinds:
        at = {"keep": settings.keeps[0], **setting}
        row = {"budget": name, "attack": kind}
        for metric in ("before", "defended", "caught", "AUC"):
            row[metric] = percent(frame, "differentiators", metric, attack=kind, **at)
        knows = percent(frame, "differentiators", "defended", attack="adaptive", **at)
        rows.append(row | {"defended, attacker knows": knows if kind == "targeted" else ""})
    return table(rows)


def compared(settings: Any, frame: pd.DataFrame) -> Markdown:
    """Every defence, at the deepest cut; those that lost more than 10 points are no baselines."""
    keep = {"keep": settings.keeps[0]}
    rows = []
    for arm in (*REJECTORS, *UNCHECKED):
        accuracy = ("test accuracy", {}) if arm in UNCHECKED else ("accuracy left", keep)
        rows.append(
            {
                "defence": arm if _kept(frame, arm, keep) else f"{arm} (no baseline)",
                "targeted, defended": percent(frame, arm, "defended", attack="targeted", **keep),
                "non-targeted, defended": percent(frame, arm, "defended", attack="non-targeted", **keep),
                "defended, attacker knows": percent(frame, arm, "defended", attack="adaptive", **keep),
                "AUC": percent(frame, arm, "AUC", attack="targeted", **keep),
                "caught at the rate": percent(frame, arm, "caught at the rate", attack="targeted", **keep),
                "false rejection": percent(frame, arm, "false rejection", **keep),
                "accuracy left": percent(frame, arm, accuracy[0], **accuracy[1]),
            }
        )
    return table(rows)


def _kept(frame: pd.DataFrame, arm: str, keep: Mapping[str, Any]) -> bool:
    """Whether a defence kept its accuracy at every seed, as far as this was checked."""
    realised = exact(frame, arm, "realised", **keep)
    return realised.empty or bool(realised.min() > 0)


def cases(settings: Any, frame: pd.DataFrame) -> Markdown:
    """Students of a published teacher side by side, at every budget."""
    wide = summary.expand(frame)
    if "data" not in wide:
        return Markdown("The neighbours run at the profile *second* only.")
    found = wide[wide["data"].notna()].drop_duplicates(["data", "keep"])
    rows = []
    for data, keep in zip(found["data"], found["keep"].astype(int), strict=True):
        own = {"data": data, "keep": keep}
        for budget in settings.all_budgets:
            at = {"attack": "targeted", "budget": budget, **own}
            aware = {"attack": "adaptive", "budget": budget, **own}
            rows.append(
                {
                    "students of": f"{DATASETS[data]}, {keep} layers kept",
                    "test accuracy": percent(frame, "student", "test accuracy", **own),
                    "budget": budget,
                    "fools the student": percent(frame, "differentiators", "before", **at),
                    "any wrong class": percent(frame, "mimicry", "wrong", budget=budget, **own),
                    "accepted by the committee": percent(frame, "differentiators", "defended", **at),
                    "by one full student": percent(frame, "one full student", "defended", **at),
                    "by confidence": percent(frame, "confidence", "defended", **at),
                    "attacker knows the committee": percent(frame, "differentiators", "defended", **aware),
                }
            )
    return table(rows)


def this_run(recordings: Recordings, made: Callable[[Any, pd.DataFrame], Markdown]) -> Markdown:
    """A table of the run in hand, folded."""
    ((settings, frame),) = recordings.values()
    heading = f"This run: {settings.student_dataset}, one seed"
    return Markdown(summary.folded(heading, made(settings, frame)))


def show_verdict(recordings: Recordings) -> None:
    """The chapter's tables at every profile, to unfold."""
    folded = {
        "The students": students,
        "The attack alone": budgets,
        "The committee by budget": by_budget,
        "Compared with others": compared,
    }
    if any(settings.others for settings, _ in recordings.values()):
        folded["Students of a public teacher"] = cases
    verdict("differentiators", recordings, folded, networks=("model", "student_dataset"), claims=False)


def layers(recordings: Recordings) -> Figure:
    """Targeted success on every student by the layer that the attack works on."""
    return stack(recordings, _layers, 4.6, lambda settings: 2.6)


def _layers(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
    wide = summary.expand(frame[(frame["metric"] == "targeted success") & (frame["arm"] != "mimicry")])
    wide = wide[wide["layer"].notna()].astype({"layer": int})
    grid = 100 * wide.pivot_table("value", "arm", "layer")
    arms = [*(f"K = {keep}" for keep in settings.keeps), "no transfer"]
    grid = grid.reindex(index=arms, columns=sorted(settings.layers))
    heat_map(ax, grid, fmt=".0f", vmin=0, vmax=100)
    ax.set_yticklabels([*(f"{keep} layers kept" for keep in settings.keeps), "no transfer"])
    ax.set(xlabel="attacked layer", ylabel="")
    most = [part.max().max() for part in (grid.iloc[:-1], grid.iloc[-1:])]
    says(ax.figure, "Targeted success: up to {:.0f} %, without transfer {:.0f} %".format(*most))


def variants(recordings: Recordings) -> Figure:
    """AUC, defended success and feature distance of every variant at the deepest cut, a dot per seed."""
    return stack_parts(
        recordings, _variants, 7.4, lambda rows, settings: 0.3 * len(variant_names(settings)) + 1.2
    )


def _variants(part: SubFigure, frame: pd.DataFrame, settings: Any) -> None:
    names, keep = variant_names(settings), f"keep={settings.keeps[0]}"
    setting = f"attack=targeted;{keep}"
    shown = {
        "AUC": (setting, "AUC (%), right is good"),
        "defended": (setting, "defended (%), left is good"),
        "feature distance": (keep, "feature distance (%)"),
    }
    shown = {metric: each for metric, each in shown.items() if metric in set(frame["metric"])}
    axes = part.subplots(1, len(shown), sharey=True)
    for ax, (metric, (where, label)) in zip(axes, shown.items(), strict=True):
        plots.arm_dots(ax, frame, names, metric=metric, setting=where, lines=["differentiators"])
        ax.set_xlabel(label)
    own = frame[(frame["setting"] == setting) & (frame["metric"] == "AUC") & frame["arm"].isin(names)]
    mean = own.groupby("arm")["value"].mean()
    ours = f"pruned by activation {mean['differentiators']:.2f}"
    says(part, f"Highest AUC: {mean.idxmax()}, {mean.max():.2f}; {ours}")


def variant_names(settings: Any) -> list[str]:
    """The committee and its variants, as recorded."""
    ratios = ["not pruned" if not ratio else f"ratio {ratio:g}" for ratio in settings.ratios]
    rankings = [f"{ranking} pruning" for ranking in settings.rankings]
    return ["differentiators", *ratios, *rankings, "head only", "distilled"]


def ladder(recordings: Recordings) -> Figure:
    """Targeted success against the committee by what the attacker knows, a dot per seed."""
    return stack(recordings, _ladder, 6.4, lambda settings: 2.6)


def rung(name: str) -> dict[str, str]:
    """The setting in which a rung of the ladder is recorded."""
    kinds = {"nothing": {"attack": "targeted"}, "everything": {"attack": "adaptive"}}
    return kinds.get(name, {"attack": "adaptive", "knows": name})


def _ladder(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
    for metric, shade in (("before", "#7F7F7F"), ("defended", plots.RED)):
        for row, name in enumerate(RUNGS):
            at = {"keep": settings.keeps[0], **rung(name)}
            label = {"before": "fools the student", "defended": "and is accepted"}[metric]
            _marks(ax, row, exact(frame, "differentiators", metric, **at), shade, None if row else label)
    keep = settings.keeps[0]
    ends = [
        exact(frame, "differentiators", "defended", keep=keep, **rung(name)) for name in (RUNGS[0], RUNGS[-1])
    ]
    low, high = (100 * values.mean() for values in ends)
    says(ax.figure, f"Accepted disguises: {low:.0f} % knowing nothing, {high:.0f} % knowing everything")
    _rows(ax, RUNGS, "targeted success (%), by what the attacker knows")


def adaptive(recordings: Recordings) -> Figure:
    """Targeted success without a defence, of an unaware attacker, and of one who knows the defence."""
    return stack(recordings, _adaptive, 7.2, lambda settings: 4.6)


def _adaptive(ax: Axes, frame: pd.DataFrame, settings: Any) -> None:
    looks = {
        "no defence": ("before", "targeted", "#7F7F7F"),
        "defended, unaware": ("defended", "targeted", plots.BLUE),
        "defended, attacker knows": ("defended", "adaptive", plots.RED),
    }
    keep = {"keep": settings.keeps[0]}
    # Nobody can harden a published teacher: such arms have no rows.
    all_names = [*REJECTORS, *UNCHECKED]
    names = [arm for arm in all_names if len(exact(frame, arm, "defended", attack="targeted", **keep))]
    for row, arm in enumerate(names):
        for label, (metric, kind, shade) in looks.items():
            owner = "differentiators" if metric == "before" else arm
            values = exact(frame, owner, metric, attack=kind, **keep)
            _marks(ax, row, values, shade, None if row else label)
    worth = {
        arm: exact(frame, arm, "defended", attack="adaptive", **keep)
        for arm in names
        if _kept(frame, arm, keep)
    }
    known = {arm: 100 * values.mean() for arm, values in worth.items() if len(values)}
    if known:
        best = min(known, key=lambda arm: known[arm])
        says(ax.figure, f"Lowest success of an attacker who knows: {best}, {known[best]:.0f} %")
    _rows(ax, names, "targeted success (%)")


def _marks(ax: Axes, row: int, values: pd.Series, shade: str, label: str | None) -> None:
    """A dot per seed and a bar at their mean."""
    ax.scatter(100 * values, [row] * len(values), color=shade, alpha=0.4, s=36, linewidths=0)
    mean = 100 * values.mean() if len(values) else math.nan
    ax.plot([mean] * 2, [row - 0.3, row + 0.3], color=shade, lw=3, label=label)


def _rows(ax: Axes, names: Sequence[str], xlabel: str) -> None:
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set(xlim=(-2, 102), xlabel=xlabel)
    ax.grid(axis="x", color="#DDDDDD", lw=0.8)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)


FIGURES: dict[str, Callable[[Recordings], Figure]] = {
    "layers": layers,
    "variants": variants,
    "ladder": ladder,
    "adaptive": adaptive,
}


def _answers(
    student: nn.Module, pictures: Mapping[str, Tensor], classes: Sequence[str]
) -> dict[str, list[str]]:
    """The student's answer to each picture, in quotation marks."""
    return {
        name: [f"“{classes[label]}”" for label in predict(student, images).argmax(1)]
        for name, images in pictures.items()
    }


def disguises(
    pictures: Mapping[str, Tensor],
    features: Mapping[str, Tensor],
    rows: Sequence[int],
    student: nn.Module,
    classes: Sequence[str],
) -> Figure:
    """Source, target and disguised image, the student's answer above each, and their features as stripes.

    Args:
        pictures: name to images ``(n, C, H, W)``.
        features: name to features ``(n, F)`` of the attacked layer; the 64 largest of the target are shown.
        rows: which of the images.
        student: whose answers.
        classes: the class names.
    """
    shown = {name: images[rows] for name, images in pictures.items()}
    said = _answers(student, shown, classes)
    width = min(64, features["target"].shape[1])
    loudest = features["target"].mean(0).argsort(descending=True)[:width].sort()[0]
    figure, axes = plt.subplots(
        len(rows), 4, figsize=(7.2, 1.25 * len(rows)), width_ratios=[1, 1, 1, 4], squeeze=False
    )
    for index, (row, line) in enumerate(zip(rows, axes, strict=True)):
        for ax, (name, images) in zip(line, shown.items(), strict=False):
            plots.picture(ax, images[index])
            ax.set_title(said[name][index], fontsize=9, pad=2)
        stripes = torch.stack([features[name][row, loudest] for name in pictures]).cpu()
        line[3].imshow(stripes, aspect="auto", cmap="cividis", interpolation="nearest")
        line[3].set(xticks=[])
        line[3].set_yticks(range(3), list(pictures), fontsize=9)
        line[3].tick_params(length=0)
    axes[-1, 3].set_xlabel(f"features of the attacked layer: the {width} largest")
    return figure
