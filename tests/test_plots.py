"""Figures show what they are given: every seed a dot, in its place, in its arm's colour."""

from __future__ import annotations

import itertools

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.colors import same_color, to_rgb

from kdsec.report import plots
from kdsec.report.records import COLUMNS


@pytest.fixture
def ax():
    assert matplotlib.get_backend().lower() == "agg"
    figure, axes = plt.subplots()
    yield axes
    figure.canvas.draw()  # whatever was asked for can also be painted
    plt.close("all")


def rows(*entries, metric="test accuracy"):
    """A frame of records from (seed, arm, value) or (seed, arm, value, setting)."""
    full = [
        ("opening", "quick", seed, "digits", arm, "net", "".join(setting), metric, value, 100)
        for seed, arm, value, *setting in entries
    ]
    return pd.DataFrame(full, columns=list(COLUMNS))


def dots(ax):
    """Position and colour of every group of dots, empty ones left out."""
    groups = [each for each in ax.collections if isinstance(each, PathCollection)]
    return [
        (np.asarray(each.get_offsets()), each.get_facecolor()[0])
        for each in groups
        if each.get_offsets().size
    ]


def named(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_arm_dots_shows_every_seed_in_its_row(ax):
    frame = pd.concat(
        [
            rows((0, "KD", 0.9), (1, "KD", 0.8), (0, "labels", 0.7), (1, "labels", 0.75), (2, "labels", 0.6)),
            rows((0, "KD", 0.2, "queries=50"), (0, "unasked", 0.3)),  # another figure's rows
            rows((0, "KD", 0.1), metric="validation accuracy"),
        ],
        ignore_index=True,
    )
    plots.arm_dots(ax, frame, ["labels", "KD"], lines=["labels"])
    (labels, labels_colour), (kd, kd_colour) = dots(ax)
    assert sorted(labels[:, 0]) == pytest.approx([60, 70, 75]) and set(labels[:, 1]) == {0}
    assert sorted(kd[:, 0]) == pytest.approx([80, 90]) and set(kd[:, 1]) == {1}
    assert same_color(labels_colour[:3], plots.colour("labels"))
    assert same_color(kd_colour[:3], plots.colour("KD"))
    labels_mean, kd_mean, level = ax.lines
    assert list(labels_mean.get_xdata()) == list(level.get_xdata()) == pytest.approx([205 / 3] * 2)
    assert list(kd_mean.get_xdata()) == pytest.approx([85, 85])
    assert same_color(kd_mean.get_color(), plots.colour("KD"))
    assert same_color(level.get_color(), plots.colour("labels"))
    assert named(ax.yaxis) == ["labels", "KD"]
    assert ax.yaxis_inverted()  # the first arm is on top
    assert ax.get_xlabel() == "test accuracy (%)"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frame", [rows(), rows((0, "teacher", 0.9))], ids=["nothing", "another arm"])
def test_an_arm_without_rows_keeps_its_place_and_crashes_nothing(ax, frame):
    plots.arm_dots(ax, frame, ["labels", "KD"], lines=["labels"])
    assert dots(ax) == [] and named(ax.yaxis) == ["labels", "KD"]


SWEEP = rows(
    *((seed, "soft labels", 0.5 + 0.1 * seed, f"queries={q}") for seed in (0, 1) for q in (450, 50)),
    *((seed, "hard labels", 0.4 + q / 1000, f"queries={q}") for seed in (0, 1, 2) for q in (50, 150, 450)),
    (0, "soft labels", 0.99),  # not part of the sweep
)


def test_arm_curves_shows_every_seed_and_their_mean(ax):
    plots.arm_curves(ax, SWEEP, ["soft labels", "hard labels"], x="queries", lines={"teacher": 0.97})
    (soft, soft_colour), (hard, hard_colour) = dots(ax)
    assert len(soft) == 4 and len(hard) == 9
    assert {tuple(point) for point in soft.round(6)} == {(50, 50), (450, 50), (50, 60), (450, 60)}
    assert same_color(soft_colour[:3], plots.colour("soft labels"))
    assert same_color(hard_colour[:3], plots.colour("hard labels"))
    curve, hard_curve, level = ax.lines
    assert list(curve.get_xdata()) == [50, 450] and list(curve.get_ydata()) == pytest.approx([55, 55])
    assert list(hard_curve.get_xdata()) == [50, 150, 450]  # from left to right, whatever the order of rows
    assert same_color(curve.get_color(), plots.colour("soft labels"))
    assert set(level.get_ydata()) == {97} and [text.get_text() for text in ax.texts] == ["teacher"]
    assert ax.get_legend_handles_labels()[1] == ["soft labels", "hard labels"]
    assert ax.get_xscale() == "log" and named(ax.xaxis) == ["50", "150", "450"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("queries", "test accuracy (%)")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frame", [rows(), rows((0, "KD", 0.9))], ids=["nothing", "nothing swept"])
def test_curves_of_nothing_crash_nothing(ax, frame):
    plots.arm_curves(ax, frame, ["KD"], x="queries", lines={"teacher": 0.9})
    assert dots(ax) == [] and len(ax.lines) == 1


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_class_matrix_leaves_out_the_diagonal_and_the_callers_numbers(ax, make):
    matrix = make([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]])
    kept = matrix.tolist()
    plots.class_matrix(ax, matrix, ["a", "b", "c"], cbar_kws={"label": "probability"})
    assert matrix.tolist() == kept
    shown = np.ma.filled(ax.collections[0].get_array().astype(float), np.nan).reshape(3, 3)
    assert np.isnan(np.diag(shown)).all()
    assert (shown[0, 1], shown[1, 0], shown[2, 1]) == pytest.approx((0.1, 0.2, 0.4))
    assert named(ax.xaxis) == named(ax.yaxis) == ["a", "b", "c"]
    assert ax.figure.axes[-1].get_ylabel() == "probability"


@pytest.mark.parametrize(("count", "channels"), [(8, 1), (5, 3), (1, 1)])
def test_soft_labels_draws_each_picture_with_its_bars(ax, count, channels):
    images = torch.rand(count, channels, 8, 8)
    cold, hot = torch.rand(count, 3).softmax(1), torch.full((count, 3), 1 / 3)
    figure = plots.soft_labels(images, {"T = 1": cold, "T = 4": hot}, ["cat", "dog", "aeroplane"])
    pictures = [axes for axes in figure.axes if axes.images]
    charts = [axes for axes in figure.axes if axes.patches]
    assert len(pictures) == len(charts) == count
    for item, (picture, chart) in enumerate(zip(pictures, charts, strict=True)):
        shown = np.asarray(picture.images[0].get_array()).reshape(8, 8, channels)
        np.testing.assert_allclose(shown, images[item].permute(1, 2, 0))
        heights = [bar.get_height() for bar in chart.patches]
        assert heights == pytest.approx([*cold[item].tolist(), *hot[item].tolist()])
        assert chart.get_ylim() == (0, 1) and len(named(chart.xaxis)) == 3
    figure.canvas.draw()


def test_arms_that_are_not_listed_have_colours_of_their_own():
    arms = ["G trigger and noise", "H attack, true labels", "fine-tuning", "median", "STRIP", "head only"]
    colours = [plots.colour(arm) for arm in arms]
    assert len(set(colours)) >= 3 and colours == [plots.colour(arm) for arm in arms]
    assert not set(colours) & set(plots.ARM_COLOURS.values())


# Full loss of one kind of cone (Machado, Oliveira & Fernandes 2009, table 1, severity 1.0), in linear RGB.
EYES = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    "deuteranopia": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    "tritanopia": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colour, eye):
    """CIELAB (D65) of a colour as seen by ``eye``: distances are about what a viewer perceives."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    relative = XYZ @ np.clip(np.array(EYES[eye]) @ linear, 0, 1) / XYZ.sum(1)
    x, y, z = np.where(relative > 216 / 24389, np.cbrt(relative), (24389 / 27 * relative + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("eye", EYES)
def test_colours_are_told_apart_by_every_eye(eye):
    colours = [lab(colour, eye) for colour in {plots.colour(arm) for arm in plots.ARM_COLOURS}]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2))
    assert nearest > (20 if eye == "all cones" else 10)


def test_rows_of_pictures_may_have_fewer_than_others():
    figure = plots.picture_rows({"two": torch.rand(2, 3, 4, 4), "three": torch.rand(3, 1, 4, 4)})
    shown = [bool(axes.images) for axes in figure.axes]
    assert shown == [True, True, False, True, True, True]
    assert [axes.axison for axes in figure.axes] == shown
    plt.close("all")
