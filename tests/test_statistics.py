"""The rule: intervals, shrunk variances, verdicts, false-discovery rates; simulated where nothing is true."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdsec.errors import KdsecError
from kdsec.report.statistics import PLAIN, Difference, Prior, fit_prior, interval, q_values

accuracies = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=12)


@given(accuracies)
def test_the_interval_is_students(values):
    ours = interval(values)
    assert ours.seeds == len(values)
    assert math.isclose(ours.mean, np.mean(values), abs_tol=1e-12)
    if len(set(values)) == 1:
        assert ours.low == pytest.approx(ours.high)
        return
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert ours.low == pytest.approx(theirs.low, abs=1e-9)
    assert ours.high == pytest.approx(theirs.high, abs=1e-9)


def test_the_interval_by_hand():
    # mean 2, s = 1, n = 3, and a table of Student's t has t(0.975; 2) = 4.3027: 2 -+ 4.3027 / sqrt(3)
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    assert (found.low, found.high) == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-4)


@pytest.mark.parametrize("values", [[0.1, math.inf], [-math.inf] * 3])
def test_an_infinite_value_gives_no_interval(values):
    with pytest.raises(KdsecError, match="infinite"):
        interval(values)


def test_one_seed_has_an_endless_interval():
    found = interval([0.3])
    assert (found.mean, found.low, found.high, found.seeds) == (0.3, -math.inf, math.inf, 1)
    assert found.p() == 1 and found.verdict() == "undecided"


def gap(low, high, seeds):
    """A difference with this interval."""
    return Difference((low + high) / 2, (high - low) / 2 / stats.t.ppf(0.975, 4), 4, seeds)


@pytest.mark.parametrize(
    ("low", "high", "seeds", "required", "verdict"),
    [
        (0.1, 0.3, 3, 0.0, "supported"),
        (0.004, 0.01, 3, 0.0, "supported, small"),
        (-0.3, -0.1, 3, 0.0, "contradicted"),
        (-0.01, 0.015, 3, 0.0, "no difference"),
        (-0.015, -0.005, 3, 0.0, "no difference"),  # below 0, and too little to matter
        (-0.03, -0.01, 3, 0.0, "undecided"),
        (-0.1, 0.3, 3, 0.0, "undecided"),
        (-0.01, 0.03, 3, 0.0, "undecided"),
        (0.1, 0.3, 2, 0.0, "undecided"),  # two seeds decide nothing, however narrow their interval
        (-0.001, 0.001, 2, 0.0, "undecided"),
        (0.1, 0.3, 5, 0.2, "undecided"),
        (0.1, 0.3, 5, 0.05, "supported"),
        (0.1, 0.3, 5, 0.35, "contradicted"),
        (0.34, 0.349, 5, 0.35, "contradicted"),  # a required size has no delta
        (-0.005, 0.3, 5, -0.01, "supported"),
    ],
)
def test_the_ordered_rule(low, high, seeds, required, verdict):
    found = gap(low, high, seeds)
    small = ", small" if found.small(required, 0.02) else ""
    assert found.verdict(required, 0.02) + small == verdict


@given(st.floats(-1, 1), st.floats(1e-4, 1), st.floats(0, 0.5), st.sampled_from([0.0, -0.01, 0.5]))
def test_a_claim_and_its_opposite_are_never_both_supported(mean, error, delta, required):
    ours, theirs = Difference(mean, error, 4, 5), Difference(-mean, error, 4, 5)
    assert {ours.verdict(required, delta), theirs.verdict(-required, delta)} != {"supported"}
    assert (ours.p(required) < 0.05) == (not ours.low <= required <= ours.high)


def test_differences_that_are_exactly_zero_are_no_difference_whatever_others_vary():
    assert interval([0.0] * 4, Prior(math.inf, 1.0, 99)).verdict(delta=0.01) == "no difference"


@pytest.mark.parametrize(("degrees", "scale"), [(2.0, 0.01), (6.0, 0.03)])
def test_the_prior_is_found_again(degrees, scale):
    rng = np.random.default_rng(0)
    sigma = scale * np.sqrt(degrees / rng.chisquare(degrees, 20_000))
    found = fit_prior(rng.normal(0, sigma, (4, 20_000)).var(0, ddof=1), np.full(20_000, 3))
    assert found.degrees == pytest.approx(degrees, rel=0.1)
    assert math.sqrt(found.variance) == pytest.approx(scale, rel=0.05)


def test_a_prior_needs_claims_that_vary():
    assert fit_prior([0.1] * 9, [2] * 9) == fit_prior([0.0] * 50, [2] * 50) == PLAIN
    alike = fit_prior([0.1] * 10, [2] * 10)
    assert math.isinf(alike.degrees) and alike.shrink(5.0, 2) == (alike.variance, 20)


SPREADS = {
    "as assumed": lambda rng: 0.01 * np.sqrt(1.5 / rng.chisquare(1.5, 100)),
    "lognormal": lambda rng: 0.01 * np.exp(rng.normal(0, 1, 100)),
    "all alike": lambda rng: np.full(100, 0.01),
    "two kinds": lambda rng: np.where(rng.random(100) < 0.5, 0.002, 0.05),
}


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", SPREADS)
def test_false_positives_stay_at_five_per_cent(spread, seeds):
    """A hundred claims of a profile: without effects, each errs in 5 % at most; with thirty, 5 % of those
    that are quoted at q of 0.05 or less are false at most. Claims share arms by tens."""
    rng = np.random.default_rng(1)
    wrong, false = [], []
    for _ in range(150):
        sigma = SPREADS[spread](rng)
        shared = np.repeat(rng.normal(0, 1, (10, seeds)), 10, axis=0)
        noise = sigma[:, None] * (rng.normal(0, 1, (100, seeds)) + shared) / math.sqrt(2)
        effect = np.where(rng.random(100) < 0.3, 3 * sigma, 0.0)
        variance = noise.var(1, ddof=1)
        shrunk, degrees = fit_prior(variance, [seeds - 1] * 100).shrink(variance, np.full(100, seeds - 1))
        error = np.sqrt(shrunk / seeds)
        null = Difference(noise.mean(1), error, degrees, seeds)
        wrong.append(((null.low > 0) | (null.high < 0)).mean())
        quoted = np.array(q_values(Difference(noise.mean(1) + effect, error, degrees, seeds).p())) <= 0.05
        false.append((quoted & (effect == 0)).sum() / max(1, quoted.sum()))
    assert np.mean(wrong) < 0.05
    assert np.mean(false) < 0.05
    assert np.mean(wrong) > 0.02  # and the interval is not idle
