"""What a classifier's probabilities are like: how spread out, and how much they can be believed."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsec.distill import check_temperature
from kdsec.errors import KdsecError


def mean_entropy(logits: Tensor, temperature: float = 1.0) -> float:
    """Mean entropy of the softmax in nats, from 0 (one-hot) to ln K (uniform); logits ``(N, K)``."""
    check_temperature(temperature)
    return torch.special.entr((logits.float() / temperature).softmax(1)).sum(1).mean().item()


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    r"""Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3), a share in [0, 1].

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{N}\, |\mathrm{accuracy}(b) - \mathrm{confidence}(b)|

    over ``bins`` equal intervals of the largest probability.

    Args:
        logits: ``(N, K)``.
        labels: ``(N,)`` in 0..K-1.
        bins: how many intervals.

    Raises:
        KdsecError: no bins.
    """
    if bins < 1:
        raise KdsecError(f"bins={bins} must be 1 or more; 15 is common")
    confidence, decision = logits.float().softmax(1).max(1)
    # A confidence of exactly 1 belongs to the last bin.
    which = (confidence * bins).long().clamp(max=bins - 1)
    gap = (decision == labels).float() - confidence
    return torch.zeros(bins, device=gap.device).index_add(0, which, gap).abs().sum().item() / len(labels)
