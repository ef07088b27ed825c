"""Small pictures of attacked photographs, for the first page of a chapter: ``python book/photographs.py``.

CIFAR-10 (Krizhevsky, 2009, Learning multiple layers of features from tiny images) is read from ``KDSEC_DATA``
or downloaded. A ResNet-8 is trained on 8,000 of its images, far fewer than in the recorded runs: the
pictures show what an attack looks like, and no number of the book comes from here.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from kdsec import config, data, models
from kdsec.attacks import poisoning
from kdsec.attacks.triggers import trigger
from kdsec.data.imageset import ImageSet, to_bytes, to_float
from kdsec.defenses.perturbations import Precomputed
from kdsec.defenses.purification import Restore
from kdsec.defenses.sparse_teacher import pair
from kdsec.pgd import pgd
from kdsec.report import plots
from kdsec.train import Recipe, evaluate, fit, outputs, predict

IMAGES = pathlib.Path(__file__).resolve().parent / "_static" / "images"
SHOWN = 2  # photographs in each picture


def save(name: str, columns: Mapping[str, Tensor], model: nn.Module, classes: Sequence[str]) -> None:
    """One row per photograph, one column per kind, with the network's answer below each but differences."""
    figure, axes = plt.subplots(
        SHOWN, len(columns), figsize=(1.35 * len(columns), 1.6 * SHOWN), squeeze=False
    )
    for line, (kind, pictures) in zip(axes.T, columns.items(), strict=True):
        said = predict(model, to_bytes(pictures)).softmax(1).max(1)
        for ax, picture, label, p in zip(line, pictures, said.indices, said.values, strict=True):
            plots.picture(ax, picture)
            if "change" not in kind:
                ax.set_xlabel(f"{classes[label]} {p:.0%}", fontsize=8, labelpad=2)
        line[0].set_title(kind, fontsize=9)
    IMAGES.mkdir(parents=True, exist_ok=True)
    figure.savefig(IMAGES / f"{name}.png", dpi=120)
    plt.close(figure)


def chosen(model: nn.Module, images: ImageSet, without: int) -> Tensor:
    """Photographs that ``model`` is surest of, one of each class at most, none of class ``without``."""
    sure = predict(model, images).softmax(1)
    right = (sure.argmax(1) == images.labels) & (images.labels != without)
    order = (sure.max(1).values * right).argsort(descending=True)
    firsts = {int(images.labels[index]): int(index) for index in reversed(order[:200].tolist())}
    return images.images[list(firsts.values())[:SHOWN]]


def poisons(model: nn.Module, test: ImageSet) -> None:
    """Chapter 3: a photograph, its poison, the perturbation, and the trigger alone."""
    s = config.settings("poisoned-distillation", "small")
    mark = trigger(s.trigger, test.shape)
    clean = chosen(model, test, s.target)
    poison = to_float(poisoning.craft(model, clean, mark, s.target, s.crafting).images)
    stamped = to_float(mark.stamp(clean))
    change = 0.5 + (poison - stamped) / (2 * s.crafting.budget)
    columns = {
        "clean": to_float(clean),
        "with trigger": stamped,
        "change, enlarged": change,
        "poison": poison,
    }
    save("poisons", columns, model, test.classes)


def purified(model: nn.Module, train: ImageSet, test: ImageSet) -> None:
    """Chapter 5: a photograph, attacked, and the attacked one behind a purifier."""
    s = config.settings("purification", "small")
    attacked = pgd(model, train.images, train.labels, eps=s.eps, steps=s.training_steps)
    purifier = models.build_autoencoder(s.student, train.shape, seed=0)
    recipe = Recipe(epochs=8, batch_size=32, lr=0.002, optimizer="adam", weight_decay=0.0)
    fit(purifier, pair(train, attacked), recipe, Restore(Precomputed()))
    clean = chosen(model, test, -1)
    labels = predict(model, clean).argmax(1)
    hit = to_float(pgd(model, clean, labels, eps=s.eps, steps=s.steps))
    columns = {"clean": to_float(clean), "attacked": hit, "purified": outputs(purifier, hit).clamp(0, 1)}
    save("purified", columns, model, test.classes)


def main() -> None:
    plots.use_style()
    splits = data.load("cifar10", seed=0)
    train = splits.train.stratified(8_000, seed=0)
    mean, std = train.mean_std()
    model = models.build("resnet8", 10, train.shape, mean=mean, std=std, seed=0)
    recipe = Recipe(epochs=10, batch_size=128, lr=0.2, augment=data.Augment(crop=4, flip=True))
    fit(model, train, recipe)
    print(f"test accuracy {evaluate(model, splits.test.subset(slice(0, 2_000))).accuracy:.1%}")
    test = splits.test.subset(slice(0, 1_000))
    poisons(model, test)
    purified(model, train.subset(slice(0, 4_000)), test)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
