"""The graph as bytes, without anything personal in it, and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from onnx_ir.passes import common

from redline.errors import ModelError, RefusedError
from redline.graph import external_data
from redline.graph.external_data import MAX_WEIGHTS
from redline.graph.zero_points import own_zero_points


def clean(graph: onnx_ir.Model) -> onnx_ir.Model:
    """A copy without doc strings, metadata, functions, dead nodes and unused opsets.

    Exporters write stack traces with the paths of the user's machine into the metadata. Weights
    are shared with `graph`, which stays as it is; functions are inlined, Constant nodes become
    weights, and every quantised weight gets a zero point of its own.

    Example:
        >>> clean(graph).metadata_props
        {}
    """
    copy = graph.clone()
    if copy.functions:
        copy = common.InlinePass()(copy).model
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    common.RemoveUnusedNodesPass()(copy)
    common.RemoveUnusedOpsetsPass()(copy)
    copy.doc_string, copy.domain, copy.model_version = None, None, None
    copy.metadata_props.clear()
    for part in copy.graphs():
        _clear(part)
        for value in (*part.inputs, *part.initializers.values()):
            _clear(value)
        for node in part:
            _clear(node)
            for value in node.outputs:
                _clear(value)
            for name, attribute in list(node.attributes.items()):
                if attribute.doc_string:  # the copy shares it with the graph that was given
                    node.attributes[name] = onnx_ir.Attr(name, attribute.type, attribute.value)
    _change_tensors(copy, _without_text)
    own_zero_points(copy)
    return copy


def to_bytes(graph: onnx_ir.Model) -> bytes:
    """The cleaned graph as one ONNX message, weights inside; the same bytes for the same graph.

    Raises:
        RefusedError: it holds more weights than one ONNX message can (2 GiB).

    Example:
        >>> onnx.load_from_string(to_bytes(graph)).graph.name
        'main_graph'
    """
    total = sum(tensor.nbytes for tensor in tensors(graph))
    if total > MAX_WEIGHTS:
        raise RefusedError(
            f"the graph holds {total / 2**30:.2f} GiB of weights, and one ONNX message holds "
            f"less than {(MAX_WEIGHTS + 2**24) / 2**30:.0f} GiB",
            hint='convert the weights with model.half(), or use backends=["eager", "inductor"]',
        )
    copy = clean(graph)
    _change_tensors(copy, _in_memory)
    proto = onnx_ir.serde.serialize_model(copy)
    return bytes(proto.SerializeToString(deterministic=True))


def from_bytes(data: bytes) -> onnx_ir.Model:
    """The graph that `to_bytes` wrote.

    Raises:
        ModelError: the bytes are not an ONNX graph.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx_ir.serde.deserialize_model(onnx.load_model_from_string(data))
    except (DecodeError, ValueError, TypeError) as error:
        raise ModelError(f"{len(data)} bytes are not an ONNX graph: {error}") from error


def graph_hash(graph: onnx_ir.Model) -> str:
    """SHA-256, in hex, over the structure and the weights of the graph.

    Names of inputs and outputs count, as callers use them; names that an exporter chose for what
    lies between, node names, metadata and the order of the weights do not.

    Example:
        >>> graph_hash(graph) == graph_hash(from_bytes(to_bytes(graph)))
        True
    """
    return _Hasher().model(clean(graph))


def tensors(graph: onnx_ir.Model) -> Iterator[onnx_ir.TensorProtocol]:
    """Every tensor that the graph holds: weights and tensor attributes, subgraphs included."""
    for part in graph.graphs():
        yield from (v.const_value for v in part.initializers.values() if v.const_value is not None)
        for node in part:
            for attribute in node.attributes.values():
                if attribute.type == onnx_ir.AttributeType.TENSOR:
                    yield attribute.as_tensor()
                elif attribute.type == onnx_ir.AttributeType.TENSORS:
                    yield from attribute.as_tensors()


def _clear(item: Any) -> None:
    item.metadata_props.clear()
    item.doc_string = None


def _change_tensors(
    graph: onnx_ir.Model,
    change: Callable[[onnx_ir.TensorProtocol], onnx_ir.TensorProtocol],
) -> None:
    """Put change(tensor) in the place of every tensor that the graph holds."""
    for part in graph.graphs():
        for value in part.initializers.values():
            if value.const_value is not None:
                value.const_value = change(value.const_value)
        for node in part:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == onnx_ir.AttributeType.TENSOR:
                    node.attributes[name] = onnx_ir.AttrTensor(name, change(attribute.as_tensor()))
                elif attribute.type == onnx_ir.AttributeType.TENSORS:
                    changed = [change(tensor) for tensor in attribute.as_tensors()]
                    node.attributes[name] = onnx_ir.AttrTensors(name, changed)


def _without_text(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    if not tensor.doc_string and not tensor.metadata_props:
        return tensor
    if tensor.dtype == onnx_ir.DataType.STRING:
        return onnx_ir.StringTensor(tensor.numpy(), name=tensor.name)
    return onnx_ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)


def _in_memory(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    """The tensor itself, read from its file if it lies in one."""
    if not isinstance(tensor, onnx_ir.ExternalTensor):
        return tensor
    import onnx

    data = external_data.read(
        Path(tensor.base_dir),
        str(tensor.location),
        offset=tensor.offset or 0,
        length=tensor.nbytes if tensor.length is None else tensor.length,
        size=tensor.nbytes,
        name=tensor.name or "",
    )
    dims = tuple(int(size) for size in tensor.shape.numpy())
    proto = onnx.TensorProto(
        name=tensor.name, data_type=tensor.dtype.value, dims=dims, raw_data=data
    )
    return onnx_ir.serde.deserialize_tensor(proto)


class _Hasher:
    """Feeds a graph to SHA-256 with values numbered in the order in which they are met."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._numbers: dict[onnx_ir.Value, int] = {}

    def model(self, model: onnx_ir.Model) -> str:
        self._add("opsets", sorted(model.opset_imports.items()))
        for value in model.graph.inputs:
            self._add("input", value.name, str(value.type), str(value.shape))
        self._graph(model.graph)
        self._add("output", [value.name for value in model.graph.outputs])
        return self._sha.hexdigest()

    def _add(self, *items: object) -> None:
        self._sha.update(repr(items).encode())

    def _graph(self, graph: onnx_ir.Graph) -> None:
        for value in graph.inputs:
            self._value(value)
        for node in graph:
            self._add("node", node.domain, node.op_type, node.overload, len(node.outputs))
            for operand in node.inputs:
                self._value(operand)
            for name, attribute in sorted(node.attributes.items()):
                self._attribute(name, attribute)
            for value in node.outputs:
                self._value(value)
        for value in graph.outputs:
            self._value(value)

    def _value(self, value: onnx_ir.Value | None) -> None:
        if value is None or (not value.name and not value.is_graph_output()):
            self._add("none")
            return
        met = value in self._numbers
        self._add(self._numbers.setdefault(value, len(self._numbers)))
        if not met and value.const_value is not None and value.is_initializer():
            self._tensor(value.const_value)

    def _attribute(self, name: str, attribute: onnx_ir.Attr) -> None:
        kind = onnx_ir.AttributeType
        self._add("attribute", name, str(attribute.type))
        match attribute.type:
            case kind.TENSOR:
                self._tensor(attribute.as_tensor())
            case kind.TENSORS:
                for tensor in attribute.as_tensors():
                    self._tensor(tensor)
            case kind.GRAPH:
                self._graph(attribute.as_graph())
            case kind.GRAPHS:
                for graph in attribute.as_graphs():
                    self._graph(graph)
            case kind.FLOAT | kind.FLOATS:  # stored as float32; before that, perhaps wider
                self._add(np.float32(attribute.value).tolist())
            case kind.INTS | kind.STRINGS:
                self._add(list(attribute.value))
            case _:
                self._add(str(attribute.value))

    def _tensor(self, tensor: onnx_ir.TensorProtocol) -> None:
        array = tensor.numpy()
        self._add("tensor", str(tensor.dtype), array.shape)
        if array.dtype == object:
            self._add(array.tolist())
        elif array.size:
            self._sha.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
