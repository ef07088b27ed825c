"""Pictures of chapter 6: a real image, its disguises, their amplified changes, and what a student says.

The examples of a recorded run are one small PNG beside its rows: a line of tiles per student, the words in it
as JSON. Every pixel is a whole 255th, so the file holds exactly what the student saw.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin
from torch import Tensor, nn

from kdsec.data.imageset import to_bytes, to_float
from kdsec.report import plots
from kdsec.report.records import DATASETS, location, recorded_folder
from kdsec.train import predict

CHAPTER, FILE, GAIN = "differentiators", "disguises.png", 10
HEADS = ("real", "disguised", f"change × {GAIN}", "by DSSIM", f"change × {GAIN}")
# The signs that students learn at the profile ``second``.
SIGNS = {
    "sign 2": "50 km/h",
    "sign 12": "priority road",
    "sign 13": "yield",
    "sign 14": "stop",
    "sign 17": "no entry",
}


@dataclass(frozen=True, eq=False)
class Example:
    """A student's name, images ``(3, C, H, W)`` (real and two disguises), and what it says of each."""

    name: str
    images: Tensor
    said: tuple[str, ...]


def example(
    dataset: str,
    keep: int,
    student: nn.Module,
    classes: Sequence[str],
    sources: Tensor,
    disguised: Sequence[Tensor],
    wanted: Tensor,
) -> Example:
    """The first pair whose disguises both reach the target; if there is none, one of which the most do.

    Args:
        dataset, keep: what the student learnt, and how many layers it kept.
        student: whose answers.
        classes: its class names.
        sources: ``(N, C, H, W)``.
        disguised: images like ``sources``, one tensor per budget.
        wanted: target labels ``(N,)``.
    """
    answers = [predict(student, images).argmax(1) for images in (sources, *disguised)]
    hits = torch.stack([answer == wanted for answer in answers[1:]]).sum(0)
    row = int(hits.argmax())
    said = [classes[int(answer[row])] for answer in answers]
    images = torch.stack([each[row] for each in (sources, *disguised)])
    return Example(f"{DATASETS[dataset]}, {keep} layers kept", images, tuple(SIGNS.get(s, s) for s in said))


def save(out: str | os.PathLike[str], profile: str, examples: Sequence[Example]) -> pathlib.Path:
    """Write the examples beside the rows of a run."""
    path = location(out, profile, CHAPTER, 0, ".csv").with_name(FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [torch.cat(list(to_bytes(each.images)), 2) for each in examples]
    words = PngImagePlugin.PngInfo()
    words.add_text("examples", json.dumps([[each.name, each.said] for each in examples]))
    Image.fromarray(torch.cat(lines, 1).permute(1, 2, 0).cpu().numpy()).save(path, pnginfo=words)
    return path


def recorded(profile: str = "second") -> list[Example]:
    """The examples that come with the book; empty if there are none."""
    path = location(recorded_folder(), profile, CHAPTER, 0, ".csv").with_name(FILE)
    if not path.exists():
        return []
    with Image.open(path) as picture:
        tiles = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
        words = json.loads(picture.text["examples"])  # type: ignore[attr-defined]
    lines = tiles.chunk(len(words), 1)
    return [
        Example(name, torch.stack(line.chunk(len(said), 2)), tuple(said))
        for (name, said), line in zip(words, lines, strict=True)
    ]


def show(examples: Sequence[Example]) -> Figure:
    """A line per student: real image, disguise, its change amplified around grey, the same by DSSIM."""
    figure, axes = plt.subplots(
        len(examples), len(HEADS), figsize=(7.4, 1.75 * len(examples) + 0.2), squeeze=False
    )
    for line, each in zip(axes, examples, strict=True):
        real, *disguised = to_float(each.images)
        pictures = [real]
        for image in disguised:
            pictures += [image, (0.5 + GAIN * (image - real)).clamp(0, 1)]
        words = [each.said[0], each.said[1], "", each.said[2], ""]
        for ax, picture, said, head in zip(line, pictures, words, HEADS, strict=True):
            plots.picture(ax, picture)
            ax.set_title(f"“{said}”" if said else "", fontsize=9, pad=3)
            ax.set_xlabel(head, fontsize=8)
        line[0].set_ylabel(each.name.replace(", ", "\n"), rotation=0, ha="right", va="center", fontsize=9)
    return figure
