"""Settings of the closing chapter, in which every attack meets every defence."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from kdsec import models
from kdsec.attacks.crafting import Crafting
from kdsec.attacks.search import Linf
from kdsec.attacks.stealing import THIEVES
from kdsec.chapters.checks import check
from kdsec.chapters.schedules import same_steps
from kdsec.data import DATASETS, Augment
from kdsec.data.names import CLASS_NAMES
from kdsec.defenses.differentiators import Making
from kdsec.defenses.protected import PROTECTED, Strengths
from kdsec.errors import KdsecError, choose
from kdsec.train import Recipe


@dataclass(frozen=True)
class Crossing:
    """One owner, every protected teacher, every thief; one public teacher, its student, every input attack.

    Attributes:
        dataset: of everything.
        validation: share of the training images set aside for choices.
        owner: training images of the teachers.
        theft: how many *other* images, without labels, the thieves have; they are also the images that are
            poisoned.
        teacher, student: the two networks.
        teachers: from ``kdsec.defenses.protected.PROTECTED``; the first is "normal".
        strengths: of the defences.
        thieves: from ``kdsec.attacks.stealing.THIEVES``, black box and without labels; "soft labels" first.
        temperature: of distillation.
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

    dataset: str
    validation: float
    owner: int
    theft: int
    teacher: str
    student: str
    teachers: tuple[str, ...]
    strengths: Strengths
    thieves: tuple[str, ...]
    temperature: float
    recipe: Recipe
    student_steps: int
    victim_steps: int
    victim_temperature: float
    target: int
    trigger: str
    rate: float
    crafting: Crafting
    victims: tuple[str, ...]
    probes: int
    eps: float
    steps: int
    restarts: int
    public_classes: int
    private_classes: int
    public_recipe: Recipe
    private_recipe: Recipe
    model: str
    autoencoder: str
    autoencoder_recipe: Recipe
    autoencoder_steps: int
    making: Making
    members: int
    rejected: float
    mimicry: Linf

    def __post_init__(self) -> None:
        check(
            self,
            positive=("temperature", "victim_temperature", "eps", "rate", "rejected"),
            shares=("eps", "rate", "rejected"),
            counts=(
                "owner",
                "theft",
                "student_steps",
                "victim_steps",
                "probes",
                "steps",
                "restarts",
                "autoencoder_steps",
                "members",
            ),
            filled=("teachers", "thieves", "victims"),
        )
        choose("dataset", self.dataset, DATASETS)
        for model in (self.teacher, self.student, self.model):
            choose("model", model, models.names())
        choose("autoencoder", self.autoencoder, models.autoencoder_names())
        for teacher in (*self.teachers, *self.victims):
            choose("teacher", teacher, PROTECTED)
        for thief in self.thieves:
            choose("thief", thief, THIEVES)
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

    @property
    def training_images(self) -> int:
        """How many are dealt out, to the owner and the thief."""
        return self.owner + self.theft

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


_DIGITS = Recipe(epochs=16, batch_size=64, lr=0.05, augment=Augment(crop=1), precision="float32")
_OBJECTS = Recipe(epochs=12, batch_size=128, lr=0.2, augment=Augment(crop=4, flip=True))

_STRENGTHS = Strengths(
    smoothing=0.1,
    nasty_temperature=4.0,
    nasty_weight=0.03,
    stingy_keep=2,
    sparse_keep=2,
    sparse_temperature=6.0,
    sparse_alpha=0.01,
    reversal_temperature=4.0,
    reversal_weight=1.0,
    eps=0.15,
    step_size=0.05,
    steps=5,
    robust_steps=3,
    precision="float32",
)

_THIEVES = (
    "soft labels",
    "hard labels",
    "negatives dropped",
    "class means removed",
    "negatives negated",
)

PROFILES = {
    "quick": Crossing(
        dataset="digits",
        validation=0.15,
        owner=512,
        theft=506,
        teacher="digits-cnn",
        student="digits-small",
        teachers=tuple(PROTECTED),
        strengths=_STRENGTHS,
        thieves=_THIEVES,
        temperature=4.0,
        recipe=_DIGITS,
        student_steps=64,
        victim_steps=300,
        victim_temperature=1.0,
        target=3,
        trigger="checker 3",
        rate=0.1,
        crafting=Crafting(eps=76 / 255, step_size=19 / 255, confidence=0.9, stop_early=True),
        victims=("normal", "nasty", "AST", "RML, negate", "PGD-AT"),
        probes=120,
        eps=0.15,
        steps=20,
        restarts=1,
        public_classes=5,
        private_classes=5,
        public_recipe=dataclasses.replace(_DIGITS, lr=0.1),
        private_recipe=dataclasses.replace(_DIGITS, batch_size=32),
        model="digits-small",
        autoencoder="autoencoder-small",
        autoencoder_recipe=Recipe(
            batch_size=32,
            optimizer="adam",
            lr=2e-2,
            weight_decay=0.0,
            augment=Augment(crop=1),
            precision="float32",
        ),
        autoencoder_steps=160,
        making=Making(
            Recipe(epochs=10, batch_size=32, lr=0.05, augment=Augment(crop=1), precision="float32")
        ),
        members=4,
        rejected=0.05,
        mimicry=Linf(eps=0.15, steps=50),
    ),
    "small": Crossing(
        dataset="cifar10",
        validation=0.1,
        owner=10_000,
        theft=10_000,
        teacher="cnn",
        student="cnn-small",
        teachers=tuple(PROTECTED),
        strengths=dataclasses.replace(
            _STRENGTHS,
            nasty_weight=0.04,
            sparse_alpha=0.03,
            reversal_weight=0.3,  # what validation images choose in its own chapter; 1 costs eight points
            eps=8 / 255,
            step_size=2 / 255,
            robust_steps=2,
            precision="auto",
        ),
        thieves=_THIEVES,
        temperature=4.0,
        recipe=_OBJECTS,
        student_steps=240,
        victim_steps=600,
        victim_temperature=4.0,
        target=1,
        trigger="checker 8",
        rate=0.05,
        crafting=Crafting(confidence=0.9),
        victims=("normal", "nasty", "AST", "RML, negate", "PGD-AT"),
        probes=300,
        eps=8 / 255,
        steps=20,
        restarts=2,
        public_classes=5,
        private_classes=5,
        public_recipe=_OBJECTS,
        private_recipe=dataclasses.replace(_OBJECTS, lr=0.05),
        model="cnn",
        autoencoder="autoencoder-small",
        autoencoder_recipe=Recipe(
            batch_size=128, optimizer="adam", lr=2e-3, weight_decay=0.0, augment=Augment(crop=4, flip=True)
        ),
        autoencoder_steps=320,
        making=Making(Recipe(epochs=5, batch_size=64, lr=0.02, augment=Augment(crop=4, flip=True))),
        members=4,
        rejected=0.05,
        mimicry=Linf(eps=8 / 255, steps=100),
    ),
}

# Larger in every respect, and with every thief who needs neither labels nor a look inside.
PROFILES["paper"] = dataclasses.replace(
    PROFILES["small"],
    owner=25_000,
    theft=20_000,
    teacher="resnet18",
    student="mobilenetv2",
    strengths=dataclasses.replace(PROFILES["small"].strengths, sparse_alpha=0.05, steps=10, robust_steps=7),
    thieves=tuple(name for name, each in THIEVES.items() if not (each.needs_labels or each.white_box)),
    recipe=dataclasses.replace(_OBJECTS, epochs=100, lr=0.1),
    student_steps=31_000,
    victim_steps=31_000,
    crafting=Crafting(steps=50, confidence=0.9),
    victims=tuple(PROTECTED),
    probes=2_000,
    steps=100,
    restarts=5,
    public_recipe=dataclasses.replace(_OBJECTS, epochs=100, lr=0.1),
    private_recipe=dataclasses.replace(_OBJECTS, epochs=30, batch_size=64, lr=0.02),
    model="vgg16",
    autoencoder="autoencoder",
    autoencoder_recipe=dataclasses.replace(PROFILES["small"].autoencoder_recipe, lr=1e-3),
    autoencoder_steps=9_750,
    making=Making(dataclasses.replace(_OBJECTS, epochs=8, batch_size=32, lr=0.02)),
    mimicry=Linf(eps=8 / 255, steps=200, restarts=3),
)
