r"""Adversarial unlearning (I-BAU): a student trained against the worst perturbation common to all images.

Zeng, Chen, Park, Mao, Jin & Jia, "Adversarial Unlearning of Backdoors via Implicit Hypergradient", arXiv
2110.03735. A trigger is one such perturbation; the defender does not know it and looks for the worst:

.. math:: \min_\theta \mathcal{L}\big(\delta^*(\theta), \theta\big), \qquad
    \delta^*(\theta) = \arg\max_\delta \mathcal{L}(\delta, \theta) - \lambda \|\delta\|^2,

with :math:`\mathcal{L}` the cross-entropy of clean, labelled images shifted by :math:`\delta`. As
:math:`\delta^*` moves with the weights, the gradient has an implicit part: from the fixed point of one
ascent step :math:`\Phi(\delta, \theta)`, by a few terms of a Neumann series.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdsec.data import Batch
from kdsec.entry import checked
from kdsec.errors import check_number
from kdsec.train import cross_entropy, evaluating


@checked
@dataclass(frozen=True)
class AdversarialUnlearning:
    """A loss for ``kdsec.train.fit`` on clean images; batch normalisation keeps its statistics.

    Attributes:
        size: largest root mean square of the perturbation's pixels, in [0, 1].
        steps: of the inner search, each along the unit gradient.
        lr: of the step :math:`\\Phi`; a large one makes the series, and the training, diverge.
        penalty: lambda.
        terms: of the series; 0 leaves the implicit part out.

    Raises:
        KdsecError: a number out of range.
    """

    size: float = 0.1
    steps: int = 5
    lr: float = 1e-3
    penalty: float = 1e-3
    terms: int = 3
    needs_labels = True
    advice = "set grad_clip of the recipe, or lower lr, size or terms of AdversarialUnlearning"

    def __post_init__(self) -> None:
        check_number("size", self.size, above=0, most=1)
        check_number("steps", self.steps, least=1, whole=True)
        check_number("terms", self.terms, least=0, most=1000, whole=True)
        check_number("lr", self.lr, above=0)
        check_number("penalty", self.penalty, least=0)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        with evaluating(model):
            delta = self.worst(model, batch).requires_grad_()
            loss = self._loss(model, batch, delta)
            if not self.terms:
                return loss
            (gradient,) = torch.autograd.grad(loss, delta, create_graph=True)
            moved = delta + self.lr * (gradient - 2 * self.penalty * delta)
            total = torch.zeros_like(delta)
            for _ in range(self.terms):
                total = torch.autograd.grad(moved, delta, total, retain_graph=True)[0] + gradient.detach()
            # Its gradient by the weights is the implicit part; its value is 0.
            implicit = (moved * total).sum()
            return loss + implicit - implicit.detach()

    def worst(self, model: nn.Module, batch: Batch) -> Tensor:
        """The perturbation ``(C, H, W)`` that raises the loss of the whole batch most."""
        delta = torch.zeros_like(batch.images[0])
        radius = self.size * delta.numel() ** 0.5
        for _ in range(self.steps):
            delta.requires_grad_()
            (gradient,) = torch.autograd.grad(self._loss(model, batch, delta), delta)
            delta = delta.detach() + 2.5 * radius / self.steps * gradient / gradient.norm().clamp(min=1e-12)
            delta = delta * (radius / delta.norm().clamp(min=1e-12)).clamp(max=1)
        return delta.detach()

    def _loss(self, model: nn.Module, batch: Batch, delta: Tensor) -> Tensor:
        return cross_entropy(model(batch.images + delta), batch.labels)
