"""Settings of the chapter *A clean teacher, poisoned images, a backdoored student*."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from kdsec import models
from kdsec.attacks.crafting import Crafting
from kdsec.data import DATASETS, Augment
from kdsec.data.names import CLASS_NAMES
from kdsec.distill import check_temperature
from kdsec.errors import KdsecError, choose
from kdsec.train import Recipe


@dataclass(frozen=True)
class PoisonedDistillation:
    """A teacher's owner, a student's owner, and whoever supplies the images in between.

    Attributes:
        dataset: what the teacher classifies.
        validation: share of the training images set aside for choices.
        teacher: the clean network.
        student: the victim's network.
        other: a network of another kind: the second victim, and the attacker's surrogate of the teacher.
        owner: training images of the teacher.
        distill: images of the distillation set; none of them the owner's.
        clean: clean labelled images that the victim keeps for curing a student; in neither set.
        target: the class that the trigger shall mean.
        trigger: name of the main trigger, see ``kdsec.attacks.triggers.trigger``.
        rate: poisons as a share of the whole distillation set.
        crafting: how the poisons are made.
        temperature: tau of the main experiments.
        alpha: weight of the teacher where labels are used too.
        rates, epsilons, temperatures, triggers: what is tried instead of the main value, one at a time.
        alphas: weights of the teacher between all labels (0) and all teacher (1) for conventional poisons.
        recipe: of the teacher, and of the students but for the epochs.
        epochs: of the students.
        cure: training on the clean images.
        cleanse_steps: of Neural Cleanse, for each class.
        probes: test images for what costs much: transfer of perturbations, and STRIP.
    """

    dataset: str
    validation: float
    teacher: str
    student: str
    other: str
    owner: int
    distill: int
    clean: int
    target: int
    trigger: str
    rate: float
    crafting: Crafting
    temperature: float
    alpha: float
    rates: tuple[float, ...]
    epsilons: tuple[float, ...]
    temperatures: tuple[float, ...]
    triggers: tuple[str, ...]
    alphas: tuple[float, ...]
    recipe: Recipe
    epochs: int
    cure: Recipe
    cleanse_steps: int
    probes: int

    def __post_init__(self) -> None:
        choose("dataset", self.dataset, DATASETS)
        for model in (self.teacher, self.student, self.other):
            choose("model", model, models.names())
        for temperature in (self.temperature, *self.temperatures):
            check_temperature(temperature)
        for eps in self.epsilons:
            dataclasses.replace(self.crafting, eps=eps)
        classes = len(CLASS_NAMES[self.dataset])
        if not 0 <= self.target < classes:
            raise KdsecError(
                f"target={self.target} is not a class of {self.dataset}; choose one from 0 to {classes - 1}"
            )
        if not all(0 < rate <= 1 for rate in (self.rate, *self.rates)):
            raise KdsecError(
                f"rate={self.rate}, rates={self.rates}: they are shares of the whole set, in (0, 1]"
            )
        if not all(0 <= alpha <= 1 for alpha in (self.alpha, *self.alphas)):
            raise KdsecError(f"alpha={self.alpha}, alphas={self.alphas} must lie in [0, 1]")

    @property
    def training_images(self) -> int:
        """How many are dealt out: the owner's, the distillation set, and the victim's clean ones."""
        return self.owner + self.distill + self.clean

    @property
    def student_recipe(self) -> Recipe:
        """Of every student: the teacher's but for the epochs."""
        return dataclasses.replace(self.recipe, epochs=self.epochs)


PROFILES = {
    "quick": PoisonedDistillation(
        dataset="digits",
        validation=0.1,
        teacher="digits-cnn",
        student="digits-small",
        other="digits-mlp",
        owner=450,
        distill=550,
        clean=70,
        target=3,
        trigger="checker 3",
        rate=0.1,
        # Strokes of full contrast take a larger budget than photographs.
        crafting=Crafting(eps=76 / 255, step_size=19 / 255, confidence=0.9, stop_early=True),
        temperature=1.0,
        alpha=0.9,
        rates=(0.02, 0.05, 0.2),
        epsilons=(38 / 255, 114 / 255),
        temperatures=(2.0, 4.0),
        triggers=("square 1", "square 3", "blend 30"),
        alphas=(0.5, 0.9),
        recipe=Recipe(epochs=30, batch_size=64, lr=0.1, augment=Augment(crop=1), precision="float32"),
        epochs=37,
        cure=Recipe(epochs=40, batch_size=32, lr=0.05, augment=Augment(crop=1), precision="float32"),
        cleanse_steps=120,
        probes=100,
    ),
    "small": PoisonedDistillation(
        dataset="cifar10",
        validation=0.1,
        teacher="resnet20",
        student="resnet8",
        other="cnn",
        owner=18_000,
        distill=10_000,
        clean=1_500,
        target=1,
        trigger="checker 8",
        rate=0.05,
        crafting=Crafting(confidence=0.9),
        temperature=4.0,
        alpha=0.9,
        rates=(0.005, 0.01),
        epsilons=(4 / 255, 16 / 255),
        temperatures=(1.0,),
        triggers=("square 3", "blend 20"),
        alphas=(0.5, 0.9),
        recipe=Recipe(epochs=12, batch_size=128, lr=0.2, augment=Augment(crop=4, flip=True)),
        epochs=9,
        cure=Recipe(epochs=15, batch_size=128, lr=0.05, augment=Augment(crop=4, flip=True)),
        cleanse_steps=120,
        probes=500,
    ),
    "paper": PoisonedDistillation(
        dataset="cifar10",
        validation=0.1,
        teacher="resnet34",
        student="resnet18",
        other="mobilenetv2",
        owner=22_000,
        distill=20_000,
        clean=2_500,
        target=1,
        trigger="checker 8",
        rate=0.05,
        crafting=Crafting(confidence=0.9),
        temperature=4.0,
        alpha=0.9,
        rates=(0.001, 0.005, 0.01, 0.02, 0.1),
        epsilons=(2 / 255, 4 / 255, 16 / 255),
        temperatures=(1.0, 2.0, 8.0),
        triggers=("square 1", "square 3", "checker 3", "blend 20"),
        alphas=(0.1, 0.5, 0.9),
        recipe=Recipe(
            epochs=100,
            batch_size=128,
            lr=0.1,
            augment=Augment(crop=4, flip=True),
        ),
        epochs=100,
        cure=Recipe(epochs=20, batch_size=128, lr=0.05, augment=Augment(crop=4, flip=True)),
        cleanse_steps=1_000,
        probes=2_000,
    ),
}

# At the paper profile: GTSRB has fewer images, and a mirrored traffic sign is another sign or none.
COMPANIONS = {
    "gtsrb": {
        "owner": 16_000,
        "distill": 16_000,
        "clean": 2_000,
        "recipe": Recipe(epochs=100, batch_size=128, lr=0.1, augment=Augment(crop=4)),
        "cure": Recipe(epochs=20, batch_size=128, lr=0.05, augment=Augment(crop=4)),
    },
}
