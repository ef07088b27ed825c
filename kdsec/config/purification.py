"""Settings of the chapter on purification by distillation from two autoencoder teachers."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import Field

from kdsec.budgets import check_step
from kdsec.config.fields import (
    Autoencoder,
    BetweenShares,
    Count,
    Dataset,
    Network,
    Positive,
    PositiveShare,
    Several,
    check_images,
    check_network,
    one_of,
    same_steps,
    settings_of_chapter,
)
from kdsec.defenses.purification import LEVELS, READINGS
from kdsec.errors import KdsecError
from kdsec.train import Recipe


@settings_of_chapter
class Purification:
    """One classifier, the purifiers in front of it, and attackers who know more and more.

    Attributes:
        dataset: what the classifier classifies.
        validation: share of the training images set aside for choices.
        classifier: the network that is defended and not changed.
        surrogate: the network that the transfer attacker trains.
        teacher, student: autoencoders, of both teachers and of everything in the student's place.
        owner: training images of the classifier; purifiers and robust classifiers learn from the same.
        other: training images of the surrogate; none of them the owner's.
        eps: L-infinity budget of all training attacks and of the main table, in pixels of [0, 1].
        budgets: of the curves.
        training_steps: of the training attack on the classifier, made once.
        inner_steps: of the attacks made for every batch, on purifier and classifier, or on a classifier
            trained adversarially; each step is 2.5 eps / inner_steps.
        sigma: of the plain denoiser's noise.
        readings, levels: of the ensemble's lessons, the headline first; each reading at the first level, and
            each level in the first reading.
        weight: of the adversarial teacher in the ensemble.
        reconstruction: lambda, where it is added.
        beta: of TRADES.
        probes: test images that are attacked.
        steps, restarts: of the attacks that are measured.
        strong, strong_steps: how many of the test images are attacked once more, with 5 restarts, and for how
            many steps.
        draws: of the mean over random defences.
        bits: grey levels that are left by the squeezing of colours, as a power of two.
        library: whether AutoAttack attacks these, too; its library is an optional extra.
        recipe: of the classifier.
        purifier_recipe: of every autoencoder but for the epochs.
        purifier_steps: training steps of every autoencoder.
        robust_recipe: of training against attacks made for every batch. The end-to-end purifier has its
            optimizer from ``purifier_recipe`` and its epochs from here, and so costs what its rivals cost.
    """

    dataset: Dataset
    validation: BetweenShares
    classifier: Network
    surrogate: Network
    teacher: Autoencoder
    student: Autoencoder
    owner: Count
    other: Count
    eps: PositiveShare
    budgets: Several[PositiveShare]
    training_steps: Count
    inner_steps: Count
    sigma: PositiveShare
    readings: Several[Annotated[str, one_of("reading", lambda: READINGS)]]
    levels: Several[Annotated[str, one_of("level", lambda: LEVELS)]]
    weight: BetweenShares
    reconstruction: Positive
    beta: Positive
    probes: Count
    steps: Count
    restarts: Count
    draws: Count
    bits: Annotated[int, Field(ge=1, le=8)]
    strong: Count
    strong_steps: Count
    library: bool
    recipe: Recipe
    purifier_recipe: Recipe
    purifier_steps: Count
    robust_recipe: Recipe

    def __post_init__(self) -> None:
        if self.strong > self.probes:
            raise KdsecError(f"setting strong={self.strong} must be at most probes={self.probes}")
        check_images(self.dataset, self.validation, self.training_images, owner=(self.owner, self.recipe))
        for network in (self.classifier, self.surrogate):
            check_network(network, self.dataset)

    @property
    def training_images(self) -> int:
        """How many are dealt out: the owner's and the surrogate's."""
        return self.owner + self.other

    @property
    def inner_step(self) -> float:
        """Step of the training attacks, in pixels of [0, 1]."""
        return check_step(None, self.eps, self.inner_steps)

    @property
    def autoencoder_recipe(self) -> Recipe:
        """Of every autoencoder that learns from stored attacks, from noise, or from nothing."""
        return same_steps(self.purifier_recipe, self.purifier_steps, self.owner)

    @property
    def end_to_end_recipe(self) -> Recipe:
        """Of the autoencoder that learns from attacks on itself."""
        return dataclasses.replace(self.purifier_recipe, epochs=self.robust_recipe.epochs)
