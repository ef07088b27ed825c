"""Settings of chapter 3, *Can a clean teacher pass on a backdoor?*."""

from __future__ import annotations

import dataclasses

from kdsec.attacks.crafting import Crafting
from kdsec.attacks.triggers import trigger
from kdsec.config.fields import (
    SHAPES,
    BetweenShares,
    Count,
    Dataset,
    Maybe,
    Network,
    Positive,
    PositiveShare,
    Several,
    Share,
    check_images,
    check_network,
    settings_of_chapter,
)
from kdsec.data.names import CLASS_NAMES
from kdsec.errors import KdsecError, check_choice
from kdsec.train import Recipe


@settings_of_chapter
class PoisonedDistillation:
    """A teacher's owner, a student's owner, and the supplier of the images in between.

    Attributes:
        dataset: what the teacher classifies.
        validation: share of the training images set aside for choices.
        teacher: the clean network.
        student: the victim's network.
        other: a network of another kind: the second victim.
        surrogates: networks that the attacker without the teacher's weights distils from it.
        owner: training images of the teacher.
        distill: images of the distillation set.
        same_images: whether these are the first of the owner's, as in the papers.
        clean: clean labelled images that the victim keeps for curing a student; in neither set.
        target: the class that the trigger is to mean.
        trigger: name of the main trigger, see ``kdsec.attacks.triggers.trigger``.
        rate: poisons as a share of the whole distillation set.
        crafting: how the poisons are made.
        temperature: tau of the main experiments.
        alpha: weight of the teacher where labels are used too.
        rates, epsilons, temperatures, triggers: what is tried instead of the main value, one at a time.
        alphas: weights of the teacher between all labels (0) and all teacher (1) for conventional poisons.
        recipe: of the teacher, and of the students but for the epochs.
        epochs: of the students.
        faint_trigger: one of ``triggers``; its student is also trained for ``long_epochs``.
        long_epochs: see ``faint_trigger``.
        cure: training on the clean images.
        unlearning_epochs: of adversarial unlearning, otherwise trained as ``cure`` says.
        cleanse_steps: of Neural Cleanse, for each class; all but the first for the attacked student only.
        probes: test images for what costs much: transfer of perturbations, and STRIP.
    """

    dataset: Dataset
    validation: BetweenShares
    teacher: Network
    student: Network
    other: Network
    surrogates: Several[Network]
    owner: Count
    distill: Count
    clean: Count
    target: int
    trigger: str
    rate: PositiveShare
    crafting: Crafting
    temperature: Positive
    alpha: Share
    rates: Maybe[PositiveShare]
    epsilons: Maybe[PositiveShare]
    temperatures: Maybe[Positive]
    triggers: Maybe[str]
    alphas: Maybe[Share]
    recipe: Recipe
    epochs: Count
    faint_trigger: str
    long_epochs: Count
    cure: Recipe
    unlearning_epochs: Count
    cleanse_steps: Several[Count]
    probes: Count
    same_images: bool = False

    def __post_init__(self) -> None:
        for eps in self.epsilons:
            dataclasses.replace(self.crafting, eps=eps)
        for name in (self.trigger, *self.triggers):
            trigger(name, SHAPES[self.dataset])
        check_choice("faint_trigger", self.faint_trigger, self.triggers)
        classes = len(CLASS_NAMES[self.dataset])
        if not 0 <= self.target < classes:
            raise KdsecError(
                f"target={self.target} is not a class of {self.dataset}; choose one from 0 to {classes - 1}"
            )
        parts = {"owner": (self.owner, self.recipe), "distill": (self.distill, self.recipe)}
        check_images(
            self.dataset, self.validation, self.training_images, clean=(self.clean, self.cure), **parts
        )
        for network in (self.teacher, self.student, self.other, *self.surrogates):
            check_network(network, self.dataset)

    @property
    def training_images(self) -> int:
        """How many are dealt out: the owner's, the distillation set, and the victim's clean ones."""
        return self.owner + self.clean + (0 if self.same_images else self.distill)

    @property
    def student_recipe(self) -> Recipe:
        """Of every student: the teacher's but for the epochs."""
        return dataclasses.replace(self.recipe, epochs=self.epochs)
