"""Entropy and calibration: known values and limits."""

import math

import pytest
import torch

from kdsec.errors import KdsecError
from kdsec.report.metrics import calibration_error, mean_entropy


def test_entropy_runs_from_one_hot_to_uniform():
    logits = torch.tensor([[30.0, 0.0, 0.0, 0.0]])
    assert mean_entropy(logits) == pytest.approx(0, abs=1e-6)
    assert mean_entropy(logits, temperature=1e6) == pytest.approx(math.log(4))
    assert mean_entropy(torch.tensor([[0.0, 0.0, -1e6, -1e6]])) == pytest.approx(math.log(2))


def test_entropy_grows_with_temperature():
    logits = 3 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    values = [mean_entropy(logits, temperature) for temperature in (0.5, 1.0, 4.0, 20.0)]
    assert values == sorted(values) and values[0] < values[-1] <= math.log(10)
    with pytest.raises(KdsecError, match="temperature=0"):
        mean_entropy(logits, 0)


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
