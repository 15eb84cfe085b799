"""Replay an engine's own inputs and compare what comes out with what is stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redline.engine.manifest import Check
from redline.errors import SelfTestError
from redline.runtime.runner import Runner


def replay(
    runner: Runner, check: Check, inputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> float:
    """Run the stored inputs and return the error.

    Raises:
        SelfTestError: the error is above the tolerance, or not a number.
    """
    error = output_error(runner.run(list(inputs)), expected)
    if not error <= check.tolerance:
        raise SelfTestError(
            f"the self-test gave an error of {error:.2g}, allowed is {check.tolerance:.2g}",
            hint="this part computes other numbers on this machine; optimize the model here",
        )
    return error


def output_error(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """The largest max|y - ref| / rms(ref) over the outputs.

    For integers and booleans: the share of elements that differ. Infinite where the shape differs,
    or where an element is not finite although the reference is.

    Example:
        >>> output_error([np.array([1.0, 2.0])], [np.array([1.0, 2.0])])
        0.0
    """
    if len(outputs) != len(expected):
        return float("inf")
    return max((_error(y, ref) for y, ref in zip(outputs, expected, strict=True)), default=0.0)


def _error(y: np.ndarray, ref: np.ndarray) -> float:
    if y.shape != ref.shape:
        return float("inf")
    if ref.size == 0:
        return 0.0
    if not np.issubdtype(ref.dtype, np.inexact):
        return float(np.mean(y != ref))
    finite = np.isfinite(ref)
    if not np.array_equal(y[~finite], ref[~finite].astype(y.dtype), equal_nan=True):
        return float("inf")
    if not np.all(np.isfinite(y[finite])):
        return float("inf")
    wide = np.complex128 if np.iscomplexobj(ref) or np.iscomplexobj(y) else np.float64
    known = ref[finite].astype(wide)
    scale = float(np.sqrt(np.mean(np.abs(known) ** 2))) if known.size else 1.0
    return float(np.max(np.abs(y[finite].astype(wide) - known), initial=0.0)) / (scale or 1.0)
