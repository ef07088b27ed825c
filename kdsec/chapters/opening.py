"""Settings of the opening chapter: *Distillation, and how it steals*."""

from __future__ import annotations

from dataclasses import dataclass

from kdsec import models
from kdsec.chapters.checks import check
from kdsec.chapters.schedules import same_steps
from kdsec.data import DATASETS, Augment
from kdsec.errors import choose
from kdsec.train import Recipe


@dataclass(frozen=True)
class Opening:
    """One owner, one thief, one student architecture.

    Attributes:
        dataset: what the teacher classifies.
        validation: share of the training images set aside for choices.
        teacher: the owner's network.
        student: the smaller network of everybody else.
        owner: how many training images the owner has; the thief's are drawn from the rest.
        queries: how many images the thief asks about, smallest to largest.
        surrogate: what a thief without fitting images sends instead: ``noise``, or another data set's name.
        temperature: tau of distillation.
        alpha: weight of the teacher's term where labels are used too.
        smoothing: of the label-smoothing baseline.
        recipe: of the teacher, and of the students but for the epochs.
        student_steps: training steps of every student, however many images it has.
    """

    dataset: str
    validation: float
    teacher: str
    student: str
    owner: int
    queries: tuple[int, ...]
    surrogate: str
    temperature: float
    alpha: float
    smoothing: float
    recipe: Recipe
    student_steps: int

    def __post_init__(self) -> None:
        choose("dataset", self.dataset, DATASETS)
        choose("surrogate", self.surrogate, ("noise", *DATASETS))
        for model in (self.teacher, self.student):
            choose("model", model, models.names())
        check(
            self,
            positive=("temperature",),
            shares=("alpha", "smoothing"),
            counts=("owner", "queries", "student_steps"),
            filled=("queries",),
        )

    @property
    def training_images(self) -> int:
        """How many are dealt out, to the owner and the thief."""
        return self.owner + max(self.queries)

    def student_recipe(self, images: int) -> Recipe:
        """Of every student: as many steps on few images as on many."""
        return same_steps(self.recipe, self.student_steps, images)


PROFILES = {
    "quick": Opening(
        dataset="digits",
        validation=0.1,
        teacher="digits-cnn",
        student="digits-small",
        owner=600,
        queries=(50, 150, 450),
        surrogate="noise",
        temperature=4.0,
        alpha=0.9,
        smoothing=0.1,
        # Tiny images: bf16 gains nothing here, and float32 keeps machines closer to each other.
        recipe=Recipe(epochs=30, batch_size=64, lr=0.1, augment=Augment(crop=1), precision="float32"),
        student_steps=300,
    ),
    "small": Opening(
        dataset="cifar10",
        validation=0.1,
        teacher="resnet20",
        student="resnet8",
        owner=25_000,
        queries=(1_000, 5_000, 20_000),
        surrogate="cifar100",
        temperature=4.0,
        alpha=0.9,
        smoothing=0.1,
        recipe=Recipe(epochs=12, batch_size=128, lr=0.2, augment=Augment(crop=4, flip=True)),
        student_steps=500,
    ),
    "paper": Opening(
        dataset="cifar10",
        validation=0.1,
        teacher="resnet18",
        student="resnetc20",
        owner=25_000,
        queries=(1_000, 5_000, 20_000),
        surrogate="cifar100",
        temperature=4.0,
        alpha=0.9,
        smoothing=0.1,
        recipe=Recipe(
            epochs=160,
            lr=0.1,
            schedule="step",
            milestones=(80, 120),
            augment=Augment(crop=4, flip=True),
        ),
        student_steps=25_000,
    ),
}
