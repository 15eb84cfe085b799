"""Numbers as C++ reads them back exactly."""

from __future__ import annotations

import numpy as np

from redline.native.dtypes import ctype


def literal(x: float, suffix: str = "f") -> str:
    """A float, or with suffix "" a double.

    Example:
        >>> literal(0.5), literal(float("inf"))
        ('0x1.0000000000000p-1f', 'HUGE_VALF')
    """
    if np.isinf(x):
        return ("-" if x < 0 else "") + ("HUGE_VALF" if suffix else "HUGE_VAL")
    if np.isnan(x):
        return "NAN"
    return f"{float(np.float32(x) if suffix else x).hex()}{suffix}"


def whole(x: int, dtype: np.dtype) -> str:
    """A whole number or a bool of the given type.

    Example:
        >>> whole(-3, np.dtype("int64"))
        '((int64_t)-3LL)'
    """
    if x == -(2**63):
        return "INT64_MIN"
    return f"(({ctype(dtype)}){x}{'ULL' if dtype.kind == 'u' else 'LL'})"
