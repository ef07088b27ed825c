"""Interactive figures: a still picture, and a script that adds sliders or values under the pointer.

Each function returns a ``Live`` object for the last line of a notebook's cell. Pages and notebooks show its
HTML: the picture, the data as JSON, and a script from ``live/``, which loads nothing from any server. Where
no script runs the picture stays. Formats without HTML (LaTeX, PDF) take the picture.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdsec.data.imageset import to_float
from kdsec.errors import KdsecError
from kdsec.report import plots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Stops of the temperature slider: round numbers, about equal steps of the logarithm.
TEMPERATURES = (
    *(0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.6, 1.8, 2, 2.3, 2.6, 3, 3.5),
    *(4, 4.5, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20),
)
# Alternative text of the picture; ``book/build.py`` replaces it by that of the figure's cell.
STILL = "The figure as a still picture"


class Live:
    """A still picture and its live form, for display in a notebook.

    Args:
        kind: name of the script in ``live/``.
        data: input of the script; numbers, text, lists and mappings.
        still: the picture. It is drawn and closed here, or the notebook would show it twice.
    """

    def __init__(self, kind: str, data: Mapping[str, Any], still: Figure) -> None:
        import matplotlib.pyplot as plt

        buffer = io.BytesIO()
        still.savefig(buffer, format="png", dpi=still.dpi)
        self.still = encoded(buffer.getvalue())
        self.figure, self._text = still, repr(still)
        self.kind, self.data = kind, data
        plt.close(still)

    def __repr__(self) -> str:
        return self._text  # that of the figure, as stored notebooks have it

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        return {"text/html": self.html(), "image/png": self.still, "text/plain": self._text}

    def html(self) -> str:
        """The figure as a self-contained piece of HTML."""
        # Without a "<" in the data, no tag in them can end the element early.
        data = json.dumps(self.data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
        script = "\n".join(_asset(name) for name in ("live.js", f"{self.kind}.js"))
        return (
            f'<div class="kdsec-live" data-kind="{self.kind}">\n<style>\n{_asset("live.css")}</style>\n'
            f'<div class="kdsec-frame"><img class="kdsec-still dark-light" alt="{html.escape(STILL)}" '
            f'src="data:image/png;base64,{self.still}"></div>\n'
            f'<script type="application/json">{data}</script>\n'
            f"<script>\n(() => {{\n{script}}})();\n</script>\n</div>"
        )


def probability_explorer(
    logits: Tensor | Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    still: Figure,
    temperature: float = 1.0,
    keep: int | None = None,
) -> Live:
    """Probabilities of real images, with sliders for the temperature and the number of classes kept.

    The bars show ``softmax(z / tau)`` of the ``keep`` largest logits, zero for the others.

    Args:
        logits: ``(n, K)``, or a mapping of a network's name to them; each gets its arm's colour.
        images: ``(n, C, H, W)``, bytes or [0, 1], to choose from.
        labels: ``(n,)``.
        classes: the K class names.
        still: the picture where no script runs.
        temperature: first position of its slider.
        keep: first position of the slider of kept classes; all if not given.

    Raises:
        KdsecError: logits that are missing, of another shape or not finite; a temperature that is not
            positive; a ``keep`` or a label outside the classes.
    """
    named = dict(logits) if isinstance(logits, Mapping) else {"teacher": logits}
    count = len(classes)
    keep = count if keep is None else keep
    if not 0 < temperature < math.inf:
        raise KdsecError(f"temperature={temperature} is not a positive number; 1 leaves the softmax as it is")
    _check_logits(named, len(images), count)
    check_labels(labels, len(images), count)
    if not 1 <= keep <= count:
        raise KdsecError(f"keep={keep} of {count} classes; choose 1 to {count}")
    stops = sorted({float(each) for each in (*TEMPERATURES, temperature)})
    samples = [
        {
            "image": picture(images[item]),
            "label": int(labels[item]),
            "logits": {name: [_digits(z) for z in rows[item].tolist()] for name, rows in named.items()},
        }
        for item in range(len(images))
    ]
    data = {
        "classes": list(classes),
        "arms": [{"name": name, "colour": ink(name)} for name in named],
        "temperatures": stops,
        "start": stops.index(float(temperature)),
        "keep": keep,
        "samples": samples,
    }
    return Live("probability", data, still)


@dataclass(frozen=True, eq=False)
class Grid:
    """One heat map of a figure, as ``seaborn.heatmap`` draws it, and the recorded rows of its cells.

    Attributes:
        ax: its axes.
        frame: rows with the columns ``seed`` and ``value`` (a share), one per seed and cell.
        row, column: the columns of ``frame`` whose values name the map's rows and columns.
        rows, columns: these values as drawn, from top and from left; sorted if not given.
    """

    ax: Axes
    frame: pd.DataFrame
    row: str
    column: str
    rows: Sequence[Any] | None = None
    columns: Sequence[Any] | None = None


def hover_heatmap(still: Figure, *grids: Grid) -> Live:
    """Heat maps whose cells show mean, spread and every seed's value under the pointer.

    Raises:
        KdsecError: a map has more or fewer rows or columns than names, or a cell two rows of one seed.
    """
    still.canvas.draw()  # drawing fixes the layout
    cells = [cell for grid in grids for cell in _cells(still, grid)]
    if not cells:
        raise KdsecError("no recorded row belongs to a cell of the heat map; check rows and columns")
    return Live("heatmap", {"cells": cells}, still)


def knows_switch(still: Figure, groups: Mapping[str, Mapping[str, tuple[float, float]]], note: str) -> Live:
    """A switch between an attacker who does not know the defences and one who does.

    Args:
        still: the picture where no script runs.
        groups: by heading, what the attacker gets (shares) by defence, without and with that knowledge.
        note: what the numbers are of.

    Raises:
        KdsecError: there are no numbers, or one is not a share.
    """
    found = [
        {"name": name, "rows": [{"name": row, "off": off, "on": on} for row, (off, on) in rows.items()]}
        for name, rows in groups.items()
    ]
    values = [each for rows in groups.values() for both in rows.values() for each in both]
    if not values or not all(0 <= each <= 1 for each in values):
        raise KdsecError(f"what an attacker gets must be shares in [0, 1], here are {values}")
    return Live("knows", {"groups": found, "note": note}, still)


def _cells(figure: Figure, grid: Grid) -> list[dict[str, Any]]:
    """Position, name and text of every cell that has rows."""
    frame = grid.frame.dropna(subset=[grid.row, grid.column])
    down = sorted(frame[grid.row].unique()) if grid.rows is None else list(grid.rows)
    across = sorted(frame[grid.column].unique()) if grid.columns is None else list(grid.columns)
    width, height = (abs(np.subtract(*limits)) for limits in (grid.ax.get_xlim(), grid.ax.get_ylim()))
    if (round(height), round(width)) != (len(down), len(across)):
        raise KdsecError(
            f"a heat map of {height:g} rows and {width:g} columns, but {len(down)} and {len(across)} names; "
            "name them as they are drawn"
        )
    place = grid.ax.transData + figure.transFigure.inverted()
    cells = []
    for (first, second), rows in frame.groupby([grid.row, grid.column]):
        if first not in down or second not in across:
            continue
        name = f"{grid.row} {_name(first)}, {grid.column} {_name(second)}"
        if rows["seed"].duplicated().any():
            raise KdsecError(f"{name}: more than one row a seed; select rows that differ in nothing else")
        x, y = across.index(second), down.index(first)
        (left, low), (right, high) = place.transform([(x, y + 1), (x + 1, y)])
        box = [round(float(part), 5) for part in (left, 1 - high, right - left, high - low)]
        cells.append({"box": box, "name": name, "says": _says(rows.sort_values("seed")["value"])})
    return cells


def _says(shares: pd.Series) -> str:
    """Mean, spread and seeds of a cell as text, in percent."""
    values = 100 * shares
    if len(values) == 1:
        return f"{values.iloc[0]:.1f} %, one seed"
    each = ", ".join(f"{value:.1f}" for value in values)
    spread = f"{values.mean():.1f} % ± {values.std():.1f}"
    return f"{spread} (mean and standard deviation of {len(values)} seeds: {each})"


def _name(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def _check_logits(named: Mapping[str, Tensor], images: int, classes: int) -> None:
    if not named or not images:
        raise KdsecError("there is nothing to explore; give at least one network's logits of one image")
    for name, rows in named.items():
        if tuple(rows.shape) != (images, classes):
            wanted = f"{images} images and {classes} classes need ({images}, {classes})"
            raise KdsecError(f"logits of {name!r} are of shape {tuple(rows.shape)}; {wanted}")
        if not torch.isfinite(rows).all():
            raise KdsecError(f"logits of {name!r} are not all finite; mask classes with -1e6, as Stingy does")


def check_labels(labels: Tensor, images: int, classes: int) -> None:
    if len(labels) != images or not ((labels >= 0) & (labels < classes)).all():
        raise KdsecError(f"{len(labels)} labels for {images} images; give each one of 0 to {classes - 1}")


def ink(arm: str) -> str:
    """The arm's colour; black becomes the text colour of the page, which is light in dark mode."""
    found = plots.colour(arm)
    return "currentColor" if found == plots.BLACK else found


def _digits(value: float) -> float:
    """Rounded to the digits that float32 has."""
    return float(f"{value:.7g}")


def picture(image: Tensor) -> str:
    """An image ``(C, H, W)`` as a data address; grey images dark on light."""
    from matplotlib.image import imsave

    pixels = to_float(image).permute(1, 2, 0).clamp(0, 1).cpu().numpy()
    buffer = io.BytesIO()
    shown = pixels if pixels.shape[2] == 3 else 1 - np.repeat(pixels, 3, axis=2)
    imsave(buffer, np.ascontiguousarray(shown), format="png")
    return f"data:image/png;base64,{encoded(buffer.getvalue())}"


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _asset(name: str) -> str:
    """A file of ``live/`` as text."""
    return importlib.resources.files("kdsec.report").joinpath("live", name).read_text(encoding="utf-8")
