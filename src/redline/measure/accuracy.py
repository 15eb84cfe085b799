"""How far outputs are from the reference, and how far they may be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redline.runtime.self_test import output_error

# The largest max|y - ref| / rms(ref) over the outputs: the same at build and at load.
error = output_error

# What a candidate's error may be: factor * (eager float32's own error) + floor.
# "fp32" leaves room for another order of summation. "winograd-f63": Winograd F(6x6,3x3) loses two
# to three digits (Lavin and Gray, arXiv 1509.09308; Barabasz et al., arXiv 1803.10986).
# "quantised": in a graph that was given with Q/DQ pairs a value between two levels may take either.
TOLERANCE_CLASSES = {
    "fp32": (10.0, 2e-6),
    "winograd-f23": (30.0, 6e-6),
    "winograd-f43": (100.0, 2e-5),
    "winograd-f63": (1000.0, 2e-4),
    "quantised": (10.0, 0.1),
}


def not_a_number(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> bool:
    """Whether an output holds NaN or Inf where the reference holds a number."""
    return any(
        y.shape == ref.shape and np.issubdtype(y.dtype, np.inexact) and _stray(y, ref)
        for y, ref in zip(outputs, expected, strict=False)
    )


def tolerance(yardstick: float, tolerance_class: str) -> float:
    """The error allowed to a candidate, from eager float32's own error against float64.

    Example:
        >>> round(tolerance(1e-6, "fp32"), 9)
        1.2e-05
    """
    factor, floor = TOLERANCE_CLASSES[tolerance_class]
    return factor * yardstick + floor


def _stray(y: np.ndarray, ref: np.ndarray) -> bool:
    return bool(np.any(~np.isfinite(y) & np.isfinite(ref)))
