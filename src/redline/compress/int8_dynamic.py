"""Products in int8, the ranges of their inputs found at every call, by ONNX Runtime's quantiser."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx import TensorProto

from redline.compress.float_nodes import cleaned, named, plain_proto
from redline.compress.int8 import exact
from redline.compress.scheme import Calibration, Compressed, Layer, Scheme
from redline.compress.weights import products, readers
from redline.errors import BuildError, RefusedError


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
