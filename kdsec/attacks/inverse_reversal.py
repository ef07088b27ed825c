"""Post-processing against a teacher suspected of reversing its negatives: reverse them back, or find out.

The rule of reversed maximization (``kdsec.defenses.reversed_maximization``) applied once more, read ``rank``
or ``negate``, undoes itself: a teacher that has learnt its target exactly gives everything back. A real one
has learnt it with errors. Whether reversed-back negatives are then worth more than none is measured.

All take the decision for the positive class and leave its probability as it is at ``temperature``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsec.attacks.postprocessing import FLOOR, postprocess
from kdsec.data import ImageSet
from kdsec.data.imageset import to_float
from kdsec.entry import checked
from kdsec.errors import check_choice, check_number
from kdsec.logits import (
    check_temperature,
    negatives,
    rank_agreement,
    replace_negatives,
    reverse_negatives,
)
from kdsec.oracle import Oracle, as_oracle

INVERSES = ("rank", "complement", "negate")
POOLED = 8  # images are averaged to 8 x 8 before the attacker's own guess is fitted to their pixels


class Power(nn.Module):
    r"""Negatives to a signed power: :math:`q_k \propto \hat p_k^a`.

    With s = 1 they stay, with 0 they are dropped, with -1 they are what ``negate`` makes of them; in between
    is less of the same.
    """

    def __init__(self, exponent: float, temperature: float) -> None:
        super().__init__()
        check_number("exponent", exponent)
        check_temperature(temperature)
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
        check_temperature(temperature)
        self.reading = check_choice("reading to undo", reading, INVERSES)
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


@checked
def power(teacher: nn.Module, data: ImageSet, exponent: float, temperature: float = 4.0) -> Oracle:
    """See ``Power``."""
    return postprocess(teacher, Power(exponent, temperature))


@checked
def inverse(teacher: nn.Module, data: ImageSet, reading: str, temperature: float = 4.0) -> Oracle:
    """See ``Inverse``: ``rank``, ``complement`` or ``negate``."""
    return postprocess(teacher, Inverse(reading, temperature))


@checked
def class_means_negated(teacher: nn.Module, data: ImageSet, temperature: float = 4.0) -> Oracle:
    """Reverses what all answers with one decision have in common, and drops the rest as noise."""
    teacher = as_oracle(teacher)
    log_p = postprocess(teacher).query(data)
    decided = F.one_hot(log_p.argmax(1), log_p.shape[1]).to(log_p)
    among = negatives(log_p, log_p.argmax(1), temperature)
    means = decided.T @ among / decided.sum(0).clamp(min=1)[:, None]
    return postprocess(teacher, Profiles((-means).log_softmax(1), temperature))


@checked
def sign_detected(teacher: nn.Module, data: ImageSet, temperature: float = 4.0) -> Oracle:
    """Negates the negatives if their order contradicts the attacker's own guess, else leaves them."""
    teacher = as_oracle(teacher)
    log_p = postprocess(teacher).query(data)
    decided = log_p.argmax(1)
    along = rank_agreement(log_p, guess_from_pixels(data, decided, log_p.shape[1]), decided) >= 0
    return postprocess(teacher, Power(1.0 if along else -1.0, temperature))


def guess_from_pixels(data: ImageSet, decided: Tensor, classes: int, ridge: float = 0.01) -> Tensor:
    """Scores ``(N, K)`` of a ridge regression from pixels to decisions, on the images it was fitted to.

    A poor classifier that knows which classes look alike; a teacher can mislead it only by its decisions.

    Args:
        data: the attacker's images; averaged to 8 x 8 pixels.
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
