"""Every quantised weight with a zero point of its own, which ONNX lets be left out or shared.

ONNX Runtime's exact kernels for 8-bit weights (session.x64quantprecision) move zero points; they
fail where there is none, or where another weight has the same.
"""

from __future__ import annotations

import numpy as np
import onnx_ir


def own_zero_points(graph: onnx_ir.Model) -> None:
    """Give them to each DequantizeLinear of constant int8, in place.

    Example:
        >>> own_zero_points(graph)
    """
    taken: set[onnx_ir.Value] = set()
    for part in graph.graphs():
        for node in part:
            zero = _zero_point(node)
            if zero is None:
                continue
            given = node.inputs[2] if len(node.inputs) > 2 else None
            if given is not None and given not in taken:
                taken.add(given)
                continue
            name = f"{node.outputs[0].name}_zero_point"
            value = onnx_ir.val(name, const_value=onnx_ir.tensor(zero, name=name))
            part.register_initializer(value)
            node.resize_inputs(3)
            node.replace_input_with(2, value)


def _zero_point(node: onnx_ir.Node) -> np.ndarray | None:
    """What a weight's zero point is; None for what is no weight in int8, or has it computed."""
    if node.op_type != "DequantizeLinear" or node.domain not in ("", "ai.onnx"):
        return None
    x, scale, *rest = node.inputs
    if x is None or scale is None or x.const_value is None or scale.const_value is None:
        return None
    if x.const_value.dtype != onnx_ir.DataType.INT8:
        return None
    given = rest[0] if rest else None
    if given is None:
        return np.zeros(tuple(scale.const_value.shape.numpy()), np.int8)
    return None if given.const_value is None else given.const_value.numpy()
