"""Photographs with what a teacher says of them, for chapters 1 and 2: ``python book/answers.py [WEIGHTS]``.

CIFAR-10 (Krizhevsky, 2009, Learning multiple layers of features from tiny images) is read from ``KDSEC_DATA``
or downloaded. The teacher is that of chapter 1 at profile small, trained (or taken from the cache) unless a
file with the weights of an ``airbench-64`` is given. No number of the book comes from here.
"""

from __future__ import annotations

import pathlib
import sys

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from kdsec import data, models
from kdsec.data.imageset import ImageSet, to_bytes, to_float
from kdsec.pgd import pgd
from kdsec.report import plots
from kdsec.run import start
from kdsec.train import predict

IMAGES = pathlib.Path(__file__).resolve().parent / "_static" / "images"
TEMPERATURES = (1.0, 4.0)
EPS = 8 / 255


def teacher(weights: str) -> nn.Module:
    """The teacher of chapter 1 at profile small, or an ``airbench-64`` with the weights of a file."""
    if not weights:
        run = start("opening", profile="small")
        owner, _ = run.deal(run.settings.owner, max(run.settings.queries))
        return run.fit("teacher", run.build(run.settings.teacher), owner, run.settings.recipe)
    splits = data.load("cifar10", validation=0.1, seed=0)
    mean, std = splits.train.mean_std()
    model = models.build("airbench-64", 10, splits.train.shape, mean=mean, std=std, seed=0)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def chosen(model: nn.Module, test: ImageSet, count: int) -> Tensor:
    """Indices of photographs that are classified correctly without being sure, one of each class at most."""
    p = predict(model, test).softmax(1)
    unsure = torch.where(p.argmax(1) == test.labels, p.amax(1), 2.0)
    firsts: dict[int, int] = {}
    for index in unsure.argsort().tolist():
        firsts.setdefault(int(test.labels[index]), index)
    return torch.tensor(list(firsts.values())[:count])


def bars(axes: list[plt.Axes], image: Tensor, softened: dict[str, Tensor], classes: tuple[str, ...]) -> None:
    """A photograph above the bars of its probabilities."""
    plots.picture(axes[0], image)
    for shade, (name, p) in zip((plots.BLUE, plots.ORANGE), softened.items(), strict=True):
        offset = -0.2 if shade == plots.BLUE else 0.2
        axes[1].bar(torch.arange(len(p)) + offset, p, 0.4, color=shade, label=name)
    axes[1].set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axes[1].set(ylim=(0, 1), yticks=[0, 0.5, 1])


def save(figure: plt.Figure, axes: plt.Axes, name: str) -> None:
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"{name}.png", dpi=110)
    plt.close(figure)


def main() -> None:
    plots.use_style()
    model = teacher("".join(sys.argv[1:]))
    test = data.load("cifar10", seed=0).test.subset(slice(0, 1_000))
    classes = tuple(test.classes)

    doubtful = test.subset(chosen(model, test, 4))
    figure, axes = plt.subplots(2, 4, figsize=(7.2, 3.3), sharey="row")
    for column, image, z in zip(axes.T, doubtful.images, predict(model, doubtful), strict=True):
        bars(column, image, {f"τ = {tau:g}": (z / tau).softmax(0) for tau in TEMPERATURES}, classes)
    save(figure, axes[1, 0], "answers")

    some = doubtful.subset(slice(0, 2))
    hit = to_float(pgd(model, some.images, some.labels, eps=EPS, steps=20))
    kinds = {"as it is": some.float_images(), "after the attack": hit}
    said = {name: predict(model, to_bytes(images)).softmax(1) for name, images in kinds.items()}
    figure, axes = plt.subplots(1, 4, figsize=(7.2, 2.1))
    for place, (name, image, p) in enumerate(
        (name, kinds[name][item], said[name][item]) for item in range(2) for name in kinds
    ):
        plots.picture(axes[place], image)
        axes[place].set_title(name, fontsize=9)
        axes[place].set_xlabel(f"{classes[int(p.argmax())]} {p.max():.0%}", fontsize=9)
    figure.savefig(IMAGES / "attacked.png", dpi=110)


if __name__ == "__main__":
    main()
