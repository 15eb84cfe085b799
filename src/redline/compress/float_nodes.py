"""Take single nodes of a quantised graph back to float, as the plain graph has them."""

from __future__ import annotations

from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from redline.graph.serialize import to_bytes


def plain_proto(graph: ir.Model) -> onnx.ModelProto:
    """The graph as ONNX's own message, which other libraries take."""
    return onnx.load_model_from_string(to_bytes(graph))


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every node with a name of its own; the model is changed and returned."""
    seen: set[str] = set()
    for place, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{place}"
        seen.add(node.name)
    return model


def stay_in_float(
    quantised: onnx.ModelProto, plain: onnx.ModelProto, names: Collection[str]
) -> ir.Model:
    """The quantised graph with the named nodes as they are in the plain one.

    A quantiser leaves the names of values as they were, so a node that reads its old inputs by name
    reads the unquantised activation and the float weights; what nobody reads any more goes.
    """
    made = onnx.ModelProto()
    made.CopyFrom(quantised)
    before = {node.name: node for node in plain.graph.node}
    weights = {tensor.name: tensor for tensor in plain.graph.initializer}
    there = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.name not in names or node.name not in before:
            continue
        node.input[:] = before[node.name].input
        for place, name in enumerate(node.input):
            if name not in weights or there.get(name) == weights[name]:
                continue
            own = onnx.TensorProto()  # a bias may have been corrected under its old name
            own.CopyFrom(weights[name])
            own.name = f"{name}_float"
            node.input[place] = own.name
            if own.name not in there:
                there[own.name] = own
                made.graph.initializer.append(own)
    return cleaned(made)


def cleaned(model: onnx.ModelProto) -> ir.Model:
    """The graph without what nobody reads."""
    graph = ir.serde.deserialize_model(model)
    common.RemoveUnusedNodesPass()(graph)
    return graph
