r"""Reversed maximization learning (RML): right about the class, reversed about all the others.

Zhang, Li & Pan, "Reversed Maximization Learning: Dark Knowledge Elimination for Anti-distillation",
Journal of Frontiers of Computer Science and Technology 20(1), 2026, in Chinese,
doi:10.3778/j.issn.1673-9418.2505049.

**A reconstruction.** There is no public code, and only the abstract could be read: an honest network's output
is split into the positive class and the negatives "through a binary probability mechanism", and a
"reverse-ranking module" learns the inverted negatives. Losses, weights, temperatures and what "inverted"
means are this package's. The last has several readings, listed at ``kdsec.logits.READINGS``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsec.data import UNLABELLED, Batch
from kdsec.distill import check_teacher
from kdsec.entry import checked
from kdsec.errors import KdsecError, check_choice, check_number
from kdsec.logits import (
    READINGS,
    check_temperature,
    decoupled_terms,
    kl,
    negatives,
    reverse,
    reverse_negatives,
    soft_cross_term,
)
from kdsec.train import ask, cross_entropy

POSITIVES = ("label", "decision")


@checked
@dataclass(frozen=True)
class ReversedMaximizationLoss:
    r"""The loss of RML, as reconstructed here.

    .. math:: \mathcal{L} = \lambda\,\mathrm{CE}(z, y)
        + \lambda_b\,\tau^2\,\mathrm{KL}\big([p_y^H, 1 - p_y^H] \,\|\, [p_y, 1 - p_y]\big)
        + \omega\,\tau^2\,\mathrm{KL}\big(R(\hat p^H) \,\|\, \hat p\big)

    The first divergence matches the honest network's confidence in the positive class against the rest; the
    second teaches the negatives the reversed target, and its gradient
    :math:`\omega\tau(\hat p_k - q_k)` leaves the positive logit alone.

    **Why split?** The divergence from the joint target :math:`p^*` of ``reverse`` is the first plus
    :math:`(1 - p_y^H)` times the second: where the honest network is sure, which is almost everywhere on its
    training images, the reversal would weigh nothing. ``decoupled=False`` is that loss.

    Attributes:
        honest: a network trained on the labels; left as it is.
        reading: R, see ``kdsec.logits.READINGS``.
        temperature: tau of all softmaxes but the cross-entropy's.
        label_weight, binary_weight, reversal_weight: lambda, lambda_b and omega.
        positive: the positive class is the ``label``, or the honest network's ``decision`` (as it is, in any
            case, for an image without a label).
        decoupled: see above; without it there is one divergence, and the last two weights must agree.
    """

    honest: nn.Module
    reading: str = "negate"
    temperature: float = 4.0
    label_weight: float = 1.0
    binary_weight: float = 1.0
    reversal_weight: float = 1.0
    positive: str = "label"
    decoupled: bool = True

    def __post_init__(self) -> None:
        check_temperature(self.temperature)
        check_choice("reading", self.reading, READINGS)
        check_choice("positive", self.positive, POSITIVES)
        check_teacher(self.honest)
        for name in ("label_weight", "binary_weight", "reversal_weight"):
            check_number(name, getattr(self, name), least=0)
        if not self.decoupled and (self.binary_weight != self.reversal_weight or self.reading == "away"):
            raise KdsecError(
                "decoupled=False has one divergence from one target: give binary_weight and reversal_weight "
                f"the same value (now {self.binary_weight:g} and {self.reversal_weight:g}) "
                "and a reading other than 'away'"
            )

    @property
    def advice(self) -> str:
        """What to lower when training explodes."""
        return f"lower reversal_weight (now {self.reversal_weight:g}) or lr, or set grad_clip"

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        honest, logits = ask(self.honest, batch.images), model(batch.images)
        decided = honest.argmax(1)
        known = (batch.labels != UNLABELLED) & (self.positive == "label")
        labels = self.label_weight * cross_entropy(logits, batch.labels)
        return labels + self.divergence(logits, honest, torch.where(known, batch.labels, decided))

    def divergence(self, logits: Tensor, honest: Tensor, positive: Tensor) -> Tensor:
        """Everything but the labels' term: both divergences, weighted, or the joint one.

        Args:
            logits: of the network being trained, ``(B, K)``.
            honest: of the honest one, ``(B, K)``.
            positive: the positive class, ``(B,)``.
        """
        tau = self.temperature
        if not self.decoupled:
            target = reverse(honest, positive, self.reading, tau)
            return self.reversal_weight * soft_cross_term(logits, target, tau)
        log_p, honest_p = negatives(logits, positive, tau), negatives(honest, positive, tau)
        if self.reading == "away":
            gap = -kl(log_p, honest_p)
        else:
            gap = kl(reverse_negatives(honest_p, self.reading), log_p)
        binary, _ = decoupled_terms(logits, honest, positive, tau)
        return self.binary_weight * binary + self.reversal_weight * tau**2 * gap
