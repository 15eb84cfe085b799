"""Weights stored in sixteen bits: half of the file, the same arithmetic.

Micikevicius et al., arXiv 1710.03740 (fp16); Kalamkar et al., arXiv 1905.12322 (bf16).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx import TensorProto

from redline.compress.scheme import Calibration, Compressed, Scheme
from redline.compress.weights import stored
from redline.errors import RefusedError


def half(graph: ir.Model, scheme: Scheme, calibration: Calibration | None) -> Compressed:
    """Weights stored as fp16 or bf16 (scheme.method), with a Cast behind each.

    Raises:
        RefusedError: a weight does not fit the range of fp16, or there are none.
    """
    kind: Any = np.float16 if scheme.method == "fp16" else ml_dtypes.bfloat16

    def pack(array: np.ndarray, axis: int) -> tuple[list[np.ndarray], str, dict[str, Any]]:
        with np.errstate(over="ignore"):
            small = array.astype(kind)
        if not np.isfinite(small.astype(np.float32)).all():
            raise RefusedError(
                f"a weight of {np.abs(array).max():.3g} does not fit {scheme.method}"
            )
        return [small], "Cast", {"to": TensorProto.FLOAT}

    return stored(graph, scheme, pack)
