"""Medians, bootstrap intervals and ratios of interleaved timings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redline.measure.record import Timing

_RESAMPLES = 2000
_ENOUGH = 6


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Median with its percentile-bootstrap interval: (median, low, high).

    The percentile bootstrap resamples the values with replacement and reads the interval off the
    medians of the resamples (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13). The
    resampling is seeded: the same values always give the same interval. Fewer than six values give
    their whole range.

    Example:
        >>> interval([1.0, 1.0, 1.0])
        (1.0, 1.0, 1.0)
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < _ENOUGH:  # resampling two or three values would claim to know too much
        return float(np.median(data)), float(data.min()), float(data.max())
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(data), size=(_RESAMPLES, len(data)))
    medians = np.median(data[picks], axis=1)
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(medians, [tail, 100 - tail])
    return float(np.median(data)), float(low), float(high)


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """How many times longer `ours` takes than `theirs`: median of per-round ratios with interval.

    The two lists hold one number for each round of an interleaved run, so what the machine did in
    a round touches both, and cancels.

    Example:
        >>> ratio([2.0, 2.2, 2.4], [1.0, 1.1, 1.2])
        (2.0, 2.0, 2.0)
    """
    rounds = min(len(ours), len(theirs))
    logs = np.log(np.asarray(ours[:rounds])) - np.log(np.asarray(theirs[:rounds]))
    middle, low, high = np.exp(interval(logs.tolist()))
    return round(float(middle), 12), round(float(low), 12), round(float(high), 12)


def summarize(blocks: Sequence[Sequence[float]]) -> Timing:
    """A Timing from blocks of samples (seconds a call)."""
    medians = [float(np.median(block)) for block in blocks]
    middle, low, high = interval(medians)
    p99 = float(np.percentile(np.concatenate([np.asarray(block) for block in blocks]), 99))
    return Timing(middle, low, high, p99, tuple(medians))
