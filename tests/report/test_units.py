"""Numbers as text."""

from __future__ import annotations

import doctest
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.measure.record import Timing
from redline.report import card, chain, charts, columns, figures, html, terminal, units


@pytest.mark.parametrize("module", [units, figures, card, chain, charts, columns, html, terminal])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00 ns"), (4.2e-8, "42.0 ns"), (9.996e-7, "1.00 µs"), (41.26e-6, "41.3 µs"),
        (9.9951e-4, "1.00 ms"), (0.0358, "35.8 ms"), (59.9, "59.9 s"), (59.97, "1 min 0 s"),
        (3725, "62 min 5 s"), (None, "–"), (math.inf, "–"),
    ],
)  # fmt: skip
def test_seconds(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (999_999, "1.00 MB"), (44_712_345, "44.7 MB"), (None, "–")],
)
def test_size(value: float | None, text: str) -> None:
    assert units.size(value) == text


@given(st.floats(1e-9, 59))
def test_seconds_keep_three_digits(value: float) -> None:
    number, unit = units.seconds(value).split()
    scale = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
    assert float(number) * scale == pytest.approx(value, rel=6e-3)
    assert 0.5 <= float(number) < 1000


@given(st.floats(0, 1e17))
def test_scaled_numbers_are_short(value: float) -> None:
    for text in (units.flops(value), units.bandwidth(value), units.rate(value), units.count(value)):
        assert len(text) <= 14


def test_interval_of_minutes_and_of_nothing() -> None:
    assert units.interval(Timing(65.0, 61.0, 70.0, 71.0, ())) == "1 min 1 s–1 min 10 s"
    assert units.interval(None) == ""


def test_error_of_special_values() -> None:
    assert [units.error(x) for x in (math.nan, math.inf, 1e-12, None)] == [
        "NaN",
        "∞",
        "1.0e-12",
        "–",
    ]
