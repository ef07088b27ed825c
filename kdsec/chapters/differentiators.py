"""Settings of the chapter on attacks through a public teacher, and distilled differentiators."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from kdsec import models
from kdsec.attacks.search import Dssim, Linf
from kdsec.chapters.checks import check
from kdsec.data import DATASETS, Augment
from kdsec.data.names import CLASS_NAMES
from kdsec.defenses.differentiators import Making
from kdsec.defenses.pruning import RANKINGS
from kdsec.errors import KdsecError, choose
from kdsec.train import Recipe

# Whom the attacker who knows is set on; differentiators in the "grey box" are the attacker's own.
ADAPTIVE = (
    "differentiators",
    "one full student",
    "confidence",
    "neuron distance",
    "full fine-tuning",
    "hardened teacher",
    "not pruned",
    "grey box",
)


@dataclass(frozen=True)
class Differentiators:
    """A public teacher of some classes, students of others, and whoever checks the students' answers.

    Attributes:
        dataset: what the teacher classifies; with a published teacher, what the students do.
        student_dataset: what the students do; if it is the teacher's, no class is in both.
        validation: share of the training images set aside: thresholds come from these.
        teacher_classes: how many classes, from the first on, the teacher learns.
        student_classes: how many, from the last of theirs backwards, the students learn.
        teacher_images, student_images: training images of each.
        model: the network; one of ``kdsec.models.imagenet_names()`` is a published teacher, taken as it is.
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
        sizes: other m.
        group: classes of a larger group.
        rate: false-rejection rate that thresholds are chosen for.
        away, away_stages, away_weight, away_recipe: D, its steps, weight and recipe of a step of
            neuron-distance retraining.
        adversarial_eps: of the adversarially trained teacher.
        adversarial_steps: of its projected gradient descent.
        rivals: other whole students that may be asked instead.
        weight, beta: of the joint attack.
        beyond: logits by which it aims past the rejection threshold.
        adaptive: defences that it is set on.
    """

    dataset: str
    student_dataset: str
    validation: float
    teacher_classes: int
    student_classes: int
    teacher_images: int
    student_images: int
    model: str
    keeps: tuple[int, ...]
    layers: tuple[int, ...]
    recipe: Recipe
    student_recipe: Recipe
    pairs: int
    candidates: int
    mimicry: Dssim
    budgets: tuple[float, ...]
    per_pixel: Linf
    epsilons: tuple[float, ...]
    making: Making
    ratios: tuple[float, ...]
    rankings: tuple[str, ...]
    distilled: float
    members: int
    sizes: tuple[int, ...]
    group: int
    rate: float
    away: float
    away_stages: int
    away_weight: float
    away_recipe: Recipe
    adversarial_eps: float
    adversarial_steps: int
    rivals: int
    weight: float
    beta: float
    beyond: float
    adaptive: tuple[str, ...]

    def __post_init__(self) -> None:
        check(
            self,
            positive=("away", "away_weight", "adversarial_eps", "beyond"),
            shares=("ratios", "distilled", "rate", "adversarial_eps"),
            counts=("teacher_images", "student_images", "pairs", "candidates", "members", "rivals", "layers"),
            filled=("keeps", "layers", "ratios", "rankings", "adaptive"),
        )
        check(self, counts=("away_stages", "adversarial_steps"))
        if list(self.keeps) != sorted(self.keeps, reverse=True):
            raise KdsecError(f"setting keeps={self.keeps}: name the student that keeps most layers first")
        if missing := set(self.keeps) - {0} - set(self.layers):
            raise KdsecError(
                f"setting layers={self.layers} lacks layer {max(missing)}, which students keep; attack it too"
            )
        for name in (self.dataset, self.student_dataset):
            choose("dataset", name, DATASETS)
        choose("model", self.model, (*models.names(), *models.imagenet_names()))
        for defence in self.adaptive:
            choose("defence", defence, ADAPTIVE)
        for ranking in self.rankings:
            choose("ranking", ranking, RANKINGS)
        for budget in self.budgets:
            dataclasses.replace(self.mimicry, budget=budget)
        for eps in self.epsilons:
            dataclasses.replace(self.per_pixel, eps=eps)
        self._check_classes()
        if not 2 <= self.group <= self.student_classes:
            raise KdsecError(f"group={self.group} must be 2 to {self.student_classes}, the student's classes")

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
        if self.published and (self.dataset != self.student_dataset or "hardened teacher" in self.adaptive):
            raise KdsecError(
                f"{self.model} is a published teacher, whose training images are not here: set dataset to "
                "the students' data set, and leave the hardened teacher out of adaptive"
            )

    @property
    def published(self) -> bool:
        """Whether the teacher comes with its weights, instead of being trained here."""
        return self.model in models.imagenet_names()

    @property
    def training_images(self) -> int:
        """How many of the teacher's data set are dealt out."""
        if self.published:
            return self.student_images
        shared = self.dataset == self.student_dataset
        return self.teacher_images + (self.student_images if shared else 0)

    @property
    def classes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the teacher, and of the students."""
        total = len(CLASS_NAMES[self.student_dataset])
        return tuple(range(self.teacher_classes)), tuple(range(total - self.student_classes, total))


_DIGITS = Recipe(epochs=15, batch_size=64, lr=0.1, augment=Augment(crop=1), precision="float32")
_PHOTOS = Recipe(epochs=12, batch_size=128, lr=0.2, augment=Augment(crop=4, flip=True))

PROFILES = {
    "quick": Differentiators(
        dataset="digits",
        student_dataset="digits",
        validation=0.25,
        teacher_classes=5,
        student_classes=5,
        teacher_images=430,
        student_images=420,
        model="digits-small",
        keeps=(3, 2, 0),
        layers=(3, 2, 1),
        recipe=_DIGITS,
        student_recipe=dataclasses.replace(_DIGITS, batch_size=32, lr=0.05),
        pairs=80,
        candidates=4,
        # Strokes of full contrast: a wider budget than for photographs, room for three levels of the pyramid,
        # pixels of 0 and 1 that can move, and larger steps than the authors' 2,000.
        mimicry=Dssim(budget=0.03, steps=120, levels=3, slack=0.01, stabilizer=1e-5, penalty=1e4),
        budgets=(0.01, 0.1),
        per_pixel=Linf(eps=50 / 255, steps=50),
        epsilons=(25 / 255, 75 / 255),
        making=Making(
            Recipe(epochs=10, batch_size=32, lr=0.05, augment=Augment(crop=1), precision="float32")
        ),
        ratios=(0.0, 0.8),
        rankings=("random", "reverse"),
        distilled=0.7,
        members=4,
        sizes=(1, 2, 3),
        group=3,
        rate=0.05,
        away=60.0,
        away_stages=5,
        away_weight=0.01,
        away_recipe=Recipe(epochs=3, batch_size=32, lr=0.02, augment=Augment(crop=1), precision="float32"),
        adversarial_eps=0.1,
        adversarial_steps=3,
        rivals=3,
        weight=0.1,
        beta=1.0,
        beyond=2.0,
        adaptive=ADAPTIVE[:5],
    ),
    "small": Differentiators(
        dataset="cifar100",
        student_dataset="cifar100",
        validation=0.1,
        teacher_classes=50,
        student_classes=10,
        teacher_images=22_000,
        student_images=4_400,
        model="cnn",
        keeps=(4, 2, 0),
        layers=(4, 3, 2),
        recipe=dataclasses.replace(_PHOTOS, epochs=10),
        student_recipe=dataclasses.replace(_PHOTOS, lr=0.05),
        pairs=80,
        candidates=3,
        mimicry=Dssim(steps=300, stabilizer=1e-5, penalty=1e6),
        budgets=(0.001, 0.01),
        per_pixel=Linf(eps=4 / 255, steps=60),
        epsilons=(2 / 255, 8 / 255),
        making=Making(Recipe(epochs=5, batch_size=64, lr=0.02, augment=Augment(crop=4, flip=True))),
        ratios=(0.0,),
        rankings=("random",),
        distilled=0.7,
        members=5,
        sizes=(1, 3, 9),
        group=4,
        rate=0.05,
        away=30.0,
        away_stages=5,
        away_weight=0.01,
        away_recipe=Recipe(epochs=1, batch_size=64, lr=0.02, augment=Augment(crop=4, flip=True)),
        adversarial_eps=4 / 255,
        adversarial_steps=1,
        rivals=3,
        weight=0.1,
        beta=1.0,
        beyond=2.0,
        adaptive=ADAPTIVE[:5],
    ),
    # Half of CIFAR-100 to the other half; the attack with the settings of its authors' code.
    "paper": Differentiators(
        dataset="cifar100",
        student_dataset="cifar100",
        validation=0.1,
        teacher_classes=50,
        student_classes=50,
        teacher_images=22_000,
        student_images=5_000,
        model="vgg16",
        keeps=(13, 8, 4, 0),
        layers=(13, 11, 8, 6, 4, 2),
        recipe=Recipe(epochs=100, batch_size=128, lr=0.1, augment=Augment(crop=4, flip=True)),
        student_recipe=Recipe(epochs=30, batch_size=64, lr=0.02, augment=Augment(crop=4, flip=True)),
        pairs=500,
        candidates=5,
        mimicry=Dssim(),
        budgets=(0.001, 0.01),
        per_pixel=Linf(eps=4 / 255, steps=200, restarts=3),
        epsilons=(2 / 255, 8 / 255),
        making=Making(Recipe(epochs=8, batch_size=32, lr=0.02, augment=Augment(crop=4, flip=True))),
        ratios=(0.0, 0.3, 0.7, 0.9),
        rankings=("zeros", "random", "reverse"),
        distilled=0.7,
        members=5,
        sizes=(1, 3, 49),
        group=5,
        rate=0.05,
        away=30.0,
        away_stages=25,
        away_weight=0.01,
        away_recipe=Recipe(epochs=1, batch_size=32, lr=0.02, augment=Augment(crop=4, flip=True)),
        adversarial_eps=4 / 255,
        adversarial_steps=7,
        rivals=5,
        weight=0.1,
        beta=1.0,
        beyond=2.0,
        adaptive=ADAPTIVE,
    ),
}

# The owner's task is another world than the teacher's: ten traffic signs, which must not be mirrored, since
# "turn left" would be "turn right".
_SMALL = PROFILES["small"]
_SIGNS = Augment(crop=4)
PROFILES["second"] = dataclasses.replace(
    _SMALL,
    student_dataset="gtsrb",
    student_recipe=dataclasses.replace(_SMALL.student_recipe, augment=_SIGNS),
    making=dataclasses.replace(
        _SMALL.making, recipe=dataclasses.replace(_SMALL.making.recipe, augment=_SIGNS)
    ),
    away_recipe=dataclasses.replace(_SMALL.away_recipe, augment=_SIGNS),
)

# The attack's own setting: teachers that torchvision publishes, photographs of 224x224. Ten classes of each
# set, since every pair of them gets a differentiator of up to 138 million parameters.
_LARGE = {
    "student_classes": 10,
    "pairs": 100,
    "sizes": (1, 3, 9),
    "ratios": (0.0, 0.7),
    "adaptive": tuple(name for name in ADAPTIVE if name != "hardened teacher"),
}
COMPANIONS = {
    # 10 of VGG-16's 15 layers below the head kept, as a mid-layer extractor; the signs are not mirrored.
    "gtsrb-224": _LARGE
    | {
        "student_dataset": "gtsrb-224",
        "model": "vgg16-imagenet",
        "keeps": (15, 10, 0),
        "layers": (15, 13, 10, 8),
        "student_images": 4_000,
        "student_recipe": Recipe(epochs=15, batch_size=64, lr=0.005, augment=Augment(crop=16)),
        "making": Making(Recipe(epochs=5, batch_size=32, lr=0.005, augment=Augment(crop=16))),
        "away_recipe": Recipe(epochs=1, batch_size=32, lr=0.005, augment=Augment(crop=16)),
    },
    "flowers102": _LARGE
    | {
        "student_dataset": "flowers102",
        "model": "resnet50-imagenet",
        "keeps": (17, 13, 0),
        "layers": (17, 15, 13, 8),
        "validation": 0.3,  # twenty images a class: thresholds need some too
        "student_images": 130,
        "student_recipe": Recipe(epochs=60, batch_size=32, lr=0.01, augment=Augment(crop=16, flip=True)),
        "making": Making(Recipe(epochs=30, batch_size=16, lr=0.01, augment=Augment(crop=16, flip=True))),
        "away_recipe": Recipe(epochs=5, batch_size=16, lr=0.01, augment=Augment(crop=16, flip=True)),
    },
}
