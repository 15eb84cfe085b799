"""Tables that are looked up in, such as embeddings, unpacked after the look-up and not before."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from redline.compress.float_nodes import cleaned, plain_proto


def unpacked_late(graph: ir.Model) -> ir.Model:
    """Gather of a table behind DequantizeLinear as Gather of its bytes, times the rows' steps.

    The numbers are the same; but a runtime would unpack the whole table at every call. For the
    last step before a graph is written, as the names of quantised operators go.

    Example:
        >>> to_bytes(unpacked_late(made.graph))
    """
    model = plain_proto(graph)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    nodes = []
    for node in model.graph.node:
        table = makers.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or not _by_row(node, table, held):
            nodes.append(node)
            continue
        out, places = node.output[0], node.input[1]
        steps = numpy_helper.to_array(held[table.input[1]]).reshape(-1, 1)
        model.graph.initializer.append(numpy_helper.from_array(steps, f"{out}_steps"))
        nodes += [
            helper.make_node("Gather", [table.input[0], places], [f"{out}_bytes"], axis=0),
            helper.make_node("Cast", [f"{out}_bytes"], [f"{out}_levels"], to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{out}_steps", places], [f"{out}_step"], axis=0),
            helper.make_node("Mul", [f"{out}_levels", f"{out}_step"], [out]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return cleaned(model)


def _by_row(
    gather: onnx.NodeProto, table: onnx.NodeProto, held: dict[str, TensorProto]
) -> bool:  # fmt: skip
    """Whether rows are looked up in a table of int8 that has a step for each row."""
    if table.op_type != "DequantizeLinear" or not {*table.input} <= held.keys():
        return False
    levels, steps, *zero = (held[name] for name in table.input)
    axes = [{a.name: a.i for a in node.attribute}.get("axis", default)
            for node, default in ((gather, 0), (table, 1))]  # fmt: skip
    return (
        levels.data_type == TensorProto.INT8
        and steps.data_type == TensorProto.FLOAT
        and list(steps.dims) == [levels.dims[0]]
        and len(levels.dims) == 2
        and axes == [0, 0]
        and not any(np.any(numpy_helper.to_array(each)) for each in zero)
    )
