"""Knowledge distillation: the losses by which a student learns from a teacher's outputs or features.

Each is a frozen dataclass with the teacher inside, given to ``kdsec.train.fit`` as its ``loss``. Where a loss
takes ``teacher``, two things fit:

* a network: asked about each batch *after* augmentation, so that student and teacher see the same pixels
  (``kdsec.oracle`` recalls what it answered to an earlier student).
* a tensor of logits ``(N, K)`` made once by ``teacher_labels(teacher, data)``: the teacher's answers for the
  *un-augmented* images, looked up by position. One query an image in all, but under augmentation the student
  is asked to give a shifted image the answer of the unshifted one. Beyer et al. (2022, arXiv 2106.05237)
  found the first, "consistent", way to be the better teacher. Without augmentation the two are the same.

Unlabelled images (``UNLABELLED``) contribute to the teacher's term and not to the label's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data import Batch, ImageSet
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_number
from kdsec.logits import as_logits, check_temperature, soft_cross_term
from kdsec.models import Classifier
from kdsec.models.base import check_stages
from kdsec.oracle import answer
from kdsec.train import cross_entropy, evaluating, predict

Teacher = nn.Module | Tensor


@checked
def teacher_labels(teacher: nn.Module, data: ImageSet) -> Tensor:
    """The teacher's logits ``(N, K)`` for the un-augmented images, to be used in place of the teacher."""
    return predict(teacher, data)


@checked
def teacher_logits(teacher: Teacher, batch: Batch) -> Tensor:
    """The teacher's logits ``(B, K)`` for a batch: looked up, recalled, or computed without gradient."""
    if isinstance(teacher, Tensor):
        if int(batch.position.max()) >= len(teacher):
            raise KdsecError(
                f"the teacher's cached logits are for {len(teacher)} images, and the set has more"
            )
        return as_logits(teacher[batch.position], len(batch.position))
    return answer(teacher, batch.images)


@checked(values=False)
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
        check_teacher(self.teacher)
        check_temperature(self.temperature)
        check_number("alpha", self.alpha, least=0, most=1)

    @property
    def needs_labels(self) -> bool:
        return self.alpha == 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        target = teacher_logits(self.teacher, batch)
        return kd_loss(model(batch.images), target, batch.labels, self.temperature, self.alpha)


@dataclass(frozen=True)
class HardLabels:
    """The teacher's decisions alone: cross-entropy with its argmax, labels unused.

    Attributes:
        teacher: network, or cached logits.
        smoothing: of the decisions, as in ``kdsec.train.CrossEntropy``.
    """

    teacher: Teacher
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_teacher(self.teacher)
        check_number("smoothing", self.smoothing, least=0, below=1)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        decided = teacher_logits(self.teacher, batch).argmax(1)
        return cross_entropy(model(batch.images), decided, self.smoothing)


@dataclass(frozen=True)
class AttentionTransfer:
    """Attention transfer (Zagoruyko & Komodakis 2017, arXiv 1612.03928, section 3.1): features, not outputs.

    A stage's attention map is the mean over channels of its squared activations, as a unit vector over
    positions; the student matches the teacher's. Needs a teacher whose inside can be read (white box). Stages
    are paired by height and width; where several share a size, the deepest counts.

    Attributes:
        teacher: a network with stages; see ``check_stages``.
        weight: of the attention term. The squared distance of two unit maps is summed over positions; the
            authors' code takes its mean and a weight of 1000, which is 16 here for an 8x8 map, 1 for a 32x32.
    """

    teacher: Classifier
    weight: float = 10.0
    needs_labels = True

    def __post_init__(self) -> None:
        check_stages(self.teacher, "the teacher of attention transfer")
        check_number("weight", self.weight, least=0)

    def __call__(self, model: Classifier, batch: Batch) -> Tensor:
        check_stages(model, "a student of attention transfer")
        with torch.no_grad(), evaluating(self.teacher):
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


def check_teacher(teacher: Any) -> None:
    """Refuse a teacher that is neither a network nor cached logits ``(N, K)``."""
    if isinstance(teacher, Tensor):
        as_logits(teacher, len(teacher) if teacher.ndim else 0)
    elif not isinstance(teacher, nn.Module):
        raise KdsecError(
            f"a teacher must be an nn.Module or a tensor of logits (N, K), not a {type(teacher).__name__}"
        )
