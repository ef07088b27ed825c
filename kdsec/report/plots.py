"""Figures with one colour per arm in the whole book, every seed visible, legible on a phone."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdsec.data.imageset import to_float
from kdsec.report.records import expand

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110

# The palette of Okabe and Ito, which readers with the common kinds of colour blindness can tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
ARM_COLOURS = {
    "teacher": BLACK,
    "labels": "#5A5A5A",
    "label smoothing": "#B0B0B0",
    "KD": BLUE,
    "KD, negatives shuffled": SKY,
    "attention transfer": PINK,
    "soft labels": RED,
    "soft labels, every view": ORANGE,
    "hard labels": GREEN,
    "labelled by hand": "#5A5A5A",
    "surrogate images": YELLOW,
    # Teachers, never in one figure with the attacks above.
    "normal": BLACK,
    "smoothed": "#B0B0B0",
    "nasty": RED,
    "stingy": GREEN,
    "AST": BLUE,
    "negate": ORANGE,
    "rank": PINK,
    "uniform": SKY,
    "complement": "#8C6D31",
    "linear rank": YELLOW,
    "copy": "#5A5A5A",
    # Students of clean and of poisoned images.
    "A clean": BLUE,
    "A clean, online": SKY,
    "F attack": RED,
    "F attack, online": ORANGE,
    # Purifiers and their rivals.
    "undefended": BLACK,
    "normal teacher": SKY,
    "adversarial teacher": ORANGE,
    "ensemble, averaged": BLUE,
    "no teacher": GREEN,
    "end to end": PINK,
    "PGD-AT": RED,
    "TRADES": "#8C6D31",
    # Detectors of adversarial images.
    "differentiators": BLUE,
    "not pruned": SKY,
    "random pruning": ORANGE,
    "reverse pruning": PINK,
    "distilled": GREEN,
    "one full student": RED,
    "full students": "#8C6D31",
    "confidence": "#5A5A5A",
    "squeezing": YELLOW,
    "input dropout": "#B0B0B0",
}


def use_style() -> None:
    """The book's matplotlib defaults. Call once at the top of a chapter."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    import seaborn as sns

    # pyplot would draw every figure of a cell once for nobody, before the inline backend draws and shows it.
    plt.switch_backend(mpl.get_backend())
    plt.uninstall_repl_displayhook()
    sns.set_theme(context="notebook", style="ticks", font="DejaVu Sans")
    mpl.rcParams.update(
        {
            "figure.dpi": DPI,
            "savefig.dpi": DPI,
            "figure.figsize": (7.0, 3.6),
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.labelsize": 11,
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "figure.facecolor": "white",  # in dark mode too: the page shows figures on a light card
        }
    )


SPARE = ("#7A5195", "#3B7C7A", "#A23B72", "#6B8E23", "#4B4E9B", "#B5651D", "#8A1C1C", "#2F6690")


def colour(arm: str) -> str:
    """Colour of an arm, the same everywhere; of one that is not listed, a spare colour by its name."""
    return ARM_COLOURS.get(arm) or SPARE[zlib.crc32(arm.encode()) % len(SPARE)]


def arm_dots(
    ax: Axes,
    frame: pd.DataFrame,
    arms: Sequence[str],
    *,
    metric: str = "test accuracy",
    setting: str = "",
    lines: Sequence[str] = (),
) -> None:
    """One row per arm: a dot per seed, a mark at their mean, and lines at the means of some arms.

    Args:
        ax: where to draw.
        frame: rows of one profile.
        arms: from top to bottom.
        metric: a share in [0, 1], shown in percent.
        setting: of the rows, exactly as recorded (``"labels=none"``).
        lines: arms whose mean is a line through the figure.
    """
    chosen = frame[(frame["metric"] == metric) & (frame["setting"] == setting)]
    for row, arm in enumerate(arms):
        values = 100 * chosen.loc[chosen["arm"] == arm, "value"].to_numpy()
        dots: dict[str, Any] = {"s": 36, "color": colour(arm), "alpha": 0.65, "linewidths": 0}
        ax.scatter(values, np.full(len(values), row), zorder=3, **dots)
        if len(values):
            ax.plot([values.mean()] * 2, [row - 0.32, row + 0.32], color=colour(arm), lw=3, zorder=4)
    for arm in lines:
        mean = 100 * chosen.loc[chosen["arm"] == arm, "value"].mean()
        ax.axvline(mean, color=colour(arm), ls="--", lw=1.2, zorder=1)
    ax.set_yticks(range(len(arms)), arms)
    ax.invert_yaxis()
    ax.set_ylim(len(arms) - 0.5, -0.5)
    ax.set_xlabel(f"{metric} (%)")
    ax.grid(axis="x", color="#DDDDDD", lw=0.8)


def arm_curves(
    ax: Axes,
    frame: pd.DataFrame,
    arms: Sequence[str],
    *,
    x: str,
    metric: str = "test accuracy",
    lines: Mapping[str, float] | None = None,
) -> None:
    """Mean over seeds as a function of one setting, with a dot per seed.

    Args:
        ax: where to draw; the horizontal axis is logarithmic.
        frame: rows of one profile.
        arms: one curve each.
        x: the setting.
        metric: a share in [0, 1], shown in percent.
        lines: named levels (shares) across the figure, such as the teacher's accuracy.
    """
    wide = expand(frame[frame["metric"] == metric])
    wide = wide[wide[x].notna()] if x in wide else wide.iloc[:0]
    for arm in arms:
        rows = wide[wide["arm"] == arm]
        if rows.empty:
            continue
        means = 100 * rows.groupby(x)["value"].mean()
        ax.plot(means.index, means.values, color=colour(arm), lw=2, label=arm)
        ax.scatter(rows[x], 100 * rows["value"], s=24, color=colour(arm), alpha=0.6, linewidths=0, zorder=3)
    for name, level in (lines or {}).items():
        ax.axhline(100 * level, color=colour(name), ls="--", lw=1.2)
        ax.annotate(
            name, (1, 100 * level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9
        )
    ax.set_xscale("log")
    if len(ticks := sorted(wide[x].unique()) if x in wide else []):
        ax.set_xticks(ticks, [f"{tick:,.9g}" for tick in ticks])
        ax.minorticks_off()
    ax.set_xlabel(x)
    ax.set_ylabel(f"{metric} (%)")
    ax.grid(axis="y", color="#DDDDDD", lw=0.8)


def soft_labels(
    images: Tensor, probabilities: Mapping[str, Tensor], classes: Sequence[str], columns: int = 4
) -> Figure:
    """Images with bars of their probabilities below, one group of bars per softmax.

    Args:
        images: ``(n, C, H, W)`` in [0, 1].
        probabilities: name to ``(n, K)``, e.g. ``{"τ = 1": ..., "τ = 4": ...}``; arms have their own colour.
        classes: the K class names.
        columns: images per row.
    """
    import matplotlib.pyplot as plt

    count = len(images)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(7.0, 3.1 * rows), height_ratios=[1, 1.25] * rows, squeeze=False
    )
    others = iter([BLUE, ORANGE, GREEN, RED, PINK, SKY])
    palette = [ARM_COLOURS.get(name) or next(others, BLACK) for name in probabilities]
    width = 0.8 / len(probabilities)
    for item in range(rows * columns):
        row, column = divmod(item, columns)
        picture, chart = axes[2 * row, column], axes[2 * row + 1, column]
        picture.axis("off")
        if item >= count:
            chart.axis("off")
            continue
        pixels = images[item].permute(1, 2, 0).cpu().numpy()
        picture.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray_r", vmin=0, vmax=1)
        for offset, (name, values) in enumerate(probabilities.items()):
            where = np.arange(len(classes)) + (offset - (len(probabilities) - 1) / 2) * width
            chart.bar(where, values[item].cpu().numpy(), width, label=name, color=palette[offset])
        short = [name[:6] for name in classes]
        long = max(map(len, short)) > 2
        chart.set_xticks(range(len(classes)), short, rotation=90 if long else 0, fontsize=7.5)
        chart.set_ylim(0, 1)
        chart.set_yticks([0, 0.5, 1], ["0", "½", "1"] if column == 0 else [""] * 3, fontsize=8)
    handles, labels = axes[1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure


def class_matrix(ax: Axes, matrix: Tensor | np.ndarray, classes: Sequence[str], **options: Any) -> None:
    """A K x K matrix of classes without its diagonal; ``options`` go to ``seaborn.heatmap``."""
    import seaborn as sns

    values = torch.as_tensor(matrix).double().cpu().numpy().copy()
    np.fill_diagonal(values, np.nan)
    looks = {"xticklabels": classes, "yticklabels": classes, "cmap": "cividis", "linewidths": 0.3}
    sns.heatmap(values, ax=ax, square=True, **(looks | options))
    ax.tick_params(labelsize=8.5, length=0)


def picture(ax: Axes, image: Tensor) -> None:
    """One image ``(C, H, W)``, bytes or floats in [0, 1], without ticks or frame."""
    pixels = to_float(image).permute(1, 2, 0).cpu().numpy()
    ax.imshow(pixels.squeeze(), cmap="gray_r", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def picture_rows(
    rows: Mapping[str, Tensor], titles: Mapping[str, Sequence[str]] | None = None, width: float = 7.4
) -> Figure:
    """Rows of images with the row's name on the left.

    Args:
        rows: name to images ``(n, C, H, W)``; a row with fewer than another ends earlier.
        titles: name of a row to the titles of its images.
        width: of the figure, in inches.
    """
    import matplotlib.pyplot as plt

    count = max(len(images) for images in rows.values())
    side = width / (count + 1.2) + (0.25 if titles else 0)
    figure, axes = plt.subplots(len(rows), count, figsize=(width, side * len(rows) + 0.2), squeeze=False)
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for index, (ax, image) in enumerate(zip(line, images, strict=False)):
            picture(ax, image)
            if titles and name in titles:
                ax.set_title(titles[name][index], fontsize=9)
        for ax in line[len(images) :]:
            ax.set_axis_off()
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return figure
