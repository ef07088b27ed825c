"""From rows over seeds to statements: pairing, selection."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdsec.errors import KdsecError
from kdsec.report.records import COLUMNS
from kdsec.report.summary import difference, select


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
