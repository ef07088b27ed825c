"""Thieves: the ways to train a student from a teacher that does not want to be copied.

Every thief in ``THIEVES`` is called alike, ``THIEVES[name](student, teacher, data, recipe, ...) -> student``,
so that all can be set on all. What a thief has:

* the **teacher**, to be asked about any image; it is asked anew about every augmented view of an image, as in
  the papers. White-box thieves also look inside.
* ``data``, the thief's own images. All, some or none of their labels are known (``UNLABELLED``). A thief with
  all labels needs no teacher (``alpha=0``), so the settings to look at are few labels and none.
* a fresh **student**, trained in place.

No function here takes test images. A thief who tries several ways (``try_thieves``) chooses among them on
images set aside from the thief's own (``best_thief``); the test accuracy of that one choice is what may be
reported.

Most thieves are plain distillation from a *view* of the teacher: a module that asks the teacher and repairs
the answer. Views work on log-probabilities and read nothing below ``FLOOR`` out of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data import UNLABELLED, Batch, ImageSet
from kdsec.distill import (
    KD,
    AttentionTransfer,
    HardLabels,
    kd_loss,
    soft_cross_term,
    teacher_labels,
    teacher_logits,
)
from kdsec.errors import KdsecError
from kdsec.models import count_parameters
from kdsec.models.layers import conv_bn, pool_head
from kdsec.train import Recipe, cross_entropy, evaluate, fit, predict

FLOOR = -50.0  # log of the smallest probability that a thief makes anything of


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
    """The skeptical student: only a side branch listens to the teacher. See ``SkepticalLoss``."""
    return Job(
        Branched(student, data, seed),
        with_decisions(teacher, data),
        SkepticalLoss(teacher, temperature, alpha),
    )


def with_decisions(teacher: nn.Module, data: ImageSet) -> ImageSet:
    """The same images, with the teacher's decision where there is no label."""
    decided = teacher_labels(teacher, data).argmax(1)
    return data.replace(labels=torch.where(data.labels == UNLABELLED, decided, data.labels))


# Views: the teacher, followed by layers that repair its answers.


class LogProbabilities(nn.Module):
    """What a service's logits say at temperature 1, float32, none below ``FLOOR``."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.float().log_softmax(1).clamp(min=FLOOR)


class KeepTop(nn.Module):
    """The ``keep`` largest log-probabilities stay, the other classes share what is left evenly."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def extra_repr(self) -> str:
        return f"keep={self.keep}"

    def forward(self, log_p: Tensor) -> Tensor:
        classes = log_p.shape[1]
        if not 1 <= self.keep < classes:
            raise KdsecError(f"keep={self.keep} of {classes} classes; choose 1 to {classes - 1}")
        kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, log_p.topk(self.keep).indices, True)
        left = log_p.masked_fill(kept, -torch.inf).logsumexp(1, keepdim=True)
        return torch.where(kept, log_p, left - math.log(classes - self.keep))


class Debias(nn.Module):
    """Log-probabilities minus an offset that depends on the decision: row c of ``offsets`` ``(K, K)``."""

    offsets: Tensor

    def __init__(self, offsets: Tensor) -> None:
        super().__init__()
        self.register_buffer("offsets", offsets)

    def forward(self, log_p: Tensor) -> Tensor:
        return log_p - self.offsets[log_p.argmax(1)]


class Averaged(nn.Module):
    """Mean log-probabilities over the image and its four neighbours one pixel away: five queries an image."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padded = F.pad(images, (1, 1, 1, 1))
        places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
        moved = [padded[:, :, top : top + height, left : left + width] for top, left in places]
        answers = self.teacher(torch.cat(moved)).float().log_softmax(1).clamp(min=FLOOR)
        return answers.view(len(places), len(images), -1).mean(0)


def view(teacher: nn.Module, *layers: nn.Module) -> nn.Module:
    """The teacher's log-probabilities, passed through ``layers``."""
    return nn.Sequential(teacher, LogProbabilities(), *layers).eval()


def keep_top(teacher: nn.Module, data: ImageSet, keep: int) -> nn.Module:
    """The largest ``keep`` probabilities; with 1 the negatives are dropped and the confidence is left."""
    return view(teacher, KeepTop(keep))


def averaged(teacher: nn.Module, data: ImageSet) -> nn.Module:
    """Against answers that hang on single pixels."""
    return Averaged(teacher).eval()


def mean_removed(teacher: nn.Module, data: ImageSet) -> nn.Module:
    """Takes the mean answer off: against a teacher that favours some classes on every image."""
    log_p = predict(view(teacher), data)
    return view(teacher, Debias(log_p.mean(0).expand(log_p.shape[1], -1).contiguous()))


def class_mean_removed(teacher: nn.Module, data: ImageSet) -> nn.Module:
    """Takes off the mean profile of the *other* classes for each decision: what is the same for all sevens.

    The chosen class keeps its value and the others their common level, so the confidence stays.
    """
    log_p = predict(view(teacher), data)
    classes = log_p.shape[1]
    decided = F.one_hot(log_p.argmax(1), classes).float()
    means = decided.T @ log_p / decided.sum(0).clamp(min=1)[:, None]
    others = 1 - torch.eye(classes, device=log_p.device)
    level = (means * others).sum(1, keepdim=True) / (classes - 1)
    return view(teacher, Debias((means - level) * others))


def linear_map(teacher: nn.Module, data: ImageSet, ridge: float = 0.1) -> nn.Module:
    """A linear map of the log-probabilities, fitted to the thief's labelled images.

    It minimises their cross-entropy plus ``ridge`` times its squared distance from the identity.
    """
    known = data.subset(data.labels != UNLABELLED)
    log_p = predict(view(teacher), known)
    identity = torch.eye(log_p.shape[1], device=log_p.device)
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, len(identity), len(identity), device=log_p.device)
    with torch.no_grad():
        layer.weight.copy_(identity)
        layer.bias.zero_()
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def cost() -> Tensor:
        optimizer.zero_grad()
        away = (layer.weight - identity).square().sum() + layer.bias.square().sum()
        loss = F.cross_entropy(layer(log_p), known.labels) + ridge * away
        loss.backward()
        return loss

    optimizer.step(cost)
    return view(teacher, layer.requires_grad_(False))


# The skeptical student.


class Branched(nn.Module):
    """A student with two more classifiers on its way: after the last stage but two, and the last but one."""

    def __init__(self, student: Any, data: ImageSet, seed: int) -> None:
        super().__init__()
        student.eval()
        with torch.no_grad():
            shapes = [stage.shape for stage in student.features(data.float_images(slice(0, 1)))]
        if len(shapes) < 3 or len(shapes[-3]) != 4:
            raise KdsecError("the skeptical student needs a convolutional network of at least three stages")
        self.student = student
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)
            late, early = (
                nn.Sequential(conv_bn(shape[1], shape[1]), pool_head(shape[1], data.num_classes))
                for shape in (shapes[-2], shapes[-3])
            )
        self.late, self.early = late.to(data.images.device), early.to(data.images.device)

    def answers(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``(B, K)`` of the student itself, of the later and of the earlier branch."""
        stages = self.student.features(images)
        return self.student.head(stages[-1]), self.late(stages[-2]), self.early(stages[-3])


@dataclass(frozen=True)
class SkepticalLoss:
    r"""The loss of the skeptical student (Kundu et al., NeurIPS 2021), with the weights of the authors' code.

    .. math:: \alpha T^2 \mathrm{KL}(\sigma_T(z_t) \| \sigma_T(z_e)) + (1-\alpha) \mathrm{CE}(z_e, y)
        + 0.3\, \mathrm{KL}(\sigma_T(z) \| \sigma_T(z_l)) + 0.7\, \mathrm{CE}(z_l, y) + \mathrm{CE}(z, y)

    with :math:`z_t` the teacher, z the student, :math:`z_e, z_l` its earlier and its later branch. The
    teacher can mislead a branch that is thrown away afterwards; what is kept learns from labels.
    """

    teacher: nn.Module
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        KD(self.teacher, self.temperature, self.alpha)  # refuses a temperature or alpha out of range

    def __call__(self, model: Branched, batch: Batch) -> Tensor:
        taught = teacher_logits(self.teacher, batch)
        own, late, early = model.answers(batch.images)
        listens = kd_loss(early, taught, batch.labels, self.temperature, self.alpha)
        # Without the factor T^2 here, as in their code.
        checks = 0.3 * soft_cross_term(late, own, self.temperature) / self.temperature**2
        checks = checks + 0.7 * cross_entropy(late, batch.labels)
        return listens + checks + cross_entropy(own, batch.labels)


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
