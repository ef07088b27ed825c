"""Settings of the chapter on teachers without dark knowledge, and thieves without data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from kdsec import models
from kdsec.attacks.datafree import DFAD
from kdsec.attacks.fast_datafree import FastDFKD
from kdsec.attacks.stealing import THIEVES
from kdsec.chapters.checks import check
from kdsec.data import DATASETS, Augment
from kdsec.defenses.reversed_maximization import READINGS
from kdsec.errors import KdsecError, choose
from kdsec.train import Recipe

# Teachers of the main table beside the readings of reversed maximization.
OTHERS = ("normal", "smoothed", "nasty", "stingy", "AST")
# What a data-free student learns: the teacher's answers, its decisions, or a repaired view of it.
DATAFREE_TARGETS = ("soft labels", "hard labels", "negatives dropped", "negatives negated", "ranks reversed")


@dataclass(frozen=True)
class ReversedMaximization:
    """One owner, many protected teachers; thieves with images and thieves with none.

    Attributes:
        dataset: what the teachers classify.
        validation: share of the training images set aside for choices.
        owner: how many training images the owner has; the students of the main table get the same.
        theft: how many *other* images, without labels, the thieves with data have.
        few: share of labels known where few are.
        teacher, student: the two networks.
        smoothing: of the label-smoothed teacher, and of the student without a teacher.
        nasty_temperature, nasty_weight: tau and omega of the nasty teacher.
        stingy_keep: logits that the stingy teacher answers with.
        sparse_keep, sparse_temperature, sparse_alpha: n, T and alpha of AST.
        eps, step_size, pgd_steps: of AST's adversarial images.
        readings: of reversed maximization, see ``kdsec.defenses.reversed_maximization.READINGS``; the
            headline first.
        reversal_temperature: tau.
        strengths: beta, the headline first. The others are for the trade-off.
        away_weight: beta of the reading without a target, which has no lowest point to stop at.
        temperature, alpha: of distillation.
        powers: of the signed-exponent thief.
        thieves: with data, from ``kdsec.attacks.stealing.THIEVES``.
        game: the short data-free thief, played against the normal teacher and the headline.
        drawing: the strong one, played against all of ``drawn_from``.
        drawn_from: teachers that the strong one is set on.
        datafree_targets: what it learns from them.
        recipe: of the teachers, and of the students but for the epochs.
        student_steps: training steps of every student with data.
    """

    dataset: str
    validation: float
    owner: int
    theft: int
    few: float
    teacher: str
    student: str
    smoothing: float
    nasty_temperature: float
    nasty_weight: float
    stingy_keep: int
    sparse_keep: int
    sparse_temperature: float
    sparse_alpha: float
    eps: float
    step_size: float
    pgd_steps: int
    readings: tuple[str, ...]
    reversal_temperature: float
    strengths: tuple[float, ...]
    away_weight: float
    temperature: float
    alpha: float
    powers: tuple[float, ...]
    thieves: tuple[str, ...]
    game: DFAD
    drawing: FastDFKD
    drawn_from: tuple[str, ...]
    datafree_targets: tuple[str, ...]
    recipe: Recipe
    student_steps: int

    def __post_init__(self) -> None:
        choose("dataset", self.dataset, DATASETS)
        for model in (self.teacher, self.student):
            choose("model", model, models.names())
        for reading in self.readings:
            choose("reading", reading, READINGS)
        for thief in self.thieves:
            choose("thief", thief, THIEVES)
        for target in self.datafree_targets:
            choose("data-free target", target, DATAFREE_TARGETS)
        for teacher in self.drawn_from:
            choose("teacher", teacher, (*OTHERS, *self.readings))
        check(
            self,
            positive=(
                "few",
                "nasty_temperature",
                "sparse_temperature",
                "reversal_temperature",
                "temperature",
            ),
            shares=("few", "smoothing", "sparse_alpha", "eps", "step_size", "alpha"),
            counts=("owner", "theft", "stingy_keep", "sparse_keep", "pgd_steps", "student_steps"),
            filled=("readings", "strengths", "powers", "thieves", "drawn_from", "datafree_targets"),
        )
        for name in ("nasty_weight", "away_weight", "strengths"):
            value = getattr(self, name)
            if not all(each >= 0 for each in (value if isinstance(value, tuple) else (value,))):
                raise KdsecError(f"setting {name}={value} must be 0 or more")

    def student_recipe(self, images: int) -> Recipe:
        """The same number of steps for every student: on fewer images, more epochs.

        Where the schedule is stepwise, its milestones keep their place in the training.
        """
        epochs = max(1, round(self.student_steps / max(1, images // self.recipe.batch_size)))
        milestones = tuple(round(each * epochs / self.recipe.epochs) for each in self.recipe.milestones)
        return dataclasses.replace(self.recipe, epochs=epochs, milestones=milestones)


PROFILES = {
    "quick": ReversedMaximization(
        dataset="digits",
        validation=0.15,
        owner=640,
        theft=512,
        few=0.1,
        teacher="digits-cnn",
        student="digits-small",
        smoothing=0.1,
        nasty_temperature=4.0,
        nasty_weight=0.02,
        stingy_keep=2,
        sparse_keep=2,
        sparse_temperature=6.0,
        sparse_alpha=0.01,
        eps=0.2,
        step_size=0.05,
        pgd_steps=10,
        readings=("negate", "rank", "complement", "uniform", "linear rank", "away", "copy"),
        reversal_temperature=4.0,
        strengths=(1.0, 0.3),
        away_weight=0.03,
        temperature=4.0,
        alpha=0.9,
        powers=(-1.0, -0.5, 0.0, 0.5, 1.0),
        thieves=(
            "soft labels",
            "hard labels",
            "negatives dropped",
            "negatives negated",
            "ranks reversed",
            "class means negated",
            "sign detected",
        ),
        game=DFAD(rounds=150, batch_size=64, latent=32, width=16, generator_lr=0.01),
        drawing=FastDFKD(
            rounds=20,
            warmup=5,
            student_steps=20,
            batch_size=64,
            temperature=4.0,
            student_lr=0.1,
            latent=32,
            width=16,
            augment=Augment(crop=1),
        ),
        drawn_from=("normal", "nasty", "negate", "rank"),
        datafree_targets=("soft labels", "hard labels"),
        recipe=Recipe(epochs=20, batch_size=64, lr=0.1, augment=Augment(crop=1), precision="float32"),
        student_steps=150,
    ),
    "small": ReversedMaximization(
        dataset="cifar10",
        validation=0.1,
        owner=10_000,
        theft=20_000,
        few=0.1,
        teacher="resnet20",
        student="resnet8",
        smoothing=0.1,
        nasty_temperature=4.0,
        nasty_weight=0.04,
        stingy_keep=2,
        sparse_keep=2,
        sparse_temperature=6.0,
        sparse_alpha=0.05,
        eps=8 / 255,
        step_size=2 / 255,
        pgd_steps=5,
        readings=("negate", "rank", "uniform"),
        reversal_temperature=4.0,
        strengths=(1.0,),
        away_weight=0.03,
        temperature=4.0,
        alpha=0.9,
        powers=(-1.0,),
        thieves=("soft labels", "hard labels", "negatives dropped", "negatives negated", "ranks reversed"),
        game=DFAD(rounds=100, batch_size=128, width=32),
        drawing=FastDFKD(
            rounds=60, warmup=10, student_steps=20, batch_size=128, latent=128, width=64, precision="bf16"
        ),
        drawn_from=("normal", "negate"),
        datafree_targets=("soft labels", "hard labels"),
        recipe=Recipe(epochs=10, batch_size=128, lr=0.2, augment=Augment(crop=4, flip=True)),
        student_steps=300,
    ),
    # Data, networks and schedule of the nasty teacher's public code, since the paper's own are not known; the
    # data-free thief with the defaults of its authors' code.
    "paper": ReversedMaximization(
        dataset="cifar100",
        validation=0.1,
        owner=25_000,
        theft=20_000,
        few=0.1,
        teacher="resnet18",
        student="shufflenetv2",
        smoothing=0.1,
        nasty_temperature=20.0,
        nasty_weight=0.005,
        stingy_keep=10,
        sparse_keep=7,
        sparse_temperature=30.0,
        sparse_alpha=0.035,
        eps=8 / 255,
        step_size=2 / 255,
        pgd_steps=10,
        readings=("negate", "rank", "complement", "uniform", "linear rank", "away", "copy"),
        reversal_temperature=4.0,
        strengths=(1.0, 0.1, 0.3, 3.0),
        away_weight=0.005,
        temperature=4.0,
        alpha=0.9,
        powers=(-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0),
        thieves=tuple(name for name, thief in THIEVES.items() if not thief.needs_labels),
        game=DFAD(precision="bf16"),
        drawing=FastDFKD(precision="bf16"),
        drawn_from=("normal", "smoothed", "nasty", "stingy", "AST", "negate", "rank", "uniform", "copy"),
        datafree_targets=DATAFREE_TARGETS,
        recipe=Recipe(
            epochs=200,
            batch_size=128,
            lr=0.1,
            schedule="step",
            milestones=(60, 120, 160),
            gamma=0.2,
            augment=Augment(crop=4, flip=True),
        ),
        student_steps=31_000,
    ),
}
