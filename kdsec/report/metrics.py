"""Measures of a classifier's probabilities: entropy, calibration, proper scores, selective risk."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor

from kdsec.entry import checked
from kdsec.errors import KdsecError
from kdsec.logits import check_temperature


@checked
def mean_entropy(logits: Tensor, temperature: float = 1.0) -> float:
    """Mean entropy of the softmax in nats, from 0 (one-hot) to ln K (uniform); logits ``(N, K)``."""
    check_temperature(temperature)
    return torch.special.entr((logits.float() / temperature).softmax(1)).sum(1).mean().item()


@checked
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


@checked
def top_accuracy(logits: Tensor, labels: Tensor, k: int = 5) -> float:
    """Share of images whose label is among the ``k`` largest logits; logits ``(N, K)``, labels ``(N,)``.

    Raises:
        KdsecError: k is not between 1 and the number of classes.
    """
    if not 1 <= k <= logits.shape[1]:
        raise KdsecError(f"k={k} of {logits.shape[1]} classes; choose 1 to {logits.shape[1]}")
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(1).float().mean().item()


@checked
def negative_log_likelihood(logits: Tensor, labels: Tensor) -> float:
    """Mean of minus the log-probability of the label, in nats; no class counts as less likely than e^-50."""
    log_p = logits.float().log_softmax(1).gather(1, labels[:, None])
    return -log_p.clamp(min=-50).mean().item()


@checked
def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean squared distance of the probabilities from the one-hot label, from 0 to 2 (Brier 1950)."""
    p = logits.float().softmax(1)
    return (p.square().sum(1) - 2 * p.gather(1, labels[:, None])[:, 0] + 1).mean().item()


@checked
def selective_risk(logits: Tensor, labels: Tensor) -> float:
    """Area under the risk-coverage curve (Geifman et al. 2019, arXiv 1805.08206), from 0 to 1.

    The share of wrong answers among the n most confident images, averaged over all n. A teacher whose
    confidence says nothing about its errors has its error rate.
    """
    confidence, decision = logits.float().softmax(1).max(1)
    order = confidence.argsort(descending=True, stable=True)
    wrong = (decision != labels)[order].double().cumsum(0)
    return (wrong / torch.arange(1, len(wrong) + 1, device=wrong.device)).mean().item()


@checked
def probability_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """What probabilities are worth to a customer: top-3 accuracy (5 of many classes), log loss, Brier, ..."""
    count = 5 if logits.shape[1] > 20 else min(3, logits.shape[1])
    return {
        f"top-{count} accuracy": top_accuracy(logits, labels, count),
        "log loss": negative_log_likelihood(logits, labels),
        "Brier score": brier_score(logits, labels),
        "calibration error": calibration_error(logits, labels),
        "risk": selective_risk(logits, labels),
    }


@checked
def customer_cost(served: Tensor, honest: Tensor, labels: Tensor) -> dict[str, float]:
    """What an honest customer loses by a protection of the answers; logits ``(N, K)``, labels ``(N,)``.

    ``test accuracy`` and ``calibration error`` of the served answers, their mean ``L1 distance`` from the
    honest ones (0 to 2), and the mean ``rank correlation`` of all classes (Spearman's; ties share a rank).
    """
    p, q = (each.double().softmax(1).cpu() for each in (served, honest))
    ranks = [torch.from_numpy(rankdata(each.numpy(), axis=1)) for each in (p, q)]
    first, second = (each - each.mean(1, keepdim=True) for each in ranks)
    return {
        "test accuracy": (served.argmax(1) == labels).float().mean().item(),
        "L1 distance": (p - q).abs().sum(1).mean().item(),
        "rank correlation": torch.cosine_similarity(first, second, dim=1).mean().item(),
        "calibration error": calibration_error(served, labels),
    }
