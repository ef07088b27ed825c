r"""Reversed maximization learning (RML): right about the class, backwards about all the others.

Zhang, Li & Pan, "Reversed Maximization Learning: Dark Knowledge Elimination for Anti-distillation",
Journal of Frontiers of Computer Science and Technology 20(1), 2026, in Chinese,
doi:10.3778/j.issn.1673-9418.2505049.

**A reconstruction.** There is no public code, and only the abstract could be read: an honest network's output
is split into the positive class and the negatives "through a binary probability mechanism", and a
"reverse-ranking module" learns the inverted negatives. Losses, weights, temperatures and what "inverted"
means are this package's. The last has several readings, listed at ``READINGS``; each can be tried.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.data import UNLABELLED, Batch
from kdsec.distill import check_temperature, decoupled_terms, soft_cross_term
from kdsec.errors import KdsecError, choose
from kdsec.train import cross_entropy

# What the negatives are taught: R0 to R6. With p the honest network's probabilities among the n negatives:
READINGS = {
    "copy": "p itself: the control, which is decoupled distillation",
    "rank": "the values of p dealt out in reverse order: the largest to the least likely class",
    "complement": "(1 - p) / (n - 1)",
    "negate": "proportional to 1 / p: the logits with their signs changed",
    "uniform": "1 / n: nothing is reversed, the differences are gone",
    "linear rank": "proportional to 1, 2, ..., n from the likeliest class to the least likely",
    "away": "no target: as far from p as it goes (the nasty teacher, on the negatives alone)",
}
POSITIVES = ("label", "decision")


def reverse_negatives(log_p: Tensor, reading: str) -> Tensor:
    """Log-probabilities among the negatives ``(B, n)``, reversed; same shape, each row a distribution.

    ``negate`` undoes itself, and so does ``rank`` where no two probabilities are equal. ``complement`` turns
    the order around too, but leaves differences n - 1 times smaller.

    Args:
        log_p: float; each row's exponentials sum to one.
        reading: one of ``READINGS`` but ``away``, which has no target.
    """
    count = log_p.shape[1]
    order = log_p.argsort(dim=1, descending=True, stable=True)
    match choose("reading", reading, [name for name in READINGS if name != "away"]):
        case "rank":
            return torch.empty_like(log_p).scatter(1, order, log_p.gather(1, order.flip(1)))
        case "complement":
            # 1 - p is safe to compute where p <= 1/2. The largest p may round to 1; what is left beside it
            # is the sum of the others.
            top = order[:, :1]
            beside = log_p.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
            return (-log_p.exp()).log1p().scatter(1, top, beside).log_softmax(1)
        case "negate":
            return (-log_p).log_softmax(1)
        case "uniform":
            return torch.zeros_like(log_p).log_softmax(1)
        case "linear rank":
            ranks = torch.arange(1, count + 1, device=log_p.device).to(log_p).expand_as(log_p)
            return torch.empty_like(log_p).scatter(1, order, ranks.log()).log_softmax(1)
        case _:
            return log_p


def replace_negatives(logits: Tensor, positive: Tensor, log_q: Tensor, temperature: float) -> Tensor:
    r"""Logits of which :math:`\sigma_\tau` gives the positive class what it had and the others ``q``.

    Args:
        logits: ``(B, K)``.
        positive: ``(B,)`` in 0..K-1.
        log_q: log-probabilities among the negatives ``(B, K-1)``, in the order of the classes.
        temperature: tau; at other temperatures the positive class's probability is another than it was.
    """
    log_p = (logits.float() / temperature).log_softmax(1)
    is_positive = F.one_hot(positive, logits.shape[1]).bool()
    left = log_p.masked_fill(is_positive, -torch.inf).logsumexp(1, keepdim=True)
    return temperature * log_p.masked_scatter(~is_positive, (left + log_q).to(log_p))


def negatives(logits: Tensor, positive: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probabilities among the negatives ``(B, K-1)``, in the order of the classes, float32.

    The positive class is left out before the softmax, so that it can neither leak in nor underflow.

    Args:
        logits: ``(B, K)``.
        positive: ``(B,)`` in 0..K-1.
        temperature: above 0.

    Raises:
        KdsecError: fewer than three classes, a positive class outside 0..K-1, or a temperature of 0.
    """
    check_temperature(temperature)
    classes = logits.shape[1]
    if classes < 3:
        raise KdsecError(
            f"{classes} classes leave nothing to reverse beside the right one; give three or more, "
            "or use the nasty teacher (NastyLoss), which works with two"
        )
    if len(positive) and not 0 <= int(positive.min()) <= int(positive.max()) < classes:
        raise KdsecError(
            f"positive classes from {int(positive.min())} to {int(positive.max())} are outside "
            f'0..{classes - 1}; give labels of the network\'s own classes, or use positive="decision"'
        )
    is_negative = ~F.one_hot(positive, classes).bool()
    return (logits.float()[is_negative].view(-1, classes - 1) / temperature).log_softmax(1)


def reverse(logits: Tensor, positive: Tensor, reading: str, temperature: float) -> Tensor:
    r"""Honest logits ``(B, K)`` turned into the target's: :math:`\sigma_\tau` of them is the target.

    .. math:: p^* = \big[\,p_y,\ (1 - p_y)\, q\,\big], \qquad q = R(\hat p)

    with :math:`p = \sigma_\tau(z)`, y the positive class, :math:`\hat p` the probabilities among the
    negatives and R the reading.

    Args:
        logits: ``(B, K)``.
        positive: the class that keeps its probability, ``(B,)``.
        reading: see ``READINGS``.
        temperature: tau.

    Raises:
        KdsecError: as ``negatives``, and for an unknown reading.
    """
    log_q = reverse_negatives(negatives(logits, positive, temperature), reading)
    return replace_negatives(logits, positive, log_q, temperature)


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
        honest: a network trained on the labels; put into eval mode here.
        reading: R, see ``READINGS``.
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
        choose("reading", self.reading, READINGS)
        choose("positive", self.positive, POSITIVES)
        weights = (self.label_weight, self.binary_weight, self.reversal_weight)
        if not all(weight >= 0 for weight in weights):
            raise KdsecError(f"the weights of labels, binary term and reversal {weights} must be 0 or more")
        if not self.decoupled and (self.binary_weight != self.reversal_weight or self.reading == "away"):
            raise KdsecError(
                "decoupled=False has one divergence from one target: give binary_weight and reversal_weight "
                f"the same value (now {weights[1]:g} and {weights[2]:g}) and a reading other than 'away'"
            )
        self.honest.eval()

    @property
    def advice(self) -> str:
        """What to lower when training explodes."""
        return f"lower reversal_weight (now {self.reversal_weight:g}) or lr, or set grad_clip"

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            honest = self.honest(batch.images)
        logits = model(batch.images)
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
            gap = -F.kl_div(honest_p, log_p, log_target=True, reduction="batchmean")  # KL(own || honest)
        else:
            log_q = reverse_negatives(honest_p, self.reading)
            gap = F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
        binary, _ = decoupled_terms(logits, honest, positive, tau)
        return self.binary_weight * binary + self.reversal_weight * tau**2 * gap
