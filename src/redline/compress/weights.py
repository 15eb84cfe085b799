"""Only the weights get fewer bits; activations stay in float.

Smaller files, and less memory to read on backends that multiply packed weights, which is what
limits products with few rows. fp16 and bf16 are storage: they are widened when an engine is opened.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from redline.compress.float_nodes import cleaned, named, plain_proto
from redline.compress.int8 import exact
from redline.compress.scheme import Calibration, Compressed, Layer, Scheme
from redline.errors import BuildError, RefusedError

_LEAST = 1024  # elements: smaller weights are not worth an operator more
_WEIGHTS = {"MatMul": 1, "Gemm": 1, "Conv": 1, "ConvTranspose": 1, "Gather": 0}
Pack = Callable[[np.ndarray, int], tuple[list[np.ndarray], str, dict[str, Any]]]


def half(graph: ir.Model, scheme: Scheme, calibration: Calibration | None) -> Compressed:
    """Weights stored as fp16 or bf16 (scheme.method), with a Cast behind each.

    Raises:
        RefusedError: a weight does not fit the range of fp16, or there are none.
    """
    kind: Any = np.float16 if scheme.method == "fp16" else ml_dtypes.bfloat16

    def pack(array: np.ndarray, axis: int) -> tuple[list[np.ndarray], str, dict[str, Any]]:
        with np.errstate(over="ignore"):
            small = array.astype(kind)
        if not np.isfinite(small.astype(np.float32)).all():
            raise RefusedError(
                f"a weight of {np.abs(array).max():.3g} does not fit {scheme.method}"
            )
        return [small], "Cast", {"to": TensorProto.FLOAT}

    return _stored(graph, scheme, pack)


def int8_weights(graph: ir.Model, scheme: Scheme, calibration: Calibration | None) -> Compressed:
    """Weights in int8 with one scale for each output channel, symmetric, rounded to nearest.

    Raises:
        RefusedError: there is no weight that is large enough.
    """

    def pack(array: np.ndarray, axis: int) -> tuple[list[np.ndarray], str, dict[str, Any]]:
        axes = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.abs(array).max(axes, keepdims=True) / 127
        scale[scale == 0] = 1
        small = np.clip(np.rint(array / scale), -127, 127).astype(np.int8)
        return [small, scale.reshape(-1).astype(np.float32)], "DequantizeLinear", {"axis": axis}

    return _stored(graph, scheme, pack)


def _stored(graph: ir.Model, scheme: Scheme, pack: Pack) -> Compressed:
    """Every large weight packed, with the operator behind it that unpacks it."""
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


def int8_dynamic(graph: ir.Model, scheme: Scheme, calibration: Calibration | None) -> Compressed:
    """Products in int8, the ranges of their inputs found at every call; for transformers on a CPU.

    Raises:
        RefusedError: the graph has no product with constant weights.
        BuildError: onnxruntime's quantiser failed.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = products(named(plain_proto(graph)))
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    found = [n.name for n, _ in readers(model, held) if n.op_type == "MatMul"]
    inside = [name for name in found if name not in scheme.keep]
    if not inside:
        raise RefusedError("no product has constant weights; use int8 for convolutions")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        source.write_bytes(model.SerializeToString())
        try:
            quantize_dynamic(
                source, target, per_channel=True, reduce_range=not exact(),
                weight_type=QuantType.QInt8, nodes_to_quantize=inside,
                extra_options={"DefaultTensorType": TensorProto.FLOAT},
            )  # fmt: skip
            made = onnx.load(target)
        except Exception as error:  # the library raises whatever its parts raise
            raise BuildError(f"onnxruntime cannot quantise it: {str(error)[:300]}") from error
    layers = [Layer(name, "MatMul", "int8") for name in inside]
    layers += [Layer(n, "MatMul", "fp32", "kept for accuracy") for n in scheme.keep & set(found)]
    return Compressed(cleaned(made), scheme, tuple(layers))
