"""What the methods share that change weights alone: which they are, and how they are packed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from redline.compress.float_nodes import cleaned, named, plain_proto
from redline.compress.scheme import Compressed, Layer, Scheme
from redline.errors import RefusedError

_LEAST = 1024  # elements: smaller weights are not worth an operator more
_WEIGHTS = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1, "Gather": 0}
# weights, axis of the output channels -> what is stored, the operator that unpacks it
Pack = Callable[[np.ndarray, int], tuple[list[np.ndarray], str, dict[str, Any]]]


def stored(graph: ir.Model, scheme: Scheme, pack: Pack) -> Compressed:
    """Every large weight packed, with the operator behind it that unpacks it.

    Raises:
        RefusedError: there is no weight that is large enough.
    """
    model = named(plain_proto(graph))
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    known: dict[str, str] = {}
    layers, nodes = [], []
    for node, place in readers(model, held):
        name = node.input[place]
        if node.name in scheme.keep:
            layers.append(Layer(node.name, node.op_type, "fp32", "kept for accuracy"))
            continue
        if name not in known:
            array = numpy_helper.to_array(held[name])
            parts, operator, attributes = pack(array, _channel(node, array.ndim))
            names = [f"{name}_{scheme.method}{i or ''}" for i in range(len(parts))]
            for own, part in zip(names, parts, strict=True):
                model.graph.initializer.append(ir.serde.serialize_tensor(ir.tensor(part, name=own)))
            known[name] = f"{name}_float"
            nodes.append(helper.make_node(operator, names, [known[name]], **attributes))
        node.input[place] = known[name]
        layers.append(Layer(node.name, node.op_type, scheme.method))
    if not known:
        raise RefusedError(f"no weight has {_LEAST} elements or more")
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    return Compressed(cleaned(model), scheme, tuple(layers))


def readers(
    model: onnx.ModelProto, held: dict[str, TensorProto]
) -> Iterator[tuple[onnx.NodeProto, int]]:
    """Operators that read a large float weight, and which of their inputs it is."""
    for node in model.graph.node:
        place = _WEIGHTS.get(node.op_type)
        if place is None or len(node.input) <= place or node.input[place] not in held:
            continue
        tensor = held[node.input[place]]
        large = int(np.prod(tensor.dims, dtype=np.int64)) >= _LEAST
        if large and tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            yield node, place


def _channel(node: onnx.NodeProto, rank: int) -> int:
    """The axis of the output channels."""
    if node.op_type == "MatMul":
        return rank - 1
    if node.op_type == "Gemm":
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if turned else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def products(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gemm with constant weights as MatMul and Add: packed weights have no other form."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        plain = given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA")
        if node.op_type != "Gemm" or node.input[1] not in held or not plain:
            nodes.append(node)
            continue
        name = node.input[1]
        if given.get("transB"):
            turned = numpy_helper.from_array(
                np.ascontiguousarray(numpy_helper.to_array(held[name]).T), f"{name}_turned"
            )
            model.graph.initializer.append(turned)
            name = turned.name
        out = f"{node.output[0]}_product" if len(node.input) > 2 else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [out], name=node.name))
        if len(node.input) > 2:
            nodes.append(helper.make_node("Add", [out, node.input[2]], list(node.output)))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
