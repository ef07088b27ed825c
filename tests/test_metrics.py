"""Entropy and calibration: known values and limits."""

import math

import pytest
import torch

from kdsec.errors import KdsecError
from kdsec.report.metrics import (
    brier_score,
    calibration_error,
    customer_cost,
    mean_entropy,
    negative_log_likelihood,
    selective_risk,
    top_accuracy,
)


def test_entropy_runs_from_one_hot_to_uniform():
    logits = torch.tensor([[30.0, 0.0, 0.0, 0.0]])
    assert mean_entropy(logits) == pytest.approx(0, abs=1e-6)
    assert mean_entropy(logits, temperature=1e6) == pytest.approx(math.log(4))
    assert mean_entropy(torch.tensor([[0.0, 0.0, -1e6, -1e6]])) == pytest.approx(math.log(2))


def confident(share, count):
    """Logits of two classes that give class 0 the probability ``share``."""
    return torch.tensor([[math.log(share), math.log(1 - share)]]).repeat(count, 1)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    labels = torch.tensor([0] * 8 + [1] * 2)
    assert calibration_error(confident(0.8, 10), labels) == pytest.approx(0, abs=1e-6)
    assert calibration_error(confident(0.95, 10), labels) == pytest.approx(0.15, abs=1e-5)
    assert calibration_error(torch.tensor([[200.0, 0.0]] * 4), torch.zeros(4).long()) == pytest.approx(0)


def test_errors_of_different_bins_do_not_cancel():
    logits = torch.cat([confident(0.9, 10), confident(0.6, 10)])
    labels = torch.tensor([0] * 8 + [1] * 2 + [0] * 7 + [1] * 3)
    assert calibration_error(logits, labels) == pytest.approx(0.1, abs=1e-5)
    assert calibration_error(logits, labels, bins=1) == pytest.approx(0, abs=1e-5)
    with pytest.raises(KdsecError, match="bins=0"):
        calibration_error(logits, labels, bins=0)


def test_top_accuracy_counts_the_k_largest():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(4, 1)
    labels = torch.arange(4)
    assert [top_accuracy(logits, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1.0]
    for k in (0, 5):
        with pytest.raises(KdsecError, match=f"k={k} of 4 classes; choose 1 to 4"):
            top_accuracy(logits, labels, k)


def test_likelihood_is_cross_entropy_with_a_floor():
    logits = 3 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 10
    wanted = torch.nn.functional.cross_entropy(logits, labels).item()
    assert negative_log_likelihood(logits, labels) == pytest.approx(wanted, rel=1e-5)
    assert negative_log_likelihood(torch.tensor([[0.0, -1e6]]), torch.tensor([1])) == pytest.approx(50)


def test_brier_score_is_the_squared_distance_from_the_label():
    labels = torch.tensor([0, 1])
    assert brier_score(confident(0.8, 2), labels) == pytest.approx((2 * 0.2**2 + 2 * 0.8**2) / 2, rel=1e-5)
    assert brier_score(torch.tensor([[200.0, 0.0]] * 2), labels) == pytest.approx(1)


def test_selective_risk_rewards_confidence_that_knows_its_errors():
    """Four answers, one wrong: best if it is given last, worst if first, by hand."""
    sure = torch.tensor([3.0, 2.0, 1.0, 0.5])
    logits = torch.stack([sure, torch.zeros(4)], dim=1)
    last, first = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 0, 0, 0])
    assert selective_risk(logits, last) == pytest.approx(1 / 16)
    assert selective_risk(logits, first) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert selective_risk(logits, torch.zeros(4).long()) == 0


def test_what_a_protection_costs_an_honest_customer():
    honest = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    labels = torch.tensor([0, 3])
    free = customer_cost(honest + 5, honest, labels)
    assert free["test accuracy"] == 1 and free["L1 distance"] == pytest.approx(0, abs=1e-6)
    assert free["rank correlation"] == pytest.approx(1)
    assert customer_cost(-honest, honest, labels)["rank correlation"] == pytest.approx(-1)
    even = customer_cost(torch.zeros(2, 4), honest, labels)
    assert even["rank correlation"] == 0 and 0 < even["L1 distance"] < 2
