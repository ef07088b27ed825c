"""Settings of the chapter on purification by distillation from two autoencoder teachers."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from kdsec import models
from kdsec.chapters.checks import check
from kdsec.chapters.schedules import same_steps
from kdsec.data import DATASETS, Augment
from kdsec.defenses.purification import LEVELS, READINGS
from kdsec.errors import KdsecError, choose
from kdsec.train import Recipe


@dataclass(frozen=True)
class Purification:
    """One classifier, the purifiers in front of it, and attackers who know more and more.

    Attributes:
        dataset: what the classifier classifies.
        validation: share of the training images set aside for choices.
        classifier: the network that is defended and not changed.
        surrogate: the network that the transfer attacker trains.
        teacher, student: autoencoders, of both teachers and of everything that stands where the student does.
        owner: training images of the classifier; purifiers and robust classifiers learn from the same.
        other: training images of the surrogate; none of them the owner's.
        eps: L-infinity budget of all training attacks and of the main table, in pixels of [0, 1].
        budgets: of the curves.
        training_steps: of the training attack on the classifier, made once.
        inner_steps: of the attacks made anew for every batch, on purifier and classifier, or on a classifier
            trained adversarially.
        sigma: of the plain denoiser's noise.
        readings, levels: of the ensemble's lessons, the headline first; each reading at the first level, and
            each level in the first reading.
        weight: of the adversarial teacher in the ensemble.
        reconstruction: lambda, where it is added.
        beta: of TRADES.
        probes: test images that are attacked.
        steps, restarts: of the attacks that are measured.
        draws: of the mean over random defences.
        bits: grey levels that are left by the squeezing of colours, as a power of two.
        library: of the test images, how many AutoAttack gets as a second opinion; 0 leaves it out, since its
            library is an optional extra.
        recipe: of the classifier.
        purifier_recipe: of every autoencoder but for the epochs.
        purifier_steps: training steps of every autoencoder.
        robust_recipe: of training against attacks made anew: the end-to-end purifier has its optimizer from
            ``purifier_recipe`` and its epochs from here, so that it costs what its rivals cost.
    """

    dataset: str
    validation: float
    classifier: str
    surrogate: str
    teacher: str
    student: str
    owner: int
    other: int
    eps: float
    budgets: tuple[float, ...]
    training_steps: int
    inner_steps: int
    sigma: float
    readings: tuple[str, ...]
    levels: tuple[str, ...]
    weight: float
    reconstruction: float
    beta: float
    probes: int
    steps: int
    restarts: int
    draws: int
    bits: int
    library: int
    recipe: Recipe
    purifier_recipe: Recipe
    purifier_steps: int
    robust_recipe: Recipe

    def __post_init__(self) -> None:
        check(
            self,
            positive=("eps", "budgets", "sigma", "weight", "reconstruction", "beta"),
            shares=("eps", "budgets", "sigma", "weight"),
            counts=(
                "owner",
                "other",
                "training_steps",
                "inner_steps",
                "probes",
                "steps",
                "restarts",
                "draws",
                "bits",
                "purifier_steps",
            ),
            filled=("budgets", "readings", "levels"),
        )
        choose("dataset", self.dataset, DATASETS)
        for model in (self.classifier, self.surrogate):
            choose("model", model, models.names())
        for autoencoder in (self.teacher, self.student):
            choose("autoencoder", autoencoder, models.autoencoder_names())
        for reading in self.readings:
            choose("reading", reading, READINGS)
        for level in self.levels:
            choose("level", level, LEVELS)
        if not 0 <= self.library <= self.probes:
            raise KdsecError(
                f"setting library={self.library} must be between 0 and the number of probes, {self.probes}"
            )
        if self.weight == 1:
            raise KdsecError("setting weight=1.0 leaves the normal teacher nothing; choose one below 1")

    @property
    def training_images(self) -> int:
        """How many are dealt out: the owner's and the surrogate's."""
        return self.owner + self.other

    @property
    def autoencoder_recipe(self) -> Recipe:
        """Of every autoencoder that learns from stored attacks, from noise, or from nothing."""
        return same_steps(self.purifier_recipe, self.purifier_steps, self.owner)

    @property
    def end_to_end_recipe(self) -> Recipe:
        """Of the autoencoder that learns from attacks on itself."""
        return dataclasses.replace(self.purifier_recipe, epochs=self.robust_recipe.epochs)


DIGITS = Augment(crop=1)
OBJECTS = Augment(crop=4, flip=True)

PROFILES = {
    "quick": Purification(
        dataset="digits",
        validation=0.15,
        classifier="digits-small",
        surrogate="digits-small",
        teacher="autoencoder",
        student="autoencoder-small",
        owner=700,
        other=318,
        eps=0.15,
        budgets=(0.05, 0.1, 0.15, 0.25),
        training_steps=10,
        inner_steps=3,
        sigma=0.15,
        readings=("averaged", "each its own"),
        levels=("image",),
        weight=0.5,
        reconstruction=1.0,
        beta=6.0,
        probes=120,
        steps=20,
        restarts=1,
        draws=10,
        bits=2,
        library=0,
        recipe=Recipe(epochs=14, batch_size=64, lr=0.1, augment=DIGITS, precision="float32"),
        purifier_recipe=Recipe(
            batch_size=32,
            optimizer="adam",
            lr=2e-2,
            weight_decay=0.0,
            augment=DIGITS,
            precision="float32",
        ),
        purifier_steps=200,
        robust_recipe=Recipe(epochs=12, batch_size=64, lr=0.1, augment=DIGITS, precision="float32"),
    ),
    # A plain network of the size of a ResNet-20, which trains six times as fast on a CPU.
    "small": Purification(
        dataset="cifar10",
        validation=0.1,
        classifier="cnn",
        surrogate="resnet8",
        teacher="autoencoder",
        student="autoencoder-small",
        owner=12_000,
        other=6_000,
        eps=8 / 255,
        budgets=(2 / 255, 4 / 255, 8 / 255, 16 / 255),
        training_steps=5,
        inner_steps=2,
        sigma=0.1,
        readings=("averaged", "each its own"),
        levels=("image", "features"),
        weight=0.5,
        reconstruction=1.0,
        beta=6.0,
        probes=300,
        steps=20,
        restarts=2,
        draws=4,
        bits=4,
        library=0,
        recipe=Recipe(epochs=15, batch_size=128, lr=0.2, augment=OBJECTS),
        purifier_recipe=Recipe(batch_size=32, optimizer="adam", lr=2e-3, weight_decay=0.0, augment=OBJECTS),
        purifier_steps=1_125,
        robust_recipe=Recipe(epochs=6, batch_size=128, lr=0.2, augment=OBJECTS),
    ),
    # The paper's data sets, classifiers and schedules are not known: CIFAR-10, ResNet-18 and what is usual.
    "paper": Purification(
        dataset="cifar10",
        validation=0.1,
        classifier="resnet18",
        surrogate="resnet34",
        teacher="autoencoder",
        student="autoencoder-small",
        owner=25_000,
        other=20_000,
        eps=8 / 255,
        budgets=(2 / 255, 4 / 255, 8 / 255, 16 / 255),
        training_steps=10,
        inner_steps=10,
        sigma=0.1,
        readings=tuple(READINGS),
        levels=LEVELS,
        weight=0.5,
        reconstruction=1.0,
        beta=6.0,
        probes=2_000,
        steps=100,
        restarts=5,
        draws=20,
        bits=4,
        library=500,
        recipe=Recipe(epochs=100, batch_size=128, lr=0.1, augment=OBJECTS),
        purifier_recipe=Recipe(batch_size=128, optimizer="adam", lr=1e-3, weight_decay=0.0, augment=OBJECTS),
        purifier_steps=9_750,
        robust_recipe=Recipe(epochs=50, batch_size=128, lr=0.1, augment=OBJECTS),
    ),
}

# Grey-level images take a larger budget than photographs; 0.1 and 0.3 are the usual ones of MNIST's kind.
_CLOTHES = Augment(crop=2, flip=True)
PROFILES["second"] = dataclasses.replace(
    PROFILES["small"],
    dataset="fashion-mnist",
    owner=6_000,
    other=4_000,
    eps=0.1,
    budgets=(0.05, 0.1, 0.2),
    levels=("image",),
    probes=200,
    restarts=1,
    purifier_steps=750,
    recipe=dataclasses.replace(PROFILES["small"].recipe, augment=_CLOTHES),
    purifier_recipe=dataclasses.replace(PROFILES["small"].purifier_recipe, augment=_CLOTHES),
    robust_recipe=dataclasses.replace(PROFILES["small"].robust_recipe, augment=_CLOTHES),
)
COMPANIONS = {
    "fashion-mnist": {
        "eps": 0.1,
        "budgets": (0.05, 0.1, 0.2, 0.3),
        "recipe": Recipe(epochs=50, batch_size=128, lr=0.1, augment=_CLOTHES),
        "robust_recipe": Recipe(epochs=30, batch_size=128, lr=0.1, augment=_CLOTHES),
    },
}
