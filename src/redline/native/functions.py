"""Operators that need no kernel: constants folded, ONNX's own function bodies expanded."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir

from redline.native.dtypes import CTYPES
from redline.native.ir import No, Value

_FOLDED = 1 << 28  # bytes of a constant result beyond which it is rather computed at run


def fold(node: onnx_ir.Node, ins: list[Value | None], opset: int) -> list[np.ndarray] | None:
    """The results of an operator on constants, by ONNX's own reference; None where it cannot."""
    from onnx.reference import ReferenceEvaluator

    proto = onnx_ir.serde.serialize_node(node)
    names = [name for name in proto.input if name]
    arrays = {name: v.const for name, v in zip(proto.input, ins, strict=True) if v is not None}
    inputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names]
    outputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "fold", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", opset)]
    try:
        model = onnx.helper.make_model(graph, opset_imports=opsets)
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, arrays)
    except Exception:  # the reference lacks it: the operator's own lowering is asked
        return None
    if not all(isinstance(result, np.ndarray | np.generic) for result in results):
        return None
    if sum(np.asarray(result).nbytes for result in results) > _FOLDED:
        return None
    found = iter(np.asarray(result) for result in results)
    return [next(found) if name else np.zeros(0) for name in proto.output]


def body(node: onnx_ir.Node, ins: list[Value | None], opset: int) -> onnx.FunctionProto | None:
    """The function that ONNX defines an operator by, for these inputs; None where it has none."""
    if not onnx.defs.has(node.op_type, opset, ""):
        return None
    schema: Any = onnx.defs.get_schema(node.op_type, opset, "")  # its stubs lack the functions
    proto = onnx_ir.serde.serialize_node(node)
    if schema.has_context_dependent_function:
        fits = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        if fits:
            types = [_type(value).SerializeToString() for value in ins]
            try:
                text: bytes = schema.get_context_dependent_function_with_opset_version(
                    max(fits), proto.SerializeToString(), types
                )
            except Exception:  # it has no body for these attributes or types
                return None
            return _parsed(text) if text else None
    fits = [v for v in schema.function_opset_versions if v <= opset]
    if not schema.has_function or not fits:
        return None
    found = schema.get_function_with_opset_version(max(fits))
    return _parsed(found if isinstance(found, bytes) else found.SerializeToString())


def _parsed(text: bytes) -> onnx.FunctionProto:
    made = onnx.FunctionProto()
    made.ParseFromString(text)
    return made


def _type(value: Value | None) -> onnx.TypeProto:
    if value is None:
        return onnx.TypeProto()
    kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_type_proto(kind, value.shape)


def bound(function: onnx.FunctionProto, node: onnx_ir.Node, opset: int) -> onnx_ir.Function:
    """The body, its attributes taken from the node that stands for the function."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    given = {a.name: a for a in onnx_ir.serde.serialize_node(node).attribute}
    for name, attribute in schema.attributes.items():
        if name not in given and attribute.default_value.name:
            given[name] = attribute.default_value
    made = onnx.FunctionProto()
    made.CopyFrom(function)
    del made.attribute[:]
    written = {name for inner in made.node for name in inner.output}
    kept = [name for name in made.output if name in written or name in made.input]
    made.output[:] = kept  # a body for these inputs may lack an output that nobody asked for
    for inner in made.node:
        _bind(inner, given)
        inner.name = node.name or node.op_type
    return onnx_ir.serde.deserialize_function(made)


def _bind(node: onnx.NodeProto, given: dict[str, onnx.AttributeProto]) -> None:
    """Attributes that refer to the function's become its values, in branches and bodies, too."""
    for attribute in list(node.attribute):
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                _bind(inner, given)
        if not attribute.ref_attr_name:
            continue
        source = given.get(attribute.ref_attr_name)
        name = attribute.name
        if source is None:
            node.attribute.remove(attribute)
        else:
            attribute.CopyFrom(source)
            attribute.name = name


def known(array: np.ndarray) -> np.ndarray:
    """A constant as the compiler keeps it.

    Raises:
        No: strings, types of four or six bits.
    """
    if array.dtype.name not in CTYPES:
        raise No(f"elements of type {array.dtype.name}")
    return np.ascontiguousarray(array).reshape(np.shape(array))
