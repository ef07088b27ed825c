"""Misuse from Python: every case is refused in one line, or warned about, or does the right thing.

A wrong number in silence and a raw traceback are the two outcomes that must not happen.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from kdsec import config, data, models
from kdsec.attacks import poisoning
from kdsec.attacks.adaptive import adaptive_pgd, worst_case
from kdsec.attacks.constrained_search import Dssim, Linf
from kdsec.attacks.crafting import Crafting
from kdsec.attacks.extraction import EXTRACTION_ATTACKS, best_attack, run_attacks
from kdsec.attacks.mimicry import mimic
from kdsec.attacks.triggers import trigger
from kdsec.cache import Cache, load_checkpoint
from kdsec.data import UNLABELLED, Augment, ImageSet
from kdsec.defenses.adversarial_training import TRADES, PGDTraining
from kdsec.defenses.nasty import NastyLoss
from kdsec.defenses.purification import DistillationTerm, Restore, two_teacher_terms
from kdsec.defenses.rejection import choose_threshold
from kdsec.defenses.reversed_maximization import ReversedMaximizationLoss
from kdsec.defenses.sparse_teacher import SparseTeacherLoss, pair, perturb
from kdsec.defenses.stingy import Stingy
from kdsec.distill import KD, AttentionTransfer, HardLabels
from kdsec.errors import KdsecError
from kdsec.fingerprint import fingerprint
from kdsec.pgd import fgsm, pgd
from kdsec.report.records import Records, read
from kdsec.run import start
from kdsec.train import CrossEntropy, Recipe, evaluate, fit, predict

NAN, INF = math.nan, math.inf
CLASSES = tuple("0123456789")
STEP = Recipe(epochs=1, batch_size=32, lr=0.1, precision="float32")


class Returns(nn.Module):
    """A network whose output is changed on the way out."""

    def __init__(self, change: Callable[[torch.Tensor], Any]):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.change = change

    def forward(self, images: torch.Tensor) -> Any:
        return self.change(self.net(images))


def tuple_(z):
    return (z,)


def dict_(z):
    return {"logits": z}


def object_(z):
    return SimpleNamespace(logits=z)


def none(z):
    return None


def column(z):
    return z[:, :1]


def vector(z):
    return z[:, 0]


def fewer(z):
    return z[:-1]


def narrow(z):
    return z[:, :5]


def not_a_number(z):
    return z * NAN


def infinite(z):
    return z + INF


def probabilities(z):
    return z.softmax(1)


def no_gradient(z):
    return z.detach()


def numpy_(z):
    return z.detach().numpy()


class Blind(nn.Module):
    """A network that computes without gradients."""

    def __init__(self, mode: Callable[[], Any]):
        super().__init__()
        self.net, self.mode = net(), mode

    def forward(self, images):
        with self.mode():
            return self.net(images)


@functools.cache
def digits() -> ImageSet:
    return data.load("digits").train.subset(slice(0, 64))


def net(seed: int = 0) -> nn.Module:
    return models.build("digits-small", 10, (1, 8, 8), mean=[0.3], std=[0.4], seed=seed).eval()


def x() -> torch.Tensor:
    return digits().float_images()


def y() -> torch.Tensor:
    return digits().labels


def image_set(images: Any = None, labels: Any = None, classes: Any = CLASSES) -> ImageSet:
    return ImageSet(x() if images is None else images, y() if labels is None else labels, classes, "mine")


def train(loss: Any = None, model: Any = None, on: Any = None, recipe: Any = STEP, **options: Any) -> Any:
    return fit(net() if model is None else model, digits() if on is None else on, recipe, loss, **options)


def attack(model: Any = None, images: Any = None, labels: Any = None, how: Any = pgd, **options: Any) -> Any:
    images, labels = x() if images is None else images, y() if labels is None else labels
    return how(net() if model is None else model, images, labels, **({"eps": 0.1, "steps": 2} | options))


def steal(name: str, teacher: Any = None, on: Any = None, student: Any = None, **options: Any) -> Any:
    on = digits().unlabelled() if on is None else on
    return EXTRACTION_ATTACKS[name](student or net(1), teacher or net(), on, STEP, **options)


def one_hot() -> torch.Tensor:
    return nn.functional.one_hot(y(), 10)


def dataset() -> Any:
    return torch.utils.data.TensorDataset(x(), y())


def half_labelled() -> ImageSet:
    labels = y().clone()
    labels[::2] = UNLABELLED
    return digits().replace(labels=labels)


def in_train_mode() -> nn.Module:
    return net().train()


def poison(**options: Any) -> Any:
    made = Crafting(eps=0.1, steps=1)
    how = {"mark": trigger("square 2", (1, 8, 8)), "target": 1, "rate": 0.1, "how": made} | options
    return poisoning.poison(digits(), net(), **how)


# Refused in one line
REFUSED: dict[str, Callable[[], Any]] = {
    # images and labels
    "images of bytes as floats": lambda: image_set(x() * 255),
    "images below 0": lambda: image_set(x() - 0.5),
    "images nan": lambda: image_set(x() * NAN),
    "images infinite": lambda: image_set(x() + INF),
    "images without channels": lambda: image_set(x()[:, 0]),
    "images None": lambda: ImageSet(None, y(), CLASSES, "mine"),
    "images text": lambda: image_set("cifar10"),
    "images complex": lambda: image_set(x().to(torch.complex64)),
    "images of another length": lambda: image_set(x()[:-1]),
    "images are a data set": lambda: image_set(dataset()),
    "images are a loader": lambda: image_set(torch.utils.data.DataLoader(dataset())),
    "labels out of range": lambda: image_set(labels=y() + 5),
    "labels below -1": lambda: image_set(labels=y() - 5),
    "labels with fractions": lambda: image_set(labels=y() + 0.5),
    "labels nan": lambda: image_set(labels=y().float() * NAN),
    "labels as soft labels": lambda: image_set(labels=torch.full((64, 10), 0.1)),
    "labels None": lambda: ImageSet(x(), None, CLASSES, "mine"),
    "labels text": lambda: image_set(labels=["one"] * 64),
    "labels 3-d": lambda: image_set(labels=y()[:, None, None]),
    "no classes": lambda: image_set(classes=()),
    "draw none": lambda: digits().stratified(0, 0),
    "draw too many": lambda: digits().stratified(10**6, 0),
    "subset outside": lambda: digits().subset(torch.tensor([1000])),
    "subset by a mask of another length": lambda: digits().subset(torch.ones(3, dtype=torch.bool)),
    "replace by other images": lambda: digits().replace(images=x()[:3]),
    "unknown data set": lambda: data.load("fashionmnist"),
    "validation 0": lambda: data.load("digits", validation=0),
    "validation 1": lambda: data.load("digits", validation=1.0),
    "validation below 0": lambda: data.load("digits", validation=-1),
    "validation nan": lambda: data.load("digits", validation=NAN),
    # recipes
    "epochs 0": lambda: Recipe(epochs=0),
    "epochs with a fraction": lambda: Recipe(epochs=1.5),
    "epochs text": lambda: Recipe(epochs="3"),
    "rate 0": lambda: Recipe(lr=0.0),
    "rate below 0": lambda: Recipe(lr=-0.1),
    "rate nan": lambda: Recipe(lr=NAN),
    "momentum 1": lambda: Recipe(momentum=1.0),
    "momentum below 0": lambda: Recipe(momentum=-0.1),
    "momentum nan": lambda: Recipe(momentum=NAN),
    "decay below 0": lambda: Recipe(weight_decay=-1e-4),
    "decay nan": lambda: Recipe(weight_decay=NAN),
    "clip below 0": lambda: Recipe(grad_clip=-1.0),
    "clip nan": lambda: Recipe(grad_clip=NAN),
    "clip 0": lambda: Recipe(grad_clip=0.0),
    "batch of 0": lambda: train(recipe=dataclasses.replace(STEP, batch_size=0)),
    "batch of 1": lambda: train(recipe=dataclasses.replace(STEP, batch_size=1)),
    "batch text": lambda: train(recipe=dataclasses.replace(STEP, batch_size="64")),
    "unknown optimizer": lambda: Recipe(optimizer="adamw"),
    "unknown schedule": lambda: Recipe(schedule="cosine"),
    "unknown precision": lambda: Recipe(precision="float16"),
    "crop below 0": lambda: Augment(crop=-1),
    "cutout below 0": lambda: Augment(cutout=-4),
    "smoothing 1": lambda: CrossEntropy(1.0),
    "smoothing below 0": lambda: CrossEntropy(-0.1),
    "smoothing nan": lambda: CrossEntropy(NAN),
    # training
    "no labels to learn from": lambda: train(on=digits().unlabelled()),
    "an empty set": lambda: train(on=digits().subset(slice(0, 0))),
    "a tensor for a set": lambda: train(on=x()),
    "seed below 0": lambda: train(seed=-1),
    "seed of 33 bits": lambda: train(seed=2**32),
    "seed with a fraction": lambda: train(seed=0.5),
    "rate infinite": lambda: train(recipe=dataclasses.replace(STEP, lr=INF, batch_size=64)),
    "fp16 on a CPU": lambda: train(recipe=dataclasses.replace(STEP, precision="fp16")),
    "a loss per image": lambda: train(lambda model, batch: model(batch.images).sum(1)),
    "a loss that is a float": lambda: train(lambda model, batch: 1.0),
    "a loss that is nan": lambda: train(lambda model, batch: model(batch.images).sum() * NAN),
    "a network of five classes": lambda: train(model=Returns(narrow)),
    "images of three channels": lambda: train(on=image_set(x().expand(-1, 3, -1, -1))),
    "fp32 is no name": lambda: train(recipe=dataclasses.replace(STEP, precision="fp32")),
    # what networks return
    **{
        f"predict: {change.__name__}": lambda change=change: predict(Returns(change), x())
        for change in (tuple_, dict_, object_, none, vector, fewer, not_a_number, infinite, numpy_)
    },
    **{
        f"evaluate: {change.__name__}": lambda change=change: evaluate(Returns(change), digits())
        for change in (tuple_, dict_, none, column, narrow, not_a_number)
    },
    **{
        f"distil from: {change.__name__}": lambda change=change: train(KD(Returns(change), 4.0, 1.0))
        for change in (tuple_, dict_, object_, none, column, narrow, not_a_number, infinite)
    },
    **{
        f"steal from: {change.__name__}": lambda change=change: steal("soft labels", Returns(change))
        for change in (tuple_, dict_, object_, none, column, narrow, not_a_number)
    },
    **{
        f"attack: {change.__name__}": lambda change=change: attack(Returns(change))
        for change in (tuple_, dict_, none, column, not_a_number, no_gradient)
    },
    "evaluate without labels": lambda: evaluate(net(), digits().unlabelled()),
    "evaluate half labelled": lambda: evaluate(net(), half_labelled()),
    "evaluate nothing": lambda: evaluate(net(), digits().subset(slice(0, 0))),
    # distillation
    "temperature 0": lambda: KD(net(), 0.0),
    "temperature below 0": lambda: KD(net(), -4.0),
    "temperature nan": lambda: KD(net(), NAN),
    "alpha above 1": lambda: KD(net(), 4.0, 1.5),
    "alpha nan": lambda: KD(net(), 4.0, NAN),
    "stored logits of another length": lambda: train(KD(torch.zeros(10, 10), 4.0, 1.0)),
    "stored logits of one column": lambda: train(KD(torch.zeros(64, 1), 4.0, 1.0)),
    "stored logits longer": lambda: train(KD(torch.zeros(100, 10), 4.0, 1.0)),
    "stored logits nan": lambda: train(KD(torch.full((64, 10), NAN), 4.0, 1.0)),
    "stored decisions for logits": lambda: train(HardLabels(torch.zeros(64, dtype=torch.long))),
    "attention weight nan": lambda: AttentionTransfer(net(), NAN),
    "attention of a plain network": lambda: train(AttentionTransfer(Returns(tuple_))),
    "nasty weight below 0": lambda: NastyLoss(net(), weight=-1.0),
    "nasty weight nan": lambda: NastyLoss(net(), weight=NAN),
    "nasty temperature 0": lambda: NastyLoss(net(), 0.0),
    "stingy keeps none": lambda: Stingy(net(), 0),
    "stingy keeps too many": lambda: predict(Stingy(net(), 11), x()),
    "sparse alpha above 1": lambda: SparseTeacherLoss(alpha=2.0),
    "sparse divergence": lambda: SparseTeacherLoss(divergence="js"),
    "sparse without pairs": lambda: train(SparseTeacherLoss()),
    "perturb: unknown kind": lambda: perturb(net(), digits(), "gaussian"),
    "pair of other shapes": lambda: pair(digits(), x()[:3]),
    "unknown reading": lambda: ReversedMaximizationLoss(net(), "negated"),
    "reversal weight nan": lambda: ReversedMaximizationLoss(net(), reversal_weight=NAN),
    "restore weight below 0": lambda: Restore(lambda model, batch: (batch.images,) * 2, pixels=-1.0),
    "term of weight 0": lambda: DistillationTerm(net(), 0.0),
    "terms of weight 1": lambda: two_teacher_terms(net(), net(), weight=1.0),
    "adversarial training at eps 0": lambda: PGDTraining(0.0),
    "adversarial training in bytes": lambda: PGDTraining(8),
    "TRADES beta nan": lambda: TRADES(0.1, beta=NAN),
    "threshold at rate 1": lambda: choose_threshold(net(), digits(), 1.0),
    # attacks
    "eps in bytes": lambda: attack(eps=8),
    "eps below 0": lambda: attack(eps=-0.1),
    "eps nan": lambda: attack(eps=NAN),
    "no steps": lambda: attack(steps=0),
    "step size 0": lambda: attack(step_size=0.0),
    "step size nan": lambda: attack(step_size=NAN),
    "unknown norm": lambda: attack(norm="l1"),
    "no restarts": lambda: attack(restarts=0),
    "batches of 0": lambda: attack(batch_size=0),
    "attack without labels": lambda: attack(labels=torch.full((64,), UNLABELLED)),
    "attack with float labels": lambda: attack(labels=y().float() + 0.5),
    "attack with labels out of range": lambda: attack(labels=y() + 10),
    "attack with fewer labels": lambda: attack(labels=y()[:-1]),
    "attack on byte floats": lambda: attack(images=x() * 255),
    "attack on nan": lambda: attack(images=x() * NAN),
    "attack on nothing": lambda: attack(images=x()[:0], labels=y()[:0]),
    "attack through no_grad": lambda: attack(Blind(torch.no_grad)),
    "attack through inference_mode": lambda: attack(Blind(torch.inference_mode)),
    "fgsm in bytes": lambda: fgsm(net(), x(), y(), eps=8),
    "adaptive: no budget": lambda: attack(how=adaptive_pgd, eps=0),
    "adaptive: unknown loss": lambda: attack(how=adaptive_pgd, losses=["hinge"]),
    "adaptive: no loss": lambda: attack(how=adaptive_pgd, losses=[]),
    "adaptive: through no_grad": lambda: attack(Blind(torch.no_grad), how=adaptive_pgd),
    "adaptive: labels out of range": lambda: attack(how=adaptive_pgd, labels=y() + 10),
    "worst case of nothing": lambda: worst_case(net(), [], y()),
    "worst case of other shapes": lambda: worst_case(net(), [x(), x()[:3]], y()),
    "mimicry budget 0": lambda: Dssim(budget=0.0),
    "mimicry budget nan": lambda: Dssim(budget=NAN),
    "mimicry eps in bytes": lambda: Linf(eps=8),
    "mimicry layer 0": lambda: mimic(net(), 0, x()[:2], x()[2:4], Linf(steps=1)),
    "mimicry layer too deep": lambda: mimic(net(), 99, x()[:2], x()[2:4], Linf(steps=1)),
    "trigger name": lambda: trigger("circle", (1, 8, 8)),
    "trigger corner": lambda: trigger("square 2", (1, 8, 8), corner="middle"),
    "poison all": lambda: poison(rate=2.0),
    "poison rate nan": lambda: poison(rate=NAN),
    "poison target": lambda: poison(target=10),
    "poison target below 0": lambda: poison(target=-1),
    # extraction
    "linear map without labels": lambda: steal("linear map"),
    "features of a plain network": lambda: steal("features", Returns(lambda z: z)),
    "steal at temperature 0": lambda: steal("soft labels", temperature=0.0),
    "steal with alpha 2": lambda: steal("soft labels", alpha=2.0),
    "steal from nothing": lambda: steal("soft labels", on=digits().subset(slice(0, 0))),
    "steal with a student of five classes": lambda: steal("soft labels", student=Returns(narrow)),
    "best of no attacks": lambda: best_attack([]),
    "no attacks": lambda: run_attacks({}, net, net(), digits(), digits(), STEP),
    # networks
    "unknown network": lambda: models.build("resnet19", 10, (1, 8, 8), mean=[0.3], std=[0.4]),
    "no classes for a network": lambda: models.build("digits-cnn", 0, (1, 8, 8), mean=[0.3], std=[0.4]),
    "another number of means": lambda: models.build(
        "digits-cnn", 10, (1, 8, 8), mean=[0.3] * 3, std=[0.4] * 3
    ),
    "deviation 0": lambda: models.build("digits-cnn", 10, (1, 8, 8), mean=[0.3], std=[0.0]),
    # keys, cache, files
    "key of a file": lambda: fingerprint(threading.Lock()),
    "key of a generator": lambda: fingerprint(value for value in (1, 2)),
    "no checkpoint": lambda: load_checkpoint(pathlib.Path("/nowhere/at.safetensors"), "a"),
    "a text as checkpoint": lambda: load_checkpoint(pathlib.Path(__file__), "a"),
    "a folder as checkpoint": lambda: load_checkpoint(pathlib.Path(__file__).parent, "a"),
    "a file as cache": lambda: Cache(pathlib.Path(__file__)).fit(net(), digits(), STEP),
    # records
    "record nan": lambda: Records("opening", "quick", 0, "digits").add("a", "b", "c", NAN),
    "record text": lambda: Records("opening", "quick", 0, "digits").add("a", "b", "c", "0.5"),
    "record a bool": lambda: Records("opening", "quick", 0, "digits").add("a", "b", "c", True),
    "record lines": lambda: Records("opening", "quick", 0, "digits").add("a\nb", "b", "c", 0.5),
    "record n 0": lambda: Records("opening", "quick", 0, "digits").add("a", "b", "c", 0.5, n=0),
    "record a list as setting": lambda: Records("opening", "quick", 0, "digits").add(
        "a", "b", "c", 0.5, t=[1]
    ),
    "save nothing": lambda: Records("opening", "quick", 0, "digits").save("/tmp", {}),
    "read an unknown profile": lambda: read("results", "medium"),
    "read an unknown chapter": lambda: read("results", "quick", "intro"),
    # runs and settings
    "unknown chapter": lambda: start("intro"),
    "unknown profile": lambda: start("opening", profile="tiny"),
    "seed text": lambda: start("opening", seed="0"),
    "unknown device": lambda: start("opening", device="tpu"),
    "out a number": lambda: start("opening", out=3),
    "out empty": lambda: start("opening", out=""),
    "overrides a list": lambda: start("opening", overrides=[("alpha", 1)]),
    "unknown setting": lambda: config.settings("opening", "quick", {"tempreture": 2.0}),
    "setting of another type": lambda: config.settings("opening", "quick", {"temperature": "hot"}),
    "setting nan": lambda: config.settings("opening", "quick", {"temperature": NAN}),
    "setting out of range": lambda: config.settings("opening", "quick", {"alpha": 2.0}),
    "queries twice": lambda: config.settings("opening", "quick", {"queries": [50, 50]}),
    "owner of ten": lambda: config.settings("opening", "quick", {"owner": 10}),
    "no queries": lambda: config.settings("opening", "quick", {"queries": []}),
    "setting validation 0": lambda: config.settings("opening", "quick", {"validation": 0.0}),
    "setting validation 1": lambda: config.settings("opening", "quick", {"validation": 1.0}),
    "deal too many": lambda: start("opening").deal(10**6),
    "deal below 0": lambda: start("opening").deal(-1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(KdsecError) as refusal:
            REFUSED[name]()
    message = str(refusal.value)
    assert "\n" not in message and 10 < len(message) < 400


def same_as_floats(images: Any) -> bool:
    return torch.allclose(image_set(images).float_images(), x(), atol=0.003)


# Converted, or right as it is
WORKS: dict[str, Callable[[], bool]] = {
    "numpy images": lambda: same_as_floats(x().numpy()),
    "float64 images": lambda: same_as_floats(x().double()),
    "images in lists": lambda: same_as_floats(x().tolist()),
    "half precision images": lambda: same_as_floats(x().half()),
    "rounding above 1": lambda: image_set(x() + 1e-7).float_images().max() <= 1,
    "int32 labels": lambda: torch.equal(image_set(labels=y().int()).labels, y()),
    "whole float labels": lambda: torch.equal(image_set(labels=y().float()).labels, y()),
    "numpy labels": lambda: torch.equal(image_set(labels=y().numpy()).labels, y()),
    "labels in a list": lambda: torch.equal(image_set(labels=y().tolist()).labels, y()),
    "one-hot labels": lambda: torch.equal(image_set(labels=one_hot()).labels, y()),
    "classes in a list": lambda: image_set(classes=list(CLASSES)).num_classes == 10,
    "from a data set": lambda: len(ImageSet.from_dataset(dataset(), classes=CLASSES, name="mine")) == 64,
    "attack at 1 + 1e-7": lambda: attack(images=(x() + 1e-7), how=adaptive_pgd).max() <= 1,
    "attack on bytes": lambda: torch.equal(attack(images=digits().images), attack(images=x())),
    "minus infinity is a logit": lambda: math.isfinite(
        train(KD(Returns(lambda z: z.masked_fill(z < z.topk(2).values[:, 1:], -INF)), 4.0, 1.0))[0]
    ),
}


@pytest.mark.parametrize("name", WORKS)
def test_works(name):
    assert WORKS[name]()


WARNED: dict[str, tuple[Callable[[], Any], str]] = {
    "probabilities for logits": (lambda: predict(Returns(probabilities), x()), "softmax"),
    "distil from probabilities": (lambda: train(KD(Returns(probabilities), 4.0, 1.0)), "softmax"),
    "zero gradients": (lambda: attack(Returns(lambda z: z * 0)), "gradient"),
}


@pytest.mark.parametrize("name", WARNED)
def test_warned(name):
    run, word = WARNED[name]
    with pytest.warns(UserWarning, match=word):
        run()


ASKED: dict[str, Callable[[nn.Module], Any]] = {
    "predict": lambda model: predict(model, x()),
    "evaluate": lambda model: evaluate(model, digits()),
    "soft labels": lambda model: train(KD(model, 4.0, 1.0)),
    "hard labels": lambda model: train(HardLabels(model)),
    "attention": lambda model: train(AttentionTransfer(model)),
    "nasty": lambda model: train(NastyLoss(model)),
    "reversed": lambda model: train(ReversedMaximizationLoss(model)),
    "perturb": lambda model: perturb(model, digits(), steps=1),
    "pgd": lambda model: attack(model),
    "adaptive": lambda model: attack(model, how=adaptive_pgd),
    "stingy": lambda model: predict(Stingy(model, 2), x()),
    **{
        f"attack {name}": lambda model, name=name: steal(name, model, on=digits())
        for name in EXTRACTION_ATTACKS
    },
}


@pytest.mark.parametrize("name", ASKED)
def test_asking_changes_nothing(name):
    """A victim in train mode keeps its modes, weights and batch statistics."""
    victim = in_train_mode()
    modes = [layer.training for layer in victim.modules()]
    before = {key: value.clone() for key, value in victim.state_dict().items()}
    ASKED[name](victim)
    assert [layer.training for layer in victim.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in victim.state_dict().items())
