"""Settings of the chapter on teachers that teach badly: *Can a teacher refuse to teach?*."""

from __future__ import annotations

from typing import Annotated

import torch

from kdsec import models
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
    PositiveShare,
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
from kdsec.errors import KdsecError, check_choice
from kdsec.optim import muon_parameters
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


@settings_of_chapter
class SparseTeacher:
    """One owner, five teachers for sale, and thieves.

    Attributes:
        dataset: what the teachers classify.
        validation: share of the training images set aside for choices.
        owner: how many training images the owner has; the students of the main table get the same, as in the
            papers.
        theft: how many images, without labels, the thieves have.
        same_images: whether these are the first of the owner's, as in the papers.
        few: share of labels known where few are.
        teacher: the owner's network.
        students: the smaller networks, the first of which carries every experiment.
        smoothing: of the label-smoothed teacher, and of the student without a teacher.
        nasty_temperature, nasty_weights: tau, and omega with the headline value first.
        stingy_keep: logits that the stingy teacher answers with.
        sparse_keep, sparse_temperature, sparse_alphas: n, tau and omega of AST, the headline omega first.
        eps, step_size, pgd_steps: of AST's adversarial images, in pixels of [0, 1].
        variants: of AST, see ``VARIANTS``.
        kl_alphas: omegas of the relative entropy; the one whose teacher is nearest to AST's in validation
            accuracy is compared.
        temperature, alpha: of distillation, as the papers' thief has them.
        temperatures, alphas: of the heat map.
        thieves: who tries to steal without labels, the pool of all chapters and the features.
        search: what temperature and learning rate every thief chooses among.
        foreign: what a thief with images of other things has; see ``Run.foreign``.
        recipe: of the teachers, and of the students but for the epochs; the papers' own where there is one.
        fast: a shorter recipe; ``book/how-to-run.md`` says what it costs.
        schedule: ``full`` trains by ``recipe``, ``fast`` by ``fast``.
        student_steps: training steps of every student by ``recipe``, however many images it has.
    """

    dataset: Dataset
    validation: BetweenShares
    owner: Count
    theft: Count
    few: PositiveShare
    teacher: Network
    students: Several[Network]
    smoothing: Share
    nasty_temperature: Positive
    nasty_weights: Several[NotNegative]
    stingy_keep: Count
    sparse_keep: Count
    sparse_temperature: Positive
    sparse_alphas: Several[Share]
    eps: Share
    step_size: Share
    pgd_steps: Count
    variants: Maybe[Annotated[str, one_of("variant", lambda: VARIANTS)]]
    kl_alphas: Several[Share]
    temperature: Positive
    alpha: Share
    temperatures: Several[Positive]
    alphas: Several[Share]
    search: Search
    foreign: Foreign
    recipe: Recipe
    student_steps: Count
    thieves: Several[Attack] = (*POOL, "features")
    same_images: bool = False
    fast: Recipe | None = None
    schedule: str = "full"

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, ("full",) if self.fast is None else ("full", "fast"))
        check_images(self.dataset, self.validation, self.training_images, owner=(self.owner, self.recipe))
        check_kept(self.dataset, stingy_keep=self.stingy_keep, sparse_keep=self.sparse_keep)
        for model in (self.teacher, *self.students):
            check_network(model, self.dataset)
            if self.training.optimizer == "muon" and not _takes_muon(model):
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
        return self.owner + (0 if self.same_images else self.theft)

    @property
    def strengths(self) -> DefenseStrength:
        """Of the headline teachers, for a thief who rebuilds them."""
        return DefenseStrength.headline(self, self.training.precision)

    def student_recipe(self, images: int) -> Recipe:
        """Of every student: as many steps on few images as on many, fewer of them by the short schedule."""
        share = self.training.epochs / self.recipe.epochs
        return same_steps(self.training, round(share * self.student_steps), images)


def _takes_muon(model: str) -> bool:
    with torch.device("meta"):
        return bool(muon_parameters(models.build(model, num_classes=10, shape=(3, 32, 32))))
