"""The skeptical student: only a branch that is thrown away afterwards listens to the teacher.

Kundu et al., "Analyzing the Confidentiality of Undistillable Teachers in Knowledge Distillation",
NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdsec.data import Batch, ImageSet
from kdsec.distill import KD, kd_loss, teacher_logits
from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.logits import soft_cross_term
from kdsec.models.base import check_stages
from kdsec.models.layers import conv_bn, pool_head
from kdsec.train import cross_entropy, evaluating


class Branched(nn.Module):
    """A student with two auxiliary classifiers, after its third-last and its second-last stage.

    Args:
        student: a convolutional kdsec classifier of at least three stages; not copied.
        data: gives the image shape and the number of classes.
        seed: of the branches' weights.

    Raises:
        KdsecError: the student has no three stages to branch from.
    """

    def __init__(self, student: Any, data: ImageSet, seed: int) -> None:
        super().__init__()
        check_stages(student, "a skeptical student")
        with torch.no_grad(), evaluating(student):
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


@checked
@dataclass(frozen=True)
class SkepticalLoss:
    r"""The loss of the skeptical student (Kundu et al., NeurIPS 2021), with the weights of the authors' code.

    .. math:: \alpha \tau^2 \mathrm{KL}(\sigma_\tau(z_T) \| \sigma_\tau(z_e)) + (1-\alpha) \mathrm{CE}(z_e, y)
        + 0.3\, \mathrm{KL}(\sigma_\tau(z_S) \| \sigma_\tau(z_l)) + 0.7\, \mathrm{CE}(z_l, y)
        + \mathrm{CE}(z_S, y)

    with :math:`z_T` the teacher, :math:`z_S` the student, :math:`z_e, z_l` its earlier and later branch. The
    teacher can mislead a branch that is thrown away afterwards; what is kept learns from labels.
    """

    teacher: nn.Module
    temperature: float = 4.0
    alpha: float = 0.9
    needs_labels = True

    def __post_init__(self) -> None:
        KD(self.teacher, self.temperature, self.alpha)  # refuses a temperature or alpha out of range

    def __call__(self, model: Branched, batch: Batch) -> Tensor:
        taught = teacher_logits(self.teacher, batch)
        own, late, early = model.answers(batch.images)
        listens = kd_loss(early, taught, batch.labels, self.temperature, self.alpha)
        # Without the factor tau^2 here, as in their code.
        checks = 0.3 * soft_cross_term(late, own, self.temperature) / self.temperature**2
        checks = checks + 0.7 * cross_entropy(late, batch.labels)
        return listens + checks + cross_entropy(own, batch.labels)
