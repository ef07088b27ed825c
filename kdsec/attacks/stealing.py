"""Thieves: the ways to train a student from a teacher that does not want to be copied.

Every thief in ``THIEVES`` is called alike, ``THIEVES[name](student, teacher, data, recipe, ...) -> student``,
so that all can be set on all. What a thief has:

* the **teacher**, to be asked about any image; it is asked anew about every augmented view of an image, as in
  the papers (and computes once what several thieves ask: ``kdsec.answers``). White-box thieves also look
  inside.
* ``data``, the thief's own images. All, some or none of their labels are known (``UNLABELLED``). A thief with
  all labels needs no teacher (``alpha=0``), so the settings to look at are few labels and none.
* a fresh **student**, trained in place.

No function here takes test images. A thief who tries several ways (``try_thieves``) chooses among them on
images set aside from the thief's own (``best_thief``); the test accuracy of that one choice is what may be
reported.

Most thieves are plain distillation from a *view* of the teacher, which asks it and repairs the answer:
``kdsec.attacks.views``, and ``kdsec.attacks.unreversal`` for thieves who suspect reversed negatives.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdsec.attacks.skeptical import Branched, SkepticalLoss
from kdsec.attacks.unreversal import class_means_negated, inverse, power, sign_detected
from kdsec.attacks.views import averaged, class_mean_removed, keep_top, linear_map, mean_removed
from kdsec.data import UNLABELLED, ImageSet
from kdsec.distill import KD, AttentionTransfer, HardLabels, teacher_labels
from kdsec.errors import KdsecError
from kdsec.models import count_parameters
from kdsec.train import Recipe, evaluate, fit, predict


class Job(NamedTuple):
    """What a thief wants trained: usually the student, on its own images, with a loss."""

    model: nn.Module
    data: ImageSet
    loss: Callable[..., Tensor]


@dataclass(frozen=True)
class Thief:
    """One way to steal.

    Attributes:
        prepare: ``prepare(student, teacher, data, temperature, alpha, seed) -> Job``.
        needs_labels: whether some of the thief's own images must be labelled.
        white_box: whether the teacher's inside must be readable.
    """

    prepare: Callable[[Any, Any, ImageSet, float, float, int], Job]
    needs_labels: bool = False
    white_box: bool = False

    def __call__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        data: ImageSet,
        recipe: Recipe,
        *,
        temperature: float = 4.0,
        alpha: float = 0.9,
        seed: int = 0,
        fit: Callable[..., Any] = fit,
    ) -> nn.Module:
        """Train ``student`` from ``teacher`` in place and return it.

        Args:
            student: fresh, of as many classes as the teacher.
            teacher: images to logits, in eval mode.
            data: the thief's own images.
            recipe: how to train.
            temperature, alpha: as in ``kdsec.distill.KD``, for the thieves that distil.
            seed: of everything random.
            fit: what trains: ``kdsec.train.fit``, or ``run.cache.fit``, which keeps the result.

        Raises:
            KdsecError: the classes differ, labels are needed and there are none, the teacher's inside is
                needed and out of reach, or the training does not fit into memory.
        """
        _check_classes(student, teacher, data)
        if self.needs_labels and bool((data.labels == UNLABELLED).all()):
            raise KdsecError("this thief needs some labelled images; label a few, or leave this thief out")
        job = self.prepare(student, teacher, data, temperature, alpha, seed)
        try:
            fit(job.model, job.data, recipe, job.loss, seed=seed, label="thief")
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "memory" not in str(error):
                raise
            raise KdsecError(
                f"out of memory with a student of {count_parameters(student):,} parameters and batches of "
                f"{recipe.batch_size}; lower batch_size or choose a smaller student"
            ) from None
        return student


def _check_classes(student: nn.Module, teacher: nn.Module, data: ImageSet) -> None:
    one = data.subset(slice(0, 1))
    counts = [predict(student, one).shape[1], predict(teacher, one).shape[1], data.num_classes]
    if len(set(counts)) > 1:
        raise KdsecError(
            f"the student has {counts[0]} classes, the teacher {counts[1]} and {data.name} {counts[2]}; "
            "they must agree: build the student for the teacher's classes and name them in the image set"
        )


def soft_labels(
    student: nn.Module,
    teacher: nn.Module,
    data: ImageSet,
    temperature: float,
    alpha: float,
    seed: int,
    view: Callable[[nn.Module, ImageSet], nn.Module] | None = None,
) -> Job:
    """Distillation at fixed temperature and alpha, the thief of the papers; or from a view of the teacher."""
    return Job(student, data, KD(view(teacher, data) if view else teacher, temperature, alpha))


def hard_labels(
    student: nn.Module, teacher: nn.Module, data: ImageSet, temperature: float, alpha: float, seed: int
) -> Job:
    """The teacher's decisions and nothing else; no temperature, no alpha, no labels of one's own."""
    return Job(student, data, HardLabels(teacher))


def features(
    student: nn.Module, teacher: nn.Module, data: ImageSet, temperature: float, alpha: float, seed: int
) -> Job:
    """Attention transfer from the teacher's inside, with its decisions where labels are missing.

    Whoever holds the weights takes a wrapper such as ``Stingy`` off first. (They could also just copy them:
    this thief measures what the *features* of a protected teacher are worth to a smaller network.)
    """
    inside: Any = teacher
    while not hasattr(inside, "features") and hasattr(inside, "teacher"):
        inside = inside.teacher
    if not hasattr(inside, "features"):
        raise KdsecError(f"no features to steal in a {type(teacher).__name__}; it must be a kdsec model")
    return Job(student, with_decisions(teacher, data), AttentionTransfer(inside))


def skeptical(
    student: nn.Module, teacher: nn.Module, data: ImageSet, temperature: float, alpha: float, seed: int
) -> Job:
    """The skeptical student: only a side branch listens to the teacher. See ``kdsec.attacks.skeptical``."""
    return Job(
        Branched(student, data, seed),
        with_decisions(teacher, data),
        SkepticalLoss(teacher, temperature, alpha),
    )


def with_decisions(teacher: nn.Module, data: ImageSet) -> ImageSet:
    """The same images, with the teacher's decision where there is no label."""
    decided = teacher_labels(teacher, data).argmax(1)
    return data.replace(labels=torch.where(data.labels == UNLABELLED, decided, data.labels))


THIEVES: dict[str, Thief] = {
    "soft labels": Thief(soft_labels),
    "hard labels": Thief(hard_labels),
    "negatives dropped": Thief(partial(soft_labels, view=partial(keep_top, keep=1))),
    "top 2": Thief(partial(soft_labels, view=partial(keep_top, keep=2))),
    "top 3": Thief(partial(soft_labels, view=partial(keep_top, keep=3))),
    "mean removed": Thief(partial(soft_labels, view=mean_removed)),
    "class means removed": Thief(partial(soft_labels, view=class_mean_removed)),
    "linear map": Thief(partial(soft_labels, view=linear_map), needs_labels=True),
    "averaged over shifts": Thief(partial(soft_labels, view=averaged)),
    "negatives negated": Thief(partial(soft_labels, view=partial(inverse, reading="negate"))),
    "ranks reversed": Thief(partial(soft_labels, view=partial(inverse, reading="rank"))),
    "complement undone": Thief(partial(soft_labels, view=partial(inverse, reading="complement"))),
    "class means negated": Thief(partial(soft_labels, view=class_means_negated)),
    "sign detected": Thief(partial(soft_labels, view=sign_detected)),
    "skeptical student": Thief(skeptical),
    "features": Thief(features, white_box=True),
}


def sweep(
    temperatures: Iterable[float], alphas: Iterable[float], thief: Thief = THIEVES["soft labels"]
) -> dict[str, Callable[..., nn.Module]]:
    """One thief at every temperature and alpha, by the name ``T=4, alpha=0.9``."""
    return {
        f"T={temperature:g}, alpha={alpha:g}": partial(thief, temperature=temperature, alpha=alpha)
        for temperature, alpha in itertools.product(temperatures, alphas)
    }


def powers(exponents: Iterable[float], temperature: float = 4.0) -> dict[str, Thief]:
    """Thieves who raise the negatives to a signed power, by the name ``power -1``; 1 is soft labels.

    Args:
        exponents: s, see ``kdsec.attacks.unreversal.Power``.
        temperature: at which the decision keeps its probability.
    """
    return {
        f"power {exponent:g}": Thief(
            partial(soft_labels, view=partial(power, exponent=exponent, temperature=temperature))
        )
        for exponent in exponents
    }


class Theft(NamedTuple):
    """A thief's name, the student, and its accuracy on the thief's validation images."""

    thief: str
    student: nn.Module
    validation: float


def try_thieves(
    thieves: Mapping[str, Callable[..., nn.Module]],
    build: Callable[[], nn.Module],
    teacher: nn.Module,
    data: ImageSet,
    validation: ImageSet,
    recipe: Recipe,
    **options: Any,
) -> list[Theft]:
    """Set every thief on the teacher, each with a fresh student, the same images and the same training.

    Args:
        thieves: by name: ``THIEVES``, a part of it, or a ``sweep``.
        build: ``build() -> fresh student``.
        teacher, data, recipe: as for a thief.
        validation: images the thief set aside. Where it has no labels, what counts is agreement with the
            teacher's decision.
        options: ``seed``, ``fit``, ``temperature``, ``alpha``, passed on.
    """
    checked = with_decisions(teacher, validation)
    thefts = []
    for name, thief in thieves.items():
        student = thief(build(), teacher, data, recipe, **options)
        thefts.append(Theft(name, student, evaluate(student, checked).accuracy))
    return thefts


def best_thief(thefts: Iterable[Theft]) -> Theft:
    """The theft of the highest validation accuracy; of equals, the first."""
    return max(thefts, key=lambda theft: theft.validation)
