"""Weights in int8, activations in float: a quarter of the file, no calibration.

The half of Jacob et al., arXiv 1712.05877, that is about weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from redline.compress.scheme import Calibration, Compressed, Scheme
from redline.compress.weights import stored


def int8_weights(graph: ir.Model, scheme: Scheme, calibration: Calibration | None) -> Compressed:
    """Weights in int8 with one scale for each output channel, symmetric, rounded to nearest.

    Raises:
        RefusedError: there is no weight that is large enough.
    """

    def pack(array: np.ndarray, axis: int) -> tuple[list[np.ndarray], str, dict[str, Any]]:
        axes = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.abs(array).max(axes, keepdims=True) / 127
        scale[scale == 0] = 1
        small = np.clip(np.rint(array / scale), -127, 127).astype(np.int8)
        return [small, scale.reshape(-1).astype(np.float32)], "DequantizeLinear", {"axis": axis}

    return stored(graph, scheme, pack)
