"""Settings of the chapter on teachers without dark knowledge, and thieves without data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kdsec import models
from kdsec.attacks.datafree import DFAD
from kdsec.attacks.fast_datafree import FastDFKD
from kdsec.attacks.inversion import Inversion
from kdsec.attacks.stealing import THIEVES
from kdsec.chapters.checks import check
from kdsec.chapters.schedules import same_steps
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
        teacher, student: the two networks.
        smoothing: of the label-smoothed teacher, and of the student without a teacher.
        allowed: validation accuracy that a protected teacher may lose against the normal one, a share: of the
            strengths tried, the strongest within it is the one that the tables show.
        nasty_temperature, nasty_weights: tau and the omegas tried.
        stingy_keep: logits that the stingy teacher answers with.
        sparse_keep, sparse_temperature, sparse_alphas: n, tau and the omegas tried of AST.
        eps, step_size, pgd_steps: of AST's adversarial images.
        readings: of reversed maximization, see ``kdsec.defenses.reversed_maximization.READINGS``; the
            headline first.
        reversal_temperature: tau.
        strengths: the betas tried with the first two readings; the others take the first only.
        split_temperatures: at which the loss is also tried without its split.
        away_weight: beta of the reading without a target, which has no lowest point to stop at.
        temperature, alpha: of distillation.
        suspects: teachers that every thief is set on.
        thieves: with data, from ``kdsec.attacks.stealing.THIEVES``.
        powers: of the thief who raises the negatives to a signed power.
        game, drawing, inversion: thieves without data: two with a generator, the simple and the strong one,
            and one without.
        drawn_from: teachers that they are set on.
        datafree_targets: what the latter two learn from them.
        recipe: of the teachers, and of the students but for the epochs.
        student_steps: training steps of every student with data.
    """

    dataset: str
    validation: float
    owner: int
    theft: int
    teacher: str
    student: str
    smoothing: float
    allowed: float
    nasty_temperature: float
    nasty_weights: tuple[float, ...]
    stingy_keep: int
    sparse_keep: int
    sparse_temperature: float
    sparse_alphas: tuple[float, ...]
    eps: float
    step_size: float
    pgd_steps: int
    readings: tuple[str, ...]
    reversal_temperature: float
    strengths: tuple[float, ...]
    split_temperatures: tuple[float, ...]
    away_weight: float
    temperature: float
    alpha: float
    suspects: tuple[str, ...]
    thieves: tuple[str, ...]
    powers: tuple[float, ...]
    game: DFAD
    drawing: FastDFKD
    inversion: Inversion
    drawn_from: tuple[str, ...]
    datafree_targets: tuple[str, ...]
    recipe: Recipe
    student_steps: int

    def __post_init__(self) -> None:
        check(
            self,
            positive=(
                "nasty_temperature",
                "sparse_temperature",
                "reversal_temperature",
                "temperature",
                "strengths",
                "split_temperatures",
            ),
            shares=("smoothing", "allowed", "sparse_alphas", "eps", "step_size", "alpha"),
            counts=("owner", "theft", "stingy_keep", "sparse_keep", "pgd_steps", "student_steps"),
            filled=(
                "readings",
                "strengths",
                "nasty_weights",
                "sparse_alphas",
                "suspects",
                "thieves",
                "drawn_from",
                "datafree_targets",
            ),
        )
        choose("dataset", self.dataset, DATASETS)
        for model in (self.teacher, self.student):
            choose("model", model, models.names())
        for reading in self.readings:
            choose("reading", reading, READINGS)
        for thief in self.thieves:
            choose("thief", thief, THIEVES)
        for target in self.datafree_targets:
            choose("data-free target", target, DATAFREE_TARGETS)
        for teacher in (*self.suspects, *self.drawn_from):
            choose("teacher", teacher, (*OTHERS, *self.readings))
        if not all(weight >= 0 for weight in (self.away_weight, *self.nasty_weights)):
            raise KdsecError(
                f"away_weight={self.away_weight}, nasty_weights={self.nasty_weights}: they must be 0 or more"
            )

    @property
    def training_images(self) -> int:
        """How many are dealt out, to the owner and the thief."""
        return self.owner + self.theft

    @property
    def lightest(self) -> str:
        """The least of the strengths, as records write it."""
        return f"{min(self.strengths):g}"

    def student_recipe(self, images: int) -> Recipe:
        """Of every student: as many steps on few images as on many."""
        return same_steps(self.recipe, self.student_steps, images)

    def inversion_recipe(self, images: int) -> Recipe:
        """Of the students of inverted images: as many steps as the strong generator's student takes."""
        plan = self.drawing
        return same_steps(self.recipe, (plan.rounds - plan.warmup) * plan.student_steps, images)


PROFILES = {
    "quick": ReversedMaximization(
        dataset="digits",
        validation=0.15,
        owner=512,
        theft=506,
        teacher="digits-medium",
        student="digits-small",
        smoothing=0.1,
        # Three of 180 images.
        allowed=0.02,
        nasty_temperature=4.0,
        nasty_weights=(0.04,),
        stingy_keep=2,
        sparse_keep=2,
        sparse_temperature=6.0,
        sparse_alphas=(0.01,),
        eps=0.2,
        step_size=0.05,
        pgd_steps=5,
        readings=("negate", "rank", "complement", "uniform", "copy"),
        reversal_temperature=4.0,
        strengths=(1.0, 0.3),
        split_temperatures=(1.0, 4.0),
        away_weight=0.03,
        temperature=4.0,
        alpha=0.9,
        suspects=("normal", "negate", "uniform"),
        thieves=(
            "soft labels",
            "hard labels",
            "negatives dropped",
            "negatives negated",
            "ranks reversed",
            "class means negated",
            "sign detected",
        ),
        powers=(),
        game=DFAD(rounds=24, batch_size=64, latent=32, width=16, generator_lr=0.01),
        drawing=FastDFKD(
            rounds=9,
            warmup=3,
            student_steps=20,
            batch_size=64,
            temperature=4.0,
            student_lr=0.1,
            latent=32,
            width=16,
            augment=Augment(crop=1),
        ),
        inversion=Inversion(batches=1, batch_size=250, steps=40, lr=0.2, jitter=0),
        drawn_from=("normal", "uniform", "negate"),
        datafree_targets=("soft labels", "hard labels"),
        recipe=Recipe(epochs=12, batch_size=64, lr=0.05, augment=Augment(crop=1), precision="float32"),
        student_steps=64,
    ),
    "small": ReversedMaximization(
        dataset="cifar10",
        validation=0.1,
        owner=8_000,
        theft=20_000,
        teacher="cnn",
        student="cnn-small",
        smoothing=0.1,
        allowed=0.01,
        nasty_temperature=4.0,
        nasty_weights=(0.04,),
        stingy_keep=2,
        sparse_keep=2,
        sparse_temperature=6.0,
        sparse_alphas=(0.03,),
        eps=8 / 255,
        step_size=2 / 255,
        pgd_steps=5,
        readings=("negate", "rank", "uniform", "copy"),
        reversal_temperature=4.0,
        strengths=(1.0, 0.3),
        split_temperatures=(),
        away_weight=0.03,
        temperature=4.0,
        alpha=0.9,
        suspects=("normal", "negate", "uniform"),
        thieves=(
            "soft labels",
            "hard labels",
            "negatives dropped",
            "negatives negated",
            "class means negated",
        ),
        powers=(),
        # A minute or two of one core each; the paper's budgets are a hundred times as large.
        game=DFAD(rounds=60, batch_size=128, latent=64, width=32, precision="bf16"),
        drawing=FastDFKD(
            rounds=20,
            warmup=5,
            student_steps=20,
            batch_size=128,
            temperature=4.0,
            student_lr=0.1,
            latent=64,
            width=32,
            precision="bf16",
        ),
        inversion=Inversion(batches=4, batch_size=250, steps=60, precision="bf16"),
        drawn_from=("normal", "uniform", "negate"),
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
        teacher="resnet18",
        student="shufflenetv2",
        smoothing=0.1,
        allowed=0.005,
        nasty_temperature=20.0,
        nasty_weights=(0.01, 0.005, 0.002),
        stingy_keep=10,
        sparse_keep=7,
        sparse_temperature=30.0,
        sparse_alphas=(0.1, 0.035, 0.01),
        eps=8 / 255,
        step_size=2 / 255,
        pgd_steps=10,
        readings=("negate", "rank", "complement", "uniform", "linear rank", "away", "copy"),
        reversal_temperature=4.0,
        strengths=(3.0, 1.0, 0.3, 0.1),
        split_temperatures=(1.0, 4.0),
        away_weight=0.005,
        temperature=4.0,
        alpha=0.9,
        suspects=("normal", "smoothed", "nasty", "stingy", "AST", "negate", "rank", "complement", "uniform"),
        thieves=tuple(name for name, thief in THIEVES.items() if not thief.needs_labels),
        powers=(-2.0, -0.5, 0.5, 2.0),
        game=DFAD(precision="bf16"),
        drawing=FastDFKD(precision="bf16"),
        inversion=Inversion(precision="bf16"),
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

PROFILES["second"] = replace(
    PROFILES["small"],
    dataset="cifar100",
    owner=10_000,
    nasty_temperature=20.0,
    nasty_weights=(0.01,),
    stingy_keep=10,
    sparse_keep=7,
    sparse_temperature=30.0,
    strengths=(0.3, 1.0, 0.1),  # all readings take the first, which costs the teachers of CIFAR-10 nothing
    recipe=replace(PROFILES["small"].recipe, epochs=12),
)

# What the public code of the nasty and the stingy teacher uses elsewhere.
COMPANIONS = {
    "cifar10": {
        "nasty_temperature": 4.0,
        "nasty_weights": (0.08, 0.04, 0.02),
        "stingy_keep": 2,
        "sparse_keep": 2,
        "sparse_temperature": 6.0,
        "sparse_alphas": (0.1, 0.03, 0.01),
    },
    "tiny-imagenet": {
        "nasty_temperature": 20.0,
        "nasty_weights": (0.02, 0.01, 0.005),
        "stingy_keep": 20,
        "sparse_keep": 14,
    },
}
