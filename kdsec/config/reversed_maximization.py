"""Settings of the chapter on teachers without dark knowledge, and thieves without data."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kdsec.attacks.data_free import DFAD
from kdsec.attacks.data_free_fast import FastDFKD
from kdsec.attacks.data_free_inversion import Inversion
from kdsec.attacks.extraction import POOL
from kdsec.attacks.tuning import Search
from kdsec.config.fields import (
    Attack,
    BetweenShares,
    Count,
    Dataset,
    Foreign,
    Maybe,
    Network,
    NotNegative,
    Positive,
    Several,
    Share,
    check_images,
    check_kept,
    check_network,
    one_of,
    same_steps,
    settings_of_chapter,
)
from kdsec.defenses.registry import DefenseStrength
from kdsec.errors import check_choice
from kdsec.logits import READINGS
from kdsec.train import Recipe

# Teachers of the main table beside the readings of reversed maximization.
OTHERS = ("normal", "smoothed", "nasty", "stingy", "AST")


@settings_of_chapter
class ReversedMaximization:
    """One owner, many protected teachers; thieves with images and thieves with none.

    Attributes:
        dataset: what the teachers classify.
        validation: share of the training images set aside for choices.
        owner: how many training images the owner has; the students of the main table get the same.
        theft: how many images, without labels, the thieves have.
        same_images: whether these are the first of the owner's, as in the papers.
        teacher, student: the two networks.
        smoothing: of the label-smoothed teacher, and of the student without a teacher.
        allowed: validation accuracy that a protected teacher may lose against the control ``copy``, a share;
            of the strengths tried, the strongest within it is the one that the tables show.
        nasty_temperature, nasty_weights: tau and the omegas tried.
        stingy_keep: logits that the stingy teacher answers with.
        sparse_keep, sparse_temperature, sparse_alphas: n, tau and the omegas tried of AST.
        eps, step_size, pgd_steps: of AST's adversarial images.
        readings: of reversed maximization, see ``kdsec.logits.READINGS``; the headline first, ``copy`` among
            them.
        reversal_temperature: tau.
        strengths: the omegas tried with every reading; ``copy`` takes the first only.
        split_temperatures: at which the loss is also tried without its split.
        away_weight: omega of the reading without a target, which has no lowest point to stop at.
        temperature, alpha: of distillation by the owner's students.
        temperatures: of the figure with a temperature axis.
        decimals, poison_budget: of the training-free protections: places that are kept, and the L1 distance
            of Prediction Poisoning.
        suspects: teachers that every thief is set on, among them the headline.
        search: what temperature and learning rate every thief chooses among.
        foreign: what a thief with images of other things has; see ``Run.foreign``.
        powers: of the thief who raises the negatives to a signed power.
        inversion, drawing, game: thieves without data; a profile without the latter two, which have a
            generator, leaves them out.
        drawn_from: teachers that they are set on.
        datafree_targets: attacks with the inverted images.
        recipe: of the teachers, and of the students but for the epochs.
        student_steps: training steps of every student with data.
        datafree_steps: of every student of inverted images.
        thieves: with data: the pool of all chapters, and more.
    """

    dataset: Dataset
    validation: BetweenShares
    owner: Count
    theft: Count
    teacher: Network
    student: Network
    smoothing: Share
    allowed: Share
    nasty_temperature: Positive
    nasty_weights: Several[NotNegative]
    stingy_keep: Count
    sparse_keep: Count
    sparse_temperature: Positive
    sparse_alphas: Several[Share]
    eps: Share
    step_size: Share
    pgd_steps: Count
    readings: Several[Annotated[str, one_of("reading", lambda: READINGS)]]
    reversal_temperature: Positive
    strengths: Several[Positive]
    split_temperatures: Maybe[Positive]
    away_weight: NotNegative
    temperature: Positive
    alpha: Share
    temperatures: Several[Positive]
    decimals: Count
    poison_budget: Annotated[float, Field(ge=0, le=2)]
    suspects: Several[str]
    search: Search
    foreign: Foreign
    powers: Maybe[float]
    inversion: Inversion
    drawn_from: Several[str]
    datafree_targets: Several[Attack]
    recipe: Recipe
    student_steps: Count
    datafree_steps: Count
    thieves: Several[Attack] = POOL
    same_images: bool = False
    drawing: FastDFKD | None = None
    game: DFAD | None = None

    def __post_init__(self) -> None:
        check_choice("reading, for the cost of the others,", "copy", self.readings)
        for teacher in (*self.suspects, *self.drawn_from):
            check_choice("teacher", teacher, (*OTHERS, *self.readings))
        check_images(self.dataset, self.validation, self.training_images, owner=(self.owner, self.recipe))
        check_kept(self.dataset, stingy_keep=self.stingy_keep, sparse_keep=self.sparse_keep)
        for network in (self.teacher, self.student):
            check_network(network, self.dataset)

    @property
    def training_images(self) -> int:
        """How many are dealt out, to the owner and the thief."""
        return self.owner + (0 if self.same_images else self.theft)

    def protections(self, strength: float | None = None) -> DefenseStrength:
        """Of the defences as a thief rebuilds them; reversals at ``strength``, else the first tried."""
        return DefenseStrength.headline(
            self,
            self.recipe.precision,
            reversal_temperature=self.reversal_temperature,
            reversal_weight=strength or self.strengths[0],
        )

    def student_recipe(self, images: int) -> Recipe:
        """Of every student: as many steps on few images as on many."""
        return same_steps(self.recipe, self.student_steps, images)

    def inversion_recipe(self, images: int) -> Recipe:
        """Of the students of inverted images."""
        return same_steps(self.recipe, self.datafree_steps, images)
