"""A range test for the learning rate, on copies: from far too small to far too large."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redline.train.tuning.loop import Loop
from redline.train.tuning.rig import Rig
from redline.train.tuning.setup import Setup

_RANGE = (1e-6, 10.0)
_STEPS = 48
_SMOOTH = 0.8  # of the moving average
_DIVERGED = 4.0  # times the lowest loss: there is nothing more to learn
_FELL = 0.05  # of the first loss: a smaller fall is flat
SEEDS = 3


@dataclass(frozen=True)
class LearningRate:
    """`value` with an interval over seeds, or None and the reason."""

    value: float | None
    low: float | None
    high: float | None
    confidence: str
    why: str


def suggest(rates: Sequence[float], losses: Sequence[float]) -> tuple[float | None, str]:
    """Where the smoothed loss falls most steeply along the longest way down.

    Returns:
        (learning rate, "") or (None, why there is none).

    Example:
        >>> suggest([1e-4, 1e-3, 1e-2, 1e-1], [1.0, 1.0, 1.0, 1.0])[1]
        'flat: the loss fell by 0 %'
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 4:
        return None, "it diverges at once"
    curve = _smoothed(finite)
    low = int(np.argmin(curve))
    fell = (curve[0] - curve[low]) / max(abs(curve[0]), 1e-12)
    if fell < _FELL:
        if max(finite) > 2 * abs(finite[0]):
            return None, "it diverges before it falls"
        return None, f"flat: the loss fell by {fell * 100:.0f} %"
    slope = np.gradient(curve[: low + 1], np.log(np.asarray(rates[: low + 1]))) if low else [0.0]
    return float(rates[int(np.argmin(slope))]), ""


def combine(found: Sequence[tuple[float | None, str]]) -> LearningRate:
    """One answer from several seeds; refused when any seed has none."""
    refused = [why for value, why in found if value is None]
    if refused:
        return LearningRate(None, None, None, "", f"{refused[0]} ({len(refused)} seeds of "
                            f"{len(found)})")  # fmt: skip
    logs = np.log([value for value, _ in found if value is not None])
    low, middle, high = (float(np.exp(v)) for v in (logs.min(), np.median(logs), logs.max()))
    spread = high / low
    confidence = "high" if spread <= 3 else "medium" if spread <= 10 else "low"
    return LearningRate(
        middle, low, high, confidence, f"{len(found)} seeds, {spread:.1f}× from lowest to highest"
    )


def range_test(loop: Loop, setup: Setup, batches: list[Any], deadline: float) -> LearningRate:
    """Train a fresh copy for each seed while the rate grows; the user's model is never trained."""
    rates = np.geomspace(*_RANGE, _STEPS).tolist()
    found: list[tuple[float | None, str]] = []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(len(batches) * _STEPS) % len(batches)
        rig = Rig(loop, setup, batches)
        losses: list[float] = []
        try:
            for rate, index in zip(rates, order, strict=False):
                if time.monotonic() > deadline:
                    return LearningRate(None, None, None, "", "no time was left to finish it")
                for group in rig.parts.optimizer.param_groups:
                    _set(group, rate)
                losses.append(rig.losses([batches[index]], 1, seed * _STEPS + len(losses))[0])
                if not math.isfinite(losses[-1]) or losses[-1] > _DIVERGED * abs(min(losses)) + 1:
                    break
        finally:
            rig.close()
        found.append(suggest(rates[: len(losses)], losses))
    return combine(found)


def _set(group: dict[str, Any], rate: float) -> None:
    if hasattr(group["lr"], "fill_"):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _smoothed(losses: Sequence[float]) -> np.ndarray:
    average, out = losses[0], []
    for loss in losses:
        average = _SMOOTH * average + (1 - _SMOOTH) * loss
        out.append(average)
    return np.asarray(out)
