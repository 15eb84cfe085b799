"""A graph in float64, to compute what float32 results should have been."""

from __future__ import annotations

import numpy as np
import onnx_ir

from redline.graph.serialize import clean

_NARROW = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype")


def widen(graph: onnx_ir.Model) -> onnx_ir.Model:
    """A copy in which every narrower float is a float64: weights, inputs, casts and constants.

    It follows the meaning of each operator rather than its list of allowed types, so it is for an
    evaluator that does not check those, such as onnx.reference.

    Example:
        >>> widen(graph).graph.inputs[0].dtype
        DOUBLE
    """
    copy = clean(graph)
    for part in copy.graphs():
        for value in (*part.inputs, *part.outputs, *(v for node in part for v in node.outputs)):
            if value.dtype in _NARROW:
                value.type = onnx_ir.TensorType(onnx_ir.DataType.DOUBLE)  # types are shared
        for weight in part.initializers.values():
            if weight.const_value is not None and weight.const_value.dtype in _NARROW:
                weight.const_value = _wide(weight.const_value)
                weight.type = onnx_ir.TensorType(onnx_ir.DataType.DOUBLE)
        for node in part:
            for name, attribute in list(node.attributes.items()):
                node.attributes[name] = _widen_attribute(attribute)
    return copy


def _widen_attribute(attribute: onnx_ir.Attr) -> onnx_ir.Attr:
    if attribute.type == onnx_ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _NARROW:
        return onnx_ir.AttrTensor(attribute.name, _wide(attribute.as_tensor()))
    if attribute.name in _TYPE_ATTRIBUTES and attribute.value in _NARROW:
        return onnx_ir.AttrInt64(attribute.name, onnx_ir.DataType.DOUBLE.value)
    return attribute


def _wide(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    return onnx_ir.Tensor(tensor.numpy().astype(np.float64), name=tensor.name)
