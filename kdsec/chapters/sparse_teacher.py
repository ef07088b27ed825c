"""Settings of the chapter on teachers that teach badly: *The adversarial sparse teacher*."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdsec import models
from kdsec.attacks.stealing import THIEVES
from kdsec.chapters.checks import check
from kdsec.chapters.schedules import same_steps
from kdsec.data import DATASETS, Augment
from kdsec.errors import KdsecError, choose
from kdsec.muon import turned
from kdsec.train import Recipe

# What can be changed about AST, one thing at a time, to see which part matters: see ``ast_loss`` and
# ``disturbance`` in the chapter.
VARIANTS = {
    "as coded": "the authors' code: PGD in normalised units, clean and disturbed images not paired",
    "unpaired": "each clean image with another one's disturbed image",
    "random targets": "the same sparse probabilities, dealt out to random classes",
    "relative entropy": "KL in place of EPD",
    "frozen source": "targets from the honest teacher instead of the net being trained",
    "noise": "Gaussian noise in place of PGD",
    "low contrast": "the contrast lost in the authors' PGD, without the attack",
    "clean": "no disturbance at all: only the sparseness is left",
}


@dataclass(frozen=True)
class SparseTeacher:
    """One owner, five teachers for sale, and thieves.

    Attributes:
        dataset: what the teachers classify.
        validation: share of the training images set aside for choices.
        owner: how many training images the owner has; the students of the main table get the same, as in the
            papers.
        theft: how many *other* images, without labels, the thieves have.
        few: share of labels known where few are.
        teacher: the owner's network.
        students: the smaller networks, the first of which carries every experiment.
        smoothing: of the label-smoothed teacher, and of the student without a teacher.
        nasty_temperature, nasty_weights: tau, and omega with the headline value first.
        stingy_keep: logits that the stingy teacher answers with.
        sparse_keep, sparse_temperature, sparse_alphas: n, tau and omega of AST, the headline omega first.
        eps, step_size, pgd_steps: of AST's adversarial images, in pixels of [0, 1].
        variants: of AST, see ``VARIANTS``.
        temperature, alpha: of distillation, as the papers' thief has them.
        temperatures, alphas: of the heat map.
        thieves: who tries to steal without labels, from ``kdsec.attacks.stealing.THIEVES``.
        recipe: of the teachers, and of the students but for the epochs; the papers' own where there is one.
        fast: a shorter recipe; ``book/how-to-run.md`` says what it costs.
        schedule: ``full`` trains by ``recipe``, ``fast`` by ``fast``.
        student_steps: training steps of every student by ``recipe``, however many images it has.
    """

    dataset: str
    validation: float
    owner: int
    theft: int
    few: float
    teacher: str
    students: tuple[str, ...]
    smoothing: float
    nasty_temperature: float
    nasty_weights: tuple[float, ...]
    stingy_keep: int
    sparse_keep: int
    sparse_temperature: float
    sparse_alphas: tuple[float, ...]
    eps: float
    step_size: float
    pgd_steps: int
    variants: tuple[str, ...]
    temperature: float
    alpha: float
    temperatures: tuple[float, ...]
    alphas: tuple[float, ...]
    thieves: tuple[str, ...]
    recipe: Recipe
    student_steps: int
    fast: Recipe | None = None
    schedule: str = "full"

    def __post_init__(self) -> None:
        choose("dataset", self.dataset, DATASETS)
        for model in (self.teacher, *self.students):
            choose("model", model, models.names())
        for thief in self.thieves:
            choose("thief", thief, THIEVES)
        for variant in self.variants:
            choose("variant", variant, VARIANTS)
        choose("schedule", self.schedule, ("full",) if self.fast is None else ("full", "fast"))
        check(
            self,
            positive=("few", "nasty_temperature", "sparse_temperature", "temperature", "temperatures"),
            shares=("few", "smoothing", "eps", "step_size", "alpha", "alphas", "sparse_alphas"),
            counts=("owner", "theft", "stingy_keep", "sparse_keep", "pgd_steps", "student_steps"),
            filled=("students", "nasty_weights", "sparse_alphas", "thieves", "temperatures", "alphas"),
        )
        if self.training.optimizer == "muon":  # refused now, not when a student's turn comes
            for model in (self.teacher, *self.students):
                with torch.device("meta"):
                    network = models.build(model, num_classes=10, shape=(3, 32, 32))
                if not turned(network):
                    raise KdsecError(
                        f"schedule={self.schedule} trains by Muon, which needs convolutions and batch "
                        f"normalisation, and {model} has none; leave it out, or take schedule=full"
                    )

    @property
    def training(self) -> Recipe:
        """How the teachers are trained, by the chosen schedule."""
        return self.fast if self.fast and self.schedule == "fast" else self.recipe

    @property
    def training_images(self) -> int:
        """How many are dealt out, to the owner and the thief."""
        return self.owner + self.theft

    def student_recipe(self, images: int) -> Recipe:
        """Of every student: as many steps on few images as on many, fewer of them by the short schedule."""
        share = self.training.epochs / self.recipe.epochs
        return same_steps(self.training, round(share * self.student_steps), images)


_EVERY_THIEF = tuple(name for name, thief in THIEVES.items() if not thief.needs_labels)

PROFILES = {
    "quick": SparseTeacher(
        dataset="digits",
        validation=0.15,
        owner=640,
        theft=378,
        few=0.1,
        teacher="digits-cnn",
        students=("digits-small", "digits-mlp"),
        smoothing=0.1,
        nasty_temperature=4.0,
        # On 640 digits the authors' 0.04 costs the teacher itself a point of validation accuracy.
        nasty_weights=(0.03, 0.06),
        stingy_keep=2,
        sparse_keep=2,
        sparse_temperature=6.0,
        # Chosen on validation images as well: about a point of the teacher's accuracy, and five times that.
        sparse_alphas=(0.01, 0.05),
        eps=0.2,
        step_size=0.05,
        pgd_steps=5,
        variants=("unpaired", "random targets", "relative entropy", "clean"),
        temperature=4.0,
        alpha=0.9,
        temperatures=(1.0, 4.0, 20.0),
        alphas=(0.9, 1.0),
        thieves=(
            "soft labels",
            "hard labels",
            "negatives dropped",
            "class means removed",
            "features",
        ),
        recipe=Recipe(epochs=16, batch_size=64, lr=0.035, augment=Augment(crop=1), precision="float32"),
        student_steps=64,
    ),
    "small": SparseTeacher(
        dataset="cifar10",
        validation=0.1,
        owner=20_000,
        theft=20_000,
        few=0.1,
        teacher="resnet20",
        students=("resnet8", "cnn"),
        smoothing=0.1,
        nasty_temperature=4.0,
        nasty_weights=(0.04,),
        stingy_keep=2,
        sparse_keep=2,
        sparse_temperature=6.0,
        sparse_alphas=(0.05,),
        eps=8 / 255,
        step_size=2 / 255,
        pgd_steps=5,
        # None here: each is a teacher more to train. The controls are run at the other two scales.
        variants=(),
        temperature=4.0,
        alpha=0.9,
        temperatures=(1.0, 4.0, 20.0),
        alphas=(0.9, 1.0),
        thieves=("soft labels", "hard labels", "negatives dropped", "class means removed", "features"),
        recipe=Recipe(epochs=7, batch_size=128, lr=0.2, augment=Augment(crop=4, flip=True)),
        student_steps=300,
    ),
    # The authors' settings (AdversarialSparseTeacher, Nasty-Teacher and stingy-teacher on GitHub), PGD in
    # pixels.
    "paper": SparseTeacher(
        dataset="cifar10",
        validation=0.1,
        owner=25_000,
        theft=20_000,
        few=0.1,
        teacher="resnet18",
        students=("resnetc20", "cnn", "resnetc32", "resnet18"),
        smoothing=0.1,
        nasty_temperature=4.0,
        nasty_weights=(0.04, 0.02, 0.08),
        stingy_keep=2,
        sparse_keep=2,
        sparse_temperature=6.0,
        sparse_alphas=(0.05, 0.02, 0.1),
        eps=8 / 255,
        step_size=2 / 255,
        pgd_steps=10,
        variants=tuple(VARIANTS),
        temperature=4.0,
        alpha=0.9,
        temperatures=(1.0, 4.0, 20.0, 100.0),
        alphas=(0.1, 0.5, 0.9, 1.0),
        thieves=_EVERY_THIEF,
        recipe=Recipe(
            epochs=160, lr=0.1, schedule="step", milestones=(80, 120), augment=Augment(crop=4, flip=True)
        ),
        fast=Recipe(epochs=50, optimizer="muon", lr=0.1, augment=Augment(crop=4, flip=True)),
        student_steps=31_000,
    ),
}

# What goes with another data set, brought along by --set dataset=cifar100: the authors' settings there.
COMPANIONS = {
    "cifar100": {
        "students": ("shufflenetv2", "resnet18"),
        "nasty_temperature": 20.0,
        "nasty_weights": (0.005, 0.0025, 0.01),
        "stingy_keep": 10,
        "sparse_keep": 7,
        "sparse_temperature": 30.0,
        "sparse_alphas": (0.035, 0.01, 0.1),
        "temperature": 20.0,
        "recipe": Recipe(
            epochs=200,
            lr=0.1,
            schedule="step",
            milestones=(60, 120, 160),
            gamma=0.2,
            augment=Augment(crop=4, flip=True),
        ),
    }
}
