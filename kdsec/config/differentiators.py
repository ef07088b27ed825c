"""Settings of the chapter on attacks through a public teacher, and distilled differentiators."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from kdsec import models
from kdsec.attacks.constrained_search import Dssim, Linf
from kdsec.config.fields import (
    BetweenShares,
    Count,
    Dataset,
    Maybe,
    Positive,
    PositiveShare,
    Several,
    Share,
    check_images,
    check_network,
    one_of,
    settings_of_chapter,
)
from kdsec.data.names import CLASS_NAMES
from kdsec.defenses.differentiators import DifferentiatorConfig
from kdsec.defenses.pruning import RANKINGS
from kdsec.errors import KdsecError
from kdsec.train import Recipe

TransferNetwork = Annotated[str, one_of("model", lambda: (*models.names(), *models.imagenet_names()))]


@settings_of_chapter
class Differentiators:
    """A public teacher of some classes, students of others, and defenders who check the students' answers.

    Attributes:
        dataset: what the teacher classifies; with a published teacher, what the students do.
        student_dataset: what the students do; if it is the teacher's, no class is in both.
        validation: share of the training images set aside: thresholds come from these.
        teacher_classes: how many classes, from the first on, the teacher learns.
        student_classes: how many, from the last of theirs backwards, the students learn.
        chosen: those that they learn instead, by number.
        others: more data sets, whose students (of a published teacher) are attacked and defended, too.
        other_classes: how many of each of them, from the last backwards.
        teacher_images, student_images: training images of each.
        attacker_images: of the students' classes, which an attacker has who rebuilds the defence.
        shots: of those, how many of each class an attacker has who only knows the method.
        looked_at: validation images, and test images, at most.
        model: the network; one of ``kdsec.models.imagenet_names()`` is a published teacher, taken as it is.
        scratch: the network of the student that starts from nothing.
        keeps: layers that the students keep; the first, with most, is the student that is looked at closely.
        layers: of the teacher, which attacks mimic; the deepest first.
        recipe: of the teacher; ``student_recipe`` of the students.
        pairs: attacked source and target pairs.
        candidates: targets that a non-targeted attack chooses from.
        mimicry: the search by DSSIM, with the budget of the main table.
        budgets: other DSSIM budgets.
        per_pixel: the search by L-infinity.
        epsilons: other per-pixel budgets.
        making: how a differentiator is made.
        ratios, rankings: what is tried instead of the main value.
        distilled: weight of the student's answers where a differentiator is distilled.
        members: m of the main table.
        dropout: rates of input dropout, of which validation images choose one.
        rate: false-rejection rate that thresholds are chosen for.
        away, away_stages, away_weight, away_recipe: D, its steps, weight and recipe of a step of
            neuron-distance retraining.
        adversarial_eps: of the adversarially trained teacher.
        adversarial_steps: of its projected gradient descent.
        weight, beta: of the joint attack.
        beyond: logits by which it aims past the rejection threshold.
        kappa_rebuilt: margin aimed at on copies of the defence that the attacker has built.
        draws: masks a step in the attack on input dropout.
    """

    dataset: Dataset
    student_dataset: Dataset
    validation: BetweenShares
    teacher_classes: int
    student_classes: int
    chosen: Maybe[int]
    others: Maybe[Dataset]
    other_classes: Count
    teacher_images: Count
    student_images: Count
    attacker_images: Count
    shots: Count
    looked_at: Count
    model: TransferNetwork
    scratch: TransferNetwork
    keeps: Several[int]
    layers: Several[Count]
    recipe: Recipe
    student_recipe: Recipe
    pairs: Count
    candidates: Count
    mimicry: Dssim
    budgets: Maybe[Positive]
    per_pixel: Linf
    epsilons: Maybe[PositiveShare]
    making: DifferentiatorConfig
    ratios: Several[Share]
    rankings: Several[Annotated[str, one_of("ranking", lambda: RANKINGS)]]
    distilled: Share
    members: Count
    dropout: Several[PositiveShare]
    rate: Share
    away: Positive
    away_stages: Count
    away_weight: Positive
    away_recipe: Recipe
    adversarial_eps: PositiveShare
    adversarial_steps: Count
    weight: float
    beta: float
    beyond: Positive
    kappa_rebuilt: Positive
    draws: Count

    def __post_init__(self) -> None:
        if list(self.keeps) != sorted(self.keeps, reverse=True):
            raise KdsecError(f"setting keeps={self.keeps}: name the student that keeps most layers first")
        if missing := set(self.keeps) - {0} - set(self.layers):
            raise KdsecError(
                f"setting layers={self.layers} lacks layer {max(missing)}, which students keep; attack it too"
            )
        for budget in self.budgets:
            dataclasses.replace(self.mimicry, budget=budget)
        for eps in self.epsilons:
            dataclasses.replace(self.per_pixel, eps=eps)
        self._check_classes()
        if self.shots * self.student_classes > self.attacker_images:
            raise KdsecError(
                f"setting shots={self.shots} of {self.student_classes} classes is more than "
                f"attacker_images={self.attacker_images}; lower it"
            )
        check_images(self.dataset, self.validation, self.training_images)
        check_network(self.model, self.dataset)
        check_network(self.scratch, self.student_dataset)

    def _check_classes(self) -> None:
        """Enough of them, in whole and for each; what a published teacher learnt is not asked."""
        teachers, students = (len(CLASS_NAMES[name]) for name in (self.dataset, self.student_dataset))
        most = teachers - self.student_classes if self.dataset == self.student_dataset else teachers
        taught = self.published or 2 <= self.teacher_classes <= most
        if not taught or not 2 <= self.student_classes <= students:
            raise KdsecError(
                f"teacher_classes={self.teacher_classes}, student_classes={self.student_classes}: at least 2 "
                f"each, at most the {teachers} of {self.dataset} and the {students} of "
                f"{self.student_dataset}, and no class in both"
            )
        names = range(students)
        if self.chosen and (len(self.chosen) != self.student_classes or not set(self.chosen) <= set(names)):
            raise KdsecError(
                f"setting chosen={self.chosen}: name {self.student_classes} classes (student_classes) of "
                f"{self.student_dataset}, whose classes are 0 to {students - 1}, or none"
            )
        few = [name for name in self.others if not 2 <= self.other_classes <= len(CLASS_NAMES[name])]
        if few or (self.others and not self.published):
            raise KdsecError(
                f"setting others={self.others} needs a published teacher, not {self.model}, and sets with "
                f"other_classes={self.other_classes} classes, 2 or more"
            )
        if self.published and self.dataset != self.student_dataset:
            raise KdsecError(
                f"{self.model} is a published teacher, whose training images are not here: set dataset to "
                "the students' data set"
            )

    @property
    def published(self) -> bool:
        """Whether the teacher comes with its weights, instead of being trained here."""
        return self.model in models.imagenet_names()

    @property
    def main_budget(self) -> str:
        """Name of the budget of the main table, as recorded."""
        return f"DSSIM {self.mimicry.budget:g}"

    @property
    def main_box(self) -> str:
        """Name of the main per-pixel budget, as recorded."""
        return f"pixel {255 * self.per_pixel.eps:.0f}"

    @property
    def training_images(self) -> int:
        """How many of the teacher's data set are dealt out."""
        students = self.student_images + self.attacker_images
        if self.published:
            return students
        return self.teacher_images + (students if self.dataset == self.student_dataset else 0)

    @property
    def classes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the teacher, and of the students."""
        learnt = self.chosen or self.last(self.student_dataset, self.student_classes)
        return tuple(range(self.teacher_classes)), learnt

    @staticmethod
    def last(dataset: str, count: int) -> tuple[int, ...]:
        """The last ``count`` classes of a data set."""
        total = len(CLASS_NAMES[dataset])
        return tuple(range(total - count, total))

    @property
    def box_budgets(self) -> dict[str, Linf]:
        """The searches by L-infinity, by the name as recorded."""
        sizes = sorted({self.per_pixel.eps, *self.epsilons})
        return {f"pixel {255 * eps:.0f}": dataclasses.replace(self.per_pixel, eps=eps) for eps in sizes}

    @property
    def all_budgets(self) -> dict[str, Dssim | Linf]:
        """Every search, by the name as recorded."""
        sizes = sorted({self.mimicry.budget, *self.budgets})
        found = {f"DSSIM {each:g}": dataclasses.replace(self.mimicry, budget=each) for each in sizes}
        return found | self.box_budgets
