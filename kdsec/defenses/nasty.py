"""The Nasty Teacher: keep the decisions, move the probabilities away from an honest network's.

Ma et al., "Undistillable: Making a Nasty Teacher that Cannot Teach Students", ICLR 2021, arXiv 2105.07381.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from kdsec.data import Batch
from kdsec.distill import check_teacher
from kdsec.entry import checked
from kdsec.errors import check_number
from kdsec.logits import check_temperature, soft_cross_term
from kdsec.train import ask, cross_entropy


@checked
@dataclass(frozen=True)
class NastyLoss:
    r"""Self-undermining distillation: right in the labels, far from the adversary in everything else.

    .. math:: \mathcal{L} = \mathrm{CE}(f_T(x), y)
        - \omega\,\tau^2\,\mathrm{KL}\big(\sigma_\tau(f_T(x)) \,\|\, \sigma_\tau(f_H(x))\big)

    The direction is that of the authors' code: the network being trained is the *target* of the divergence,
    and the gradient flows there. The adversary :math:`f_H` is an honestly trained network of the same
    architecture and does not change. (The constant 100 that their code adds has no gradient and is left out.)

    The divergence of one image is at most :math:`-\log \min_k \sigma_\tau(f_H(x))_k`, so the loss has a
    floor, but a deep one: about :math:`-\omega\tau` times the range of the adversary's logits. Gradients on
    the way there are large, and with a large ``weight`` or a high learning rate training explodes
    (VITA-Group/Nasty-Teacher, issue 17).

    Attributes:
        adversary: the honest network; left as it is.
        temperature: tau; the authors use 4 on CIFAR-10 and 20 on CIFAR-100 and Tiny-ImageNet.
        weight: omega, 0 or more; the authors use 0.04, 0.005 and 0.01 there.
    """

    adversary: nn.Module
    temperature: float = 4.0
    weight: float = 0.04
    needs_labels = True

    def __post_init__(self) -> None:
        check_teacher(self.adversary)
        check_temperature(self.temperature)
        check_number("weight", self.weight, least=0)

    @property
    def advice(self) -> str:
        """What to lower when training explodes."""
        return (
            f"lower the nasty loss's weight (now {self.weight:g}) or temperature (now {self.temperature:g}), "
            "or set grad_clip"
        )

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        honest, logits = ask(self.adversary, batch.images), model(batch.images)
        # soft_cross_term(student, teacher) is KL(teacher || student): here the learner is the teacher.
        away = soft_cross_term(honest, logits, self.temperature)
        return cross_entropy(logits, batch.labels) - self.weight * away
