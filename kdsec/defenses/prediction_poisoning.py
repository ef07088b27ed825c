r"""Prediction Poisoning (MAD): the answer nearby whose gradient turns a copy away most.

Orekondy, Schiele & Fritz, "Prediction Poisoning: Towards Defenses Against DNN Model Stealing Attacks", ICLR
2020, arXiv 1906.10908; the variant that keeps the decision.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdsec.entry import checked
from kdsec.errors import check_number
from kdsec.logits import NOTHING

TIE = 1e-4  # by which the decision's share of a corner is larger than the others'


@checked
class PredictionPoisoning(nn.Module):
    r"""Answers :math:`\tilde y` in place of :math:`y`, at most ``budget`` away.

    .. math:: \max_{\tilde y}\ \Big\| \frac{G^\top \tilde y}{\|G^\top \tilde y\|}
        - \frac{G^\top y}{\|G^\top y\|} \Big\|^2 \quad\text{with}\quad
        \|\tilde y - y\|_1 \le \varepsilon,\quad \arg\max \tilde y = \arg\max y

    Row k of G is the gradient of :math:`\log p_k` by the weights of the copy's last layer (the default of the
    authors' code), which is :math:`(e_k - p) h^\top` for features h. So
    :math:`G^\top y = (y - p) h^\top`, and the angle depends on :math:`\tilde y - p` and :math:`y - p` alone.
    The copy's own answer p is taken to be even, as before its first step; the authors use a network with
    random weights. This makes the defence a function of the answers.

    As in the authors' code, :math:`\tilde y` lies between y and a corner of the answers with this decision:
    equal shares for the decision and some other classes. With p even, the best m of them are the m least
    likely. Which m is decided at :math:`\tilde y` itself; the code looks at the corner.

    Args:
        budget: epsilon, the L1 distance of the answer, 0 to 2.
    """

    def __init__(self, budget: float) -> None:
        super().__init__()
        check_number("budget", budget, least=0, most=2)
        self.budget = budget

    def extra_repr(self) -> str:
        return f"budget={self.budget:g}"

    def forward(self, logits: Tensor) -> Tensor:
        """Logits ``(N, K)`` of the poisoned answers."""
        y = logits.float().softmax(1)
        best, turned = y, torch.zeros_like(y[:, :1])
        top = y.argmax(1, keepdim=True)
        corner = torch.zeros_like(y).scatter(1, top, 1 + TIE)
        # Least likely first, the decision last.
        order = y.scatter(1, top, torch.inf).argsort(1)
        for m in range(1, y.shape[1]):
            moved = step_towards(y, corner / (m + TIE), self.budget)
            angle = deviation(moved, y)
            best, turned = torch.where(angle > turned, moved, best), torch.maximum(angle, turned)
            corner = corner.scatter(1, order[:, m - 1 : m], 1.0)
        return best.log().clamp(min=NOTHING)


def step_towards(y: Tensor, corner: Tensor, budget: float) -> Tensor:
    """From answers ``y`` towards ``corner``, both ``(N, K)``, as far as an L1 distance of ``budget``."""
    away = corner - y
    length = away.abs().sum(1, keepdim=True).clamp(min=1e-12)
    return y + (budget / length).clamp(max=1) * away


def deviation(poisoned: Tensor, y: Tensor) -> Tensor:
    """The objective for an even p, ``(N, 1)``: 0 the same direction, 2 a right angle, 4 the opposite."""
    a, b = (each - 1 / y.shape[1] for each in (poisoned, y))
    return 2 - 2 * torch.cosine_similarity(a, b, dim=1)[:, None]
