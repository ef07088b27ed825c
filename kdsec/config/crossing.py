"""Settings of the closing chapter, in which every attack meets every defence."""

from __future__ import annotations

from typing import Annotated

from kdsec.attacks.constrained_search import Linf
from kdsec.attacks.crafting import Crafting
from kdsec.attacks.extraction import POOL
from kdsec.attacks.triggers import trigger
from kdsec.attacks.tuning import Search
from kdsec.config.fields import (
    SHAPES,
    Attack,
    Autoencoder,
    BetweenShares,
    Count,
    Dataset,
    Foreign,
    Network,
    Positive,
    PositiveShare,
    Several,
    check_images,
    check_kept,
    check_network,
    one_of,
    same_steps,
    settings_of_chapter,
)
from kdsec.data.names import CLASS_NAMES
from kdsec.defenses.differentiators import DifferentiatorConfig
from kdsec.defenses.registry import DEFENSES, DefenseStrength
from kdsec.errors import KdsecError
from kdsec.train import Recipe

Teacher = Annotated[str, one_of("teacher", lambda: DEFENSES)]


@settings_of_chapter
class Crossing:
    """One owner, every protected teacher, every thief; one public teacher, its student, every input attack.

    Attributes:
        dataset: of everything.
        validation: share of the training images set aside for choices.
        owner: training images of the teachers.
        theft: how many images, without labels, the thieves have; these are also poisoned.
        same_images: whether these are the first of the owner's, as in the papers.
        teacher, student: the two networks.
        teachers: from ``kdsec.defenses.registry.DEFENSES``; the first is "normal".
        strengths: of the defences.
        thieves: the pool of all chapters, black box and without labels; "soft labels" first.
        search: what temperature and learning rate every thief chooses among.
        foreign: what a thief with images of other things has; see ``Run.foreign``.
        recipe: of the teachers, and of the students but for the epochs.
        student_steps: training steps of every stolen student.
        victim_steps, victim_temperature: of every student that is distilled from poisoned images, or beside
            one that is.
        target, trigger, rate, crafting: of the poisoned distillation.
        victims: teachers whose distillation is poisoned.
        probes: test images that are attacked.
        eps, steps, restarts: of the attacks on inputs; eps in pixels of [0, 1].
        public_classes, private_classes: how many classes, from the first on, a public teacher learns, and how
            many, from the last backwards, a student that keeps all its layers.
        public_recipe, private_recipe: of these two.
        model: their network.
        autoencoder, autoencoder_recipe, autoencoder_steps: of the purifiers.
        making, members, rejected: of the differentiators; how many are asked, and the rate of clean
            validation images that may be rejected.
        mimicry: the search with the budget of the other input attacks.
    """

    dataset: Dataset
    validation: BetweenShares
    owner: Count
    theft: Count
    teacher: Network
    student: Network
    teachers: Several[Teacher]
    strengths: DefenseStrength
    search: Search
    foreign: Foreign
    recipe: Recipe
    student_steps: Count
    victim_steps: Count
    victim_temperature: Positive
    target: int
    trigger: str
    rate: PositiveShare
    crafting: Crafting
    victims: Several[Teacher]
    probes: Count
    eps: PositiveShare
    steps: Count
    restarts: Count
    public_classes: int
    private_classes: int
    public_recipe: Recipe
    private_recipe: Recipe
    model: Network
    autoencoder: Autoencoder
    autoencoder_recipe: Recipe
    autoencoder_steps: Count
    making: DifferentiatorConfig
    members: Count
    rejected: PositiveShare
    mimicry: Linf
    thieves: Several[Attack] = POOL
    same_images: bool = False

    def __post_init__(self) -> None:
        if self.teachers[0] != "normal" or self.thieves[0] != "soft labels":
            raise KdsecError('settings teachers and thieves begin with "normal" and "soft labels"')
        if missing := set(self.victims) - set(self.teachers):
            raise KdsecError(f"setting victims names {min(missing)!r}, which is not among teachers")
        total = len(CLASS_NAMES[self.dataset])
        if min(self.public_classes, self.private_classes) < 2 or (
            self.public_classes + self.private_classes > total
        ):
            raise KdsecError(
                f"public_classes={self.public_classes}, private_classes={self.private_classes}: at least 2 "
                f"each, together at most the {total} of {self.dataset}"
            )
        if not 0 <= self.target < total:
            raise KdsecError(
                f"target={self.target} is not a class of {self.dataset}; choose 0 to {total - 1}"
            )
        trigger(self.trigger, SHAPES[self.dataset])
        check_images(self.dataset, self.validation, self.training_images, owner=(self.owner, self.recipe))
        kept = {"stingy_keep": self.strengths.stingy_keep, "sparse_keep": self.strengths.sparse_keep}
        check_kept(self.dataset, **kept)
        for network in (self.teacher, self.student, self.model):
            check_network(network, self.dataset)

    @property
    def training_images(self) -> int:
        """How many are dealt out, to the owner and the thief."""
        return self.owner + (0 if self.same_images else self.theft)

    @property
    def classes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the public teacher and of its student."""
        total = len(CLASS_NAMES[self.dataset])
        return tuple(range(self.public_classes)), tuple(range(total - self.private_classes, total))

    def student_recipe(self, images: int) -> Recipe:
        """Of every stolen student: as many steps on few images as on many."""
        return same_steps(self.recipe, self.student_steps, images)

    def victim_recipe(self, images: int) -> Recipe:
        """Of every student of the poisoned distillation."""
        return same_steps(self.recipe, self.victim_steps, images)

    def purifier_recipe(self, images: int) -> Recipe:
        """Of every autoencoder."""
        return same_steps(self.autoencoder_recipe, self.autoencoder_steps, images)
