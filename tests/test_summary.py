"""From rows over seeds to statements: intervals, pairing, verdicts, tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from kdsec.errors import KdsecError
from kdsec.report.records import COLUMNS
from kdsec.report.summary import Difference, difference, interval, select, table


def rows(*entries, metric="test accuracy"):
    """A frame of records from (seed, arm, value) or (seed, arm, value, setting)."""
    full = [
        ("opening", "quick", seed, "digits", arm, "net", "".join(setting), metric, value, 100)
        for seed, arm, value, *setting in entries
    ]
    return pd.DataFrame(full, columns=list(COLUMNS))


def arms(first, second):
    """Two arms, seed by seed."""
    return rows(
        *((seed, "a", value) for seed, value in enumerate(first)),
        *((seed, "b", value) for seed, value in enumerate(second)),
    )


accuracies = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=12)


@given(accuracies)
def test_the_interval_is_students(values):
    ours = interval(pd.Series(values))
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
    found = interval(pd.Series([1.0, 2.0, 3.0]))
    assert found.mean == 2
    assert (found.low, found.high) == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-4)


def test_one_seed_has_an_endless_interval():
    assert interval(pd.Series([0.3])) == Difference(0.3, -math.inf, math.inf, 1)


def test_what_the_seeds_share_cancels():
    """A seed with a hard split is hard for both arms; only a paired interval sees a small, steady gain."""
    hard = np.array([-0.20, 0.15, -0.05, 0.10, 0.0])
    gain = np.array([0.010, 0.012, 0.008, 0.011, 0.009])
    frame = arms(0.7 + hard + gain, 0.7 + hard)
    found = difference(frame, "a", "b")
    expected = stats.ttest_rel(0.7 + hard + gain, 0.7 + hard).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert found.verdict() == "supported" and found.mean == pytest.approx(0.010)
    unpaired = stats.ttest_ind(0.7 + hard + gain, 0.7 + hard).confidence_interval(0.95)
    assert unpaired.low < 0 < unpaired.high


def test_pairs_are_made_by_seed_and_not_by_place():
    frame = arms([0.1, 0.5, 0.9], [0.0, 0.4, 0.8])
    mixed = frame.sample(frac=1, random_state=3)
    assert list(mixed["seed"]) != list(frame["seed"])
    found = difference(mixed, "a", "b")
    assert (found.low, found.mean, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_a_seed_that_only_one_arm_has_does_not_count():
    frame = rows((0, "a", 0.5), (1, "a", 0.7), (7, "a", 0.0), (0, "b", 0.4), (1, "b", 0.6), (8, "b", 1.0))
    assert difference(frame, "a", "b").seeds == 2
    assert difference(frame, "a", "b").mean == pytest.approx(0.1)


def test_direction_and_order():
    frame = arms([0.9, 0.8, 0.9], [0.1, 0.1, 0.2])
    forward, backward = difference(frame, "a", "b"), difference(frame, "b", "a")
    assert forward.mean == -backward.mean and forward.low == pytest.approx(-backward.high)
    assert (forward.verdict(), backward.verdict()) == ("supported", "not supported")


@pytest.mark.parametrize(
    ("low", "high", "seeds", "at_least", "verdict"),
    [
        (0.1, 0.3, 3, 0.0, "supported"),
        (-0.3, -0.1, 3, 0.0, "not supported"),
        (-0.1, 0.3, 3, 0.0, "undecided"),
        (0.0, 0.3, 3, 0.0, "undecided"),  # touching is not lying above
        (-0.3, 0.0, 3, 0.0, "undecided"),
        (0.1, 0.3, 2, 0.0, "undecided"),  # two seeds decide nothing, however narrow their interval
        (-0.3, -0.1, 2, 0.0, "undecided"),
        (-math.inf, math.inf, 1, 0.0, "undecided"),
        (0.1, 0.3, 5, 0.2, "undecided"),
        (0.1, 0.3, 5, 0.05, "supported"),
        (0.1, 0.3, 5, 0.35, "not supported"),
    ],
)
def test_verdict(low, high, seeds, at_least, verdict):
    assert Difference((low + high) / 2, low, high, seeds).verdict(at_least) == verdict


def test_settings_and_metric_choose_the_rows():
    frame = pd.concat(
        [
            rows((0, "a", 0.5, "queries=50"), (0, "a", 0.9, "queries=450"), (0, "a", 0.7)),
            rows((0, "a", 0.1, "queries=50"), metric="agreement"),
        ],
        ignore_index=True,
    )
    assert select(frame, "a", "test accuracy", queries=50).to_dict() == {0: 0.5}
    assert select(frame, "a", "test accuracy", queries=450.0).to_dict() == {0: 0.9}
    assert select(frame, "a", "agreement").to_dict() == {0: 0.1}
    named = rows((0, "a", 0.5, "kind=x"), (0, "a", 0.6, "kind=y"), (1, "a", 0.7, "kind=x"))
    assert select(named, "a", "test accuracy", kind="x").to_dict() == {0: 0.5, 1: 0.7}


def test_seeds_come_in_number_order():
    frame = rows((10, "a", 0.1), (2, "a", 0.2), (0, "a", 0.3))
    assert list(select(frame, "a", "test accuracy").index) == [0, 2, 10]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        ({"arm": "kd"}, "no rows for kd, test accuracy; arms recorded here: a, b"),
        ({"metric": "loss"}, "no rows for a, loss"),
        ({"queries": 7}, "no rows for a, test accuracy, queries=7"),
        ({"colour": "red"}, "no rows for a, test accuracy, colour=red"),
        ({}, "more than one row a seed for a, test accuracy; name a setting"),
    ],
)
def test_what_cannot_be_selected_is_one_line(ask, message):
    frame = rows((0, "a", 0.5, "queries=50"), (0, "a", 0.9, "queries=450"), (0, "b", 0.2))
    with pytest.raises(KdsecError, match=message) as caught:
        select(frame, **{"arm": "a", "metric": "test accuracy", **ask})
    assert "\n" not in str(caught.value)


def test_an_empty_frame_is_one_line_too():
    with pytest.raises(KdsecError, match="arms recorded here: none"):
        select(rows(), "a", "test accuracy")


def test_arms_of_different_seeds_cannot_be_compared():
    with pytest.raises(KdsecError, match="share no seed"):
        difference(rows((0, "a", 0.5), (1, "b", 0.5)), "a", "b")


def test_table_keeps_the_order_recorded():
    frame = rows(
        (0, "z", 0.2), (0, "a", 0.5, "T=9"), (0, "a", 0.6, "T=10"), (1, "z", 0.4), (1, "a", 0.7, "T=9")
    )
    frame = pd.concat([frame, rows((0, "z", 0.0), metric="agreement")], ignore_index=True)
    found = table(frame)
    assert list(zip(found["arm"], found["setting"], strict=True)) == [("z", ""), ("a", "T=9"), ("a", "T=10")]
    assert list(found["mean"]) == pytest.approx([0.3, 0.6, 0.6])
    assert list(found["seeds"]) == [2, 2, 1]
    assert found["sd"][0] == pytest.approx(math.sqrt(0.02)) and math.isnan(found["sd"][2])
    assert list(table(frame, "agreement")["arm"]) == ["z"]
