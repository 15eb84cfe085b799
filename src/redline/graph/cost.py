"""What one call of a graph costs: operations, memory traffic, parameters, operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import onnx_ir

from redline.graph.flops import FREE, RULES, VIEWS, Sizes
from redline.graph.serialize import clean
from redline.graph.shapes import infer_shapes, is_static
from redline.signature import Signature

_INDEX_TYPES = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32, onnx_ir.DataType.BOOL)


@dataclass(frozen=True)
class Cost:
    """The work of one call.

    Attributes:
        flops: floating-point operations; a multiply and an add are two (see graph/flops.py).
        bytes: compulsory traffic, which no compiler can avoid: every weight and graph input read
            once, every output written once. Of a table that is only gathered from, the rows taken.
        activation_bytes: every tensor in between written once and read once, as if nothing were
            fused and nothing stayed in cache; views are free.
        parameters: elements of the weights; indices, shapes and masks are not counted.
        operators: operator type -> count.
        flops_by_operator: operator type -> flops.
        unknown: operators left out of `flops`: no rule, or sizes only known when run.
    """

    flops: float
    bytes: int
    activation_bytes: int
    parameters: int
    operators: dict[str, int] = field(default_factory=dict)
    flops_by_operator: dict[str, float] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)


def operators(graph: onnx_ir.Model) -> dict[str, int]:
    """Operator type -> count, most frequent first, in subgraphs and functions too.

    Example:
        >>> operators(graph)
        {'Conv': 53, 'Relu': 49, 'Add': 16, 'MaxPool': 1}
    """
    return dict(Counter(_kind(node) for node in _nodes(clean(graph))).most_common())


def cost(
    graph: onnx_ir.Model, signature: Signature, which: Literal["min", "opt", "max"] = "opt"
) -> Cost:
    """Count the work of one call with every dynamic dim at its min, opt or max.

    Bodies of If, Loop and Scan are counted once.

    Raises:
        InputError: the signature's sizes do not fit the graph.

    Example:
        >>> cost(graph, signature).flops
        8178892800.0
    """
    graph = clean(graph)
    values = infer_shapes(graph, _input_sizes(graph, signature, which))
    counts: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    by_operator: dict[str, float] = {}
    for node in _nodes(graph):
        kind = _kind(node)
        counts[kind] += 1
        flops = _flops(node, values)
        if flops is None:
            unknown[kind] += 1
        elif flops:
            by_operator[kind] = by_operator.get(kind, 0.0) + flops
    weights = [value for part in graph.graphs() for value in part.initializers.values()]
    ends = (*graph.graph.inputs, *graph.graph.outputs)
    return Cost(
        flops=sum(by_operator.values()),
        bytes=sum(_traffic(value, values) for value in weights)
        + sum(_nbytes(value, values) for value in ends if not value.is_initializer()),
        activation_bytes=2 * sum(_nbytes(value, values) for value in _between(graph)),
        parameters=sum(
            value.const_value.size
            for value in weights
            if value.const_value is not None and value.const_value.dtype not in _INDEX_TYPES
        ),
        operators=dict(counts.most_common()),
        flops_by_operator=dict(sorted(by_operator.items(), key=lambda item: -item[1])),
        unknown=dict(unknown.most_common()),
    )


def flops_by_node(graph: onnx_ir.Model, signature: Signature) -> dict[str, float]:
    """Name of a node -> its flops at the opt sizes; nodes without a rule or a name are left out.

    Example:
        >>> flops_by_node(graph, signature)["conv_1"]
        9437184.0
    """
    graph = clean(graph)
    values = infer_shapes(graph, _input_sizes(graph, signature, "opt"))
    pairs = ((node.name, _flops(node, values)) for node in _nodes(graph))
    return {name: flops for name, flops in pairs if name and flops is not None}


def _input_sizes(
    graph: onnx_ir.Model, signature: Signature, which: Literal["min", "opt", "max"]
) -> dict[str, Sizes]:
    """By name, or by position where capture renamed the inputs."""
    specs = {spec.name: spec for spec in signature.inputs}
    sizes = {}
    for index, value in enumerate(graph.graph.inputs):
        spec = specs.get(value.name or "")
        if spec is None and len(signature.inputs) == len(graph.graph.inputs):
            spec = signature.inputs[index]
        if spec is not None and value.name:
            sizes[value.name] = signature.shape(spec, which)
    return sizes


def _nodes(graph: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    for part in graph.graphs():
        yield from part


def _kind(node: onnx_ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _flops(node: onnx_ir.Node, values: Mapping[str, onnx_ir.Value]) -> float | None:
    """None where there is no rule for it or its sizes are not known."""
    rule = RULES.get(_kind(node))
    if rule is None:
        return None
    if node.op_type in FREE:
        return 0.0
    try:
        inputs = [None if value is None else _sizes(value, values) for value in node.inputs]
        return rule(node, inputs, _sizes(node.outputs[0], values))
    except (KeyError, IndexError, ValueError):
        return None


def _sizes(value: onnx_ir.Value, values: Mapping[str, onnx_ir.Value]) -> Sizes:
    found = values[value.name or ""]
    if found.shape is None or not is_static(found):
        raise KeyError(value.name)
    return tuple(int(size) for size in found.shape.numpy())


def _nbytes(value: onnx_ir.Value, values: Mapping[str, onnx_ir.Value]) -> int:
    found = values.get(value.name or "")
    if found is None or not is_static(found) or found.dtype is None:
        return 0
    if found.dtype in (onnx_ir.DataType.STRING, onnx_ir.DataType.UNDEFINED):
        return 0
    return int(prod(_sizes(value, values)) * found.dtype.bitwidth + 7) // 8


def _traffic(weight: onnx_ir.Value, values: Mapping[str, onnx_ir.Value]) -> int:
    """Bytes of a weight that one call must read."""
    whole = _nbytes(weight, values)
    uses = weight.uses()
    if all(node.op_type == "Gather" and index == 0 for node, index in uses):
        taken = sum(_nbytes(node.outputs[0], values) for node, _ in uses)
        return min(whole, taken) if taken else whole
    return whole


def _between(graph: onnx_ir.Model) -> Iterator[onnx_ir.Value]:
    for node in _nodes(graph):
        if node.op_type not in VIEWS and node.op_type != "Constant":
            yield from (value for value in node.outputs if not value.is_graph_output())
