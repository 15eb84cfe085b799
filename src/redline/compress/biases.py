"""Biases of quantised products as whole numbers, as ONNX's quantised form asks for them.

Jacob et al., arXiv 1712.05877, section 2.4: in steps of input times weight, 32 bits. Where the bias
is a float, ONNX Runtime (which makes a Gemm of MatMul and Add) leaves the product in float and
unpacks its weights at every call.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

_MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
_MOST = 2**31 - 1
Makers = Mapping[str, onnx.NodeProto]
Held = Mapping[str, onnx.TensorProto]


def whole_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """A DequantizeLinear in front of the bias of every product between two; the model is changed
    and returned.
    """
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    nodes = []
    for node in model.graph.node:
        found = _bias(node, makers, held)
        step = _step(found[0], makers, held) if found else None
        if found and step is not None:
            place = found[1]
            bias = numpy_helper.to_array(held[node.input[place]])
            steps = np.broadcast_to(step, bias.shape).astype(np.float32)
            levels = np.clip(np.rint(bias / steps.astype(np.float64)), -_MOST, _MOST)
            names = [f"{node.output[0]}_bias_{part}" for part in ("whole", "step")]
            for name, array in zip(names, (levels.astype(np.int32), steps), strict=True):
                model.graph.initializer.append(numpy_helper.from_array(array, name))
            node.input[place] = f"{node.output[0]}_bias"
            nodes.append(helper.make_node("DequantizeLinear", names, [node.input[place]], axis=0))
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _bias(node: onnx.NodeProto, makers: Makers, held: Held) -> tuple[onnx.NodeProto, int] | None:
    """The product and which input of the node is its constant bias."""
    if node.op_type == "Gemm" and len(node.input) > 2:
        plain = not any(a.name in ("alpha", "beta") and a.f != 1.0 for a in node.attribute)
        return (node, 2) if plain and _row(node.input[2], held) else None
    if node.op_type == "Add":
        for place in (0, 1):
            maker = makers.get(node.input[1 - place])
            if maker is not None and maker.op_type == "MatMul" and _row(node.input[place], held):
                return maker, place
    return None


def _row(name: str, held: Held) -> bool:
    return name in held and len(held[name].dims) == 1


def _step(product: onnx.NodeProto, makers: Makers, held: Held) -> np.ndarray | None:
    """The step of its sums; None where it is not quantised."""
    steps = []
    for name in product.input[:2]:
        maker = makers.get(name)
        while maker is not None and maker.op_type in _MOVES:
            maker = makers.get(maker.input[0])
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[1] not in held:
            return None
        steps.append(numpy_helper.to_array(held[maker.input[1]]).astype(np.float64))
    return np.asarray(steps[0] * steps[1])
