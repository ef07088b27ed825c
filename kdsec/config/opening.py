"""Settings of the opening chapter: *How does distillation steal a model?*."""

from __future__ import annotations

from typing import Annotated

from kdsec.attacks.tuning import Search
from kdsec.config.fields import (
    BetweenShares,
    Count,
    Dataset,
    Network,
    Positive,
    Several,
    Share,
    check_images,
    check_network,
    one_of,
    same_steps,
    settings_of_chapter,
)
from kdsec.data import DATASETS
from kdsec.errors import KdsecError
from kdsec.train import Recipe


@settings_of_chapter
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
        temperature: tau of the owner's distillation.
        search: what temperature and learning rate every thief chooses among.
        alpha: weight of the teacher's term where labels are used too.
        smoothing: of labels, wherever they are smoothed.
        recipe: of the teacher, and of the students but for the epochs.
        student_steps: training steps of every student, however many images it has.
    """

    dataset: Dataset
    validation: BetweenShares
    teacher: Network
    student: Network
    owner: Count
    queries: Several[Count]
    surrogate: Annotated[str, one_of("surrogate", lambda: ("noise", *DATASETS))]
    temperature: Positive
    search: Search
    alpha: Share
    smoothing: Share
    recipe: Recipe
    student_steps: Count

    def __post_init__(self) -> None:
        if list(self.queries) != sorted(self.queries):
            raise KdsecError(f"setting queries={self.queries} must go from the smallest to the largest")
        check_images(self.dataset, self.validation, self.training_images, owner=(self.owner, self.recipe))
        for network in (self.teacher, self.student):
            check_network(network, self.dataset)

    @property
    def training_images(self) -> int:
        """How many are dealt out, to the owner and the thief."""
        return self.owner + max(self.queries)

    def student_recipe(self, images: int) -> Recipe:
        """Of every student: as many steps on few images as on many."""
        return same_steps(self.recipe, self.student_steps, images)
