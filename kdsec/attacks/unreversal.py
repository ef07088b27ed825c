"""Views for a teacher suspected of reversing its negatives: turn them around again, or find out whether to.

Whoever knows the rule of reversed maximization (``kdsec.defenses.reversed_maximization``) can apply it once
more: read ``rank`` or ``negate``, it undoes itself, and a teacher that has learnt its target exactly gives
everything back. A real one has learnt it with errors, and what is then worth more, the turned-around
negatives or none at all, is a question for an experiment.

All views take the decision for the positive class and leave its probability as it is at ``temperature``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.attacks.views import FLOOR, view
from kdsec.data import ImageSet
from kdsec.data.imageset import to_float
from kdsec.defenses.reversed_maximization import negatives, replace_negatives, reverse_negatives
from kdsec.errors import choose
from kdsec.train import predict

INVERSES = ("rank", "complement", "negate")
POOLED = 8  # images are averaged to 8 x 8 before the thief's own guess is fitted to their pixels


class Power(nn.Module):
    r"""Negatives to a signed power: :math:`q_k \propto \hat p_k^a`.

    With s = 1 they stay, with 0 they are dropped, with -1 they are what ``negate`` makes of them; in between
    is less of the same.
    """

    def __init__(self, exponent: float, temperature: float) -> None:
        super().__init__()
        self.exponent = exponent
        self.temperature = temperature

    def extra_repr(self) -> str:
        return f"exponent={self.exponent:g}, temperature={self.temperature:g}"

    def forward(self, log_p: Tensor) -> Tensor:
        decided = log_p.argmax(1)
        among = negatives(log_p, decided, self.temperature)
        return replace_negatives(log_p, decided, (self.exponent * among).log_softmax(1), self.temperature)


class Inverse(nn.Module):
    """The inverse of a reading, image by image; ``complement``'s is cut off at zero and normalised."""

    def __init__(self, reading: str, temperature: float) -> None:
        super().__init__()
        self.reading = choose("reading to undo", reading, INVERSES)
        self.temperature = temperature

    def extra_repr(self) -> str:
        return f"reading={self.reading}, temperature={self.temperature:g}"

    def forward(self, log_p: Tensor) -> Tensor:
        decided = log_p.argmax(1)
        log_q = negatives(log_p, decided, self.temperature)
        if self.reading == "complement":
            # q = (1 - p) / (n - 1). What the network has learnt less exactly than that ends below zero.
            left = (1 - (log_q.shape[1] - 1) * log_q.exp()).clamp(min=0)
            among = left.log().clamp(min=FLOOR).log_softmax(1)
        else:
            among = reverse_negatives(log_q, self.reading)
        return replace_negatives(log_p, decided, among, self.temperature)


class Profiles(nn.Module):
    """Every answer with decision c gets the same negatives: row c of ``profiles`` ``(K, K - 1)``."""

    profiles: Tensor

    def __init__(self, profiles: Tensor, temperature: float) -> None:
        super().__init__()
        self.register_buffer("profiles", profiles)
        self.temperature = temperature

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:g}"

    def forward(self, log_p: Tensor) -> Tensor:
        decided = log_p.argmax(1)
        return replace_negatives(log_p, decided, self.profiles[decided], self.temperature)


def power(teacher: nn.Module, data: ImageSet, exponent: float, temperature: float = 4.0) -> nn.Module:
    """See ``Power``."""
    return view(teacher, Power(exponent, temperature))


def inverse(teacher: nn.Module, data: ImageSet, reading: str, temperature: float = 4.0) -> nn.Module:
    """See ``Inverse``: ``rank``, ``complement`` or ``negate``."""
    return view(teacher, Inverse(reading, temperature))


def class_means_negated(teacher: nn.Module, data: ImageSet, temperature: float = 4.0) -> nn.Module:
    """Turns around what is the same in all answers with one decision, and forgets the rest as noise."""
    log_p = predict(view(teacher), data)
    decided = F.one_hot(log_p.argmax(1), log_p.shape[1]).to(log_p)
    among = negatives(log_p, log_p.argmax(1), temperature)
    means = decided.T @ among / decided.sum(0).clamp(min=1)[:, None]
    return view(teacher, Profiles((-means).log_softmax(1), temperature))


def sign_detected(teacher: nn.Module, data: ImageSet, temperature: float = 4.0) -> nn.Module:
    """Negates the negatives if their order runs against the thief's own guess, and trusts them otherwise."""
    log_p = predict(view(teacher), data)
    decided = log_p.argmax(1)
    along = rank_agreement(log_p, guess_from_pixels(data, decided, log_p.shape[1]), decided) >= 0
    return view(teacher, Power(1.0 if along else -1.0, temperature))


def guess_from_pixels(data: ImageSet, decided: Tensor, classes: int, ridge: float = 0.01) -> Tensor:
    """Scores ``(N, K)`` of a linear map from pixels to decisions, fitted to the very images.

    As poor a classifier as it is, it knows which classes look alike; it costs one small linear system, and
    no teacher can lie to it but through its decisions.

    Args:
        data: the thief's images; averaged to 8 x 8 pixels.
        decided: the teacher's decisions ``(N,)``.
        classes: K.
        ridge: penalty relative to the mean variance of a pixel.
    """
    pixels = torch.cat([F.adaptive_avg_pool2d(to_float(part), POOLED) for part in data.images.split(1000)])
    x = pixels.flatten(1).double()
    x = x - x.mean(0)
    y = F.one_hot(decided, classes).double()
    y = y - y.mean(0)
    gram = x.T @ x
    penalty = ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights: Tensor = torch.linalg.solve(gram + penalty, x.T @ y)
    return (x @ weights).float()


def rank_agreement(first: Tensor, second: Tensor, positive: Tensor) -> float:
    """Spearman's rank correlation of two networks' negatives, from -1 to 1, mean over the images.

    Args:
        first, second: logits or scores ``(N, K)``.
        positive: the class ``(N,)`` that is left out.
    """
    ranks = [negatives(each, positive).argsort(1).argsort(1).double() for each in (first, second)]
    centred = [each - each.mean(1, keepdim=True) for each in ranks]
    spread = centred[0].square().sum(1)  # the same for both: they are permutations of one row
    return ((centred[0] * centred[1]).sum(1) / spread).mean().item()
