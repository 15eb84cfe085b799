import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.measure.statistics import interval, ratio, summarize

positive = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30)


@given(positive)
def test_an_interval_holds_its_median_and_stays_within_the_data(values):
    middle, low, high = interval(values)
    assert min(values) <= low <= middle <= high <= max(values)


def test_an_interval_covers_the_true_median_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        _, low, high = interval(rng.lognormal(0.0, 0.3, size=25).tolist())
        hits += low <= 1.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_what_the_machine_did_in_a_round_cancels():
    noise = np.random.default_rng(0).lognormal(0, 1, size=20)
    middle, low, high = ratio((2 * noise).tolist(), noise.tolist())
    assert (middle, low, high) == pytest.approx((2.0, 2.0, 2.0))


@given(positive)
def test_a_ratio_and_its_inverse_agree(values):
    other = [value * 1.5 for value in values]
    there, back = ratio(values, other), ratio(other, values)
    assert there[0] == pytest.approx(1 / back[0], rel=1e-6)


def test_a_summary_keeps_the_blocks():
    timing = summarize([[1.0, 2.0, 3.0], [2.0, 2.0], [9.0]])
    assert timing.blocks == (2.0, 2.0, 9.0)
    assert timing.median == 2.0
    assert timing.low <= timing.median <= timing.high
    assert 8.0 < timing.p99 <= 9.0


def test_a_few_values_give_their_range_and_not_a_false_certainty():
    assert interval([2.0, 1.0, 9.0]) == (2.0, 1.0, 9.0)
    assert interval([2.0, 1.0]) == (1.5, 1.0, 2.0)
