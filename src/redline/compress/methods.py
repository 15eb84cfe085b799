"""The methods that turn one graph into a smaller or faster one, by name."""

from __future__ import annotations

from importlib import import_module

import onnx_ir as ir

from redline.compress.scheme import Calibration, Compressed, Method, Scheme
from redline.errors import RefusedError, UnknownNameError

METHODS = {
    "int8": "redline.compress.int8:int8",
    "int8-dynamic": "redline.compress.int8_dynamic:int8_dynamic",
    "int8-weights": "redline.compress.int8_weights:int8_weights",
    "int4-weights": "redline.compress.int4_weights:int4_weights",
    "fp16": "redline.compress.half:half",
    "bf16": "redline.compress.half:half",
}
CALIBRATED = ("int8",)  # what needs calibration data
_QUANTIZED = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger",
    "MatMulNBits", "QGemm", "QLinear",
)  # fmt: skip


def compress(graph: ir.Model, scheme: Scheme, calibration: Calibration | None = None) -> Compressed:
    """The graph compressed by a scheme; the given one is left as it was.

    Raises:
        UnknownNameError: there is no such method.
        RefusedError: it cannot be done, with the reason; the graph is quantised already.
        MissingError: a library is not installed.

    Example:
        >>> compress(graph, Scheme("int8"), calibration).layers[0].precision
        'int8'
    """
    if scheme.method not in METHODS:
        raise UnknownNameError("method", scheme.method, METHODS)
    done = next((n.op_type for n in graph.graph if n.op_type.startswith(_QUANTIZED)), "")
    if done:
        raise RefusedError(
            f"the graph is quantised already: it holds {done}", hint="give the float model"
        )
    module, name = METHODS[scheme.method].split(":")
    method: Method = getattr(import_module(module), name)
    return method(graph, scheme, calibration)
