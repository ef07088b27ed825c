"""Knowledge distillation: the losses by which a student learns from a teacher's outputs or features.

Each is a frozen dataclass with the teacher inside, to be handed to ``kdsec.train.fit`` as its ``loss``. Where
a loss takes ``teacher``, two things fit:

* a network: asked about each batch as it comes, *after* augmentation, so that student and teacher see the
  same pixels. Every epoch costs a teacher's forward pass, or none if ``kdsec.answers`` recalls what it said
  to an earlier student.
* a tensor of logits ``(N, K)`` made once by ``teacher_labels(teacher, data)``: the teacher's answers for the
  *un-augmented* images, looked up by position. One pass in all, what a thief who pays per query would do,
  but under augmentation the student is asked to give a shifted image the answer of the unshifted one. Beyer
  et al. (2022, arXiv 2106.05237) found the first, "consistent", way to be the better teacher. Without
  augmentation the two are the same loss.

Unlabelled images (``UNLABELLED``) contribute to the teacher's term and not to the label's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data import UNLABELLED, Batch, ImageSet
from kdsec.errors import KdsecError
from kdsec.models import Classifier
from kdsec.train import cross_entropy, predict

Teacher = nn.Module | Tensor


def teacher_labels(teacher: nn.Module, data: ImageSet) -> Tensor:
    """The teacher's logits ``(N, K)`` for the un-augmented images, to be used in place of the teacher."""
    return predict(teacher, data)


class View(nn.Sequential):
    """A teacher, and layers that its answers pass through."""


def teacher_logits(teacher: Teacher, batch: Batch) -> Tensor:
    """The teacher's logits ``(B, K)`` for a batch: looked up, recalled, or computed without gradient."""
    if isinstance(teacher, Tensor):
        return teacher[batch.position]
    with torch.no_grad():
        if isinstance(teacher, View):  # all views of one teacher share its answers
            return teacher[1:](teacher_logits(teacher[0], batch))
        return batch.ask(teacher) if batch.ask else teacher(batch.images)


def soft_cross_term(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""The teacher's term, :math:`\tau^2 \mathrm{KL}(\sigma_\tau(z_T) \| \sigma_\tau(z_S))`, a batch's mean.

    The factor :math:`\tau^2` keeps its gradient comparable with the label's term as tau grows
    (Hinton et al. 2015, section 2).

    Args:
        student: logits ``(B, K)``.
        teacher: logits ``(B, K)``.
        temperature: tau > 0.
    """
    target = F.log_softmax(teacher.float() / temperature, dim=1)
    guess = F.log_softmax(student.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(guess, target, log_target=True, reduction="batchmean")


def kd_loss(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float) -> Tensor:
    """Hinton's loss: ``alpha`` of the teacher's term and ``1 - alpha`` of the label's cross-entropy."""
    soft, hard = soft_cross_term(student, teacher, temperature), cross_entropy(student, labels)
    return alpha * soft + (1 - alpha) * hard


@dataclass(frozen=True)
class KD:
    """Soft labels (Hinton, Vinyals & Dean 2015, arXiv 1503.02531).

    Attributes:
        teacher: network, or cached logits.
        temperature: tau of both softmaxes, above 0.
        alpha: weight of the teacher's term, in [0, 1]; 1 needs no labels.
    """

    teacher: Teacher
    temperature: float = 4.0
    alpha: float = 0.9

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        if not 0 <= self.alpha <= 1:
            raise KdsecError(
                f"alpha={self.alpha} must lie in [0, 1]; 1 trusts the teacher alone, 0 the labels alone"
            )

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        target = teacher_logits(self.teacher, batch)
        return kd_loss(model(batch.images), target, batch.labels, self.temperature, self.alpha)


@dataclass(frozen=True)
class HardLabels:
    """The teacher's decisions alone: cross-entropy with its argmax, labels unused."""

    teacher: Teacher

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model(batch.images), teacher_logits(self.teacher, batch).argmax(1))


@dataclass(frozen=True)
class DecoupledKD:
    r"""Decoupled KD (Zhao et al. 2022, arXiv 2203.08679, eq. 7): target and non-target terms weighted apart.

    Hinton's KL splits exactly into :math:`\mathrm{TCKD} + (1-p_y)\,\mathrm{NCKD}`: how sure the teacher is of
    the target class, and how it shares the rest among the others ("dark knowledge"). Here the two get weights
    of their own, plus the label's cross-entropy.

    Attributes:
        teacher: network, or cached logits.
        temperature: tau of all softmaxes.
        target_weight: weight of TCKD (the paper's alpha).
        others_weight: weight of NCKD (the paper's beta).
    """

    teacher: Teacher
    temperature: float = 4.0
    target_weight: float = 1.0
    others_weight: float = 8.0

    def __post_init__(self) -> None:
        check_temperature(self.temperature)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        teacher = teacher_logits(self.teacher, batch)
        student = model(batch.images)
        # Without a label the teacher's own decision is the target class.
        target = torch.where(batch.labels == UNLABELLED, teacher.argmax(1), batch.labels)
        tckd, nckd = decoupled_terms(student, teacher, target, self.temperature)
        return self.target_weight * tckd + self.others_weight * nckd + cross_entropy(student, batch.labels)


def decoupled_terms(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD, each times tau^2 and averaged over the batch.

    Args:
        student: logits ``(B, K)``.
        teacher: logits ``(B, K)``.
        target: class ``(B,)`` that counts as the target.
        temperature: tau > 0.
    """
    is_target = F.one_hot(target, student.shape[1]).bool()

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = F.log_softmax(logits.float() / temperature, dim=1)
        others = log_p.masked_fill(is_target, -torch.inf)
        binary = torch.stack(
            [log_p[is_target], others.logsumexp(1)], dim=1
        )  # log p(target), log p(any other)
        among_others = (log_p[~is_target].view(len(log_p), -1)).log_softmax(1)  # the others, renormalised
        return binary, among_others

    (student_binary, student_others), (teacher_binary, teacher_others) = (
        split(student),
        split(teacher),
    )
    tckd = F.kl_div(student_binary, teacher_binary, log_target=True, reduction="batchmean")
    nckd = F.kl_div(student_others, teacher_others, log_target=True, reduction="batchmean")
    return temperature**2 * tckd, temperature**2 * nckd


@dataclass(frozen=True)
class AttentionTransfer:
    """Attention transfer (Zagoruyko & Komodakis 2017, arXiv 1612.03928, section 3.1): features, not outputs.

    A stage's attention map is the mean over channels of its squared activations, as a unit vector over
    positions; the student matches the teacher's. Needs a teacher whose inside can be read (white box). Stages
    are paired by height and width; where several share a size, the deepest counts.

    Attributes:
        teacher: a network with ``features``.
        weight: of the attention term. The squared distance of two unit maps is summed over positions; the
            authors' code takes its mean and a weight of 1000, which is 16 here for an 8x8 map, 1 for a 32x32.
    """

    teacher: Classifier
    weight: float = 10.0

    def __call__(self, model: Classifier, batch: Batch) -> Tensor:
        with torch.no_grad():
            wanted = _by_size(self.teacher.features(batch.images))
        stages = model.features(batch.images)
        given = _by_size(stages)
        shared = [size for size in given if size in wanted]
        if not shared:
            raise KdsecError("attention transfer found no stages of equal size; choose nets of one family")
        gaps = [
            (attention_map(given[size]) - attention_map(wanted[size])).square().sum(1).mean()
            for size in shared
        ]
        return cross_entropy(model.head(stages[-1]), batch.labels) + self.weight * torch.stack(gaps).sum()


def _by_size(stages: list[Tensor]) -> dict[torch.Size, Tensor]:
    return {maps.shape[2:]: maps for maps in stages if maps.ndim == 4}


def attention_map(features: Tensor) -> Tensor:
    """``(B, C, H, W)`` features to ``(B, H*W)`` unit vectors: where in the image the stage is active."""
    return F.normalize(features.float().square().mean(1).flatten(1), dim=1)


def check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise KdsecError(
            f"temperature={temperature} must be above 0; 1 leaves the softmax as it is, 4 is common"
        )
