"""A small engine for tests: y = x @ w + b on ONNX Runtime, with a dynamic batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from redline.engine import file as engine_file
from redline.engine.manifest import Check, Part
from redline.signature import Dim, Signature, TensorSpec, Tree

W = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
B = np.array([0.5, -1, 2], np.float32)
X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
Y = X @ W + B

SIGNATURE = Signature(
    inputs=(TensorSpec("x", "float32", ("batch", 4)),),
    outputs=(TensorSpec("y", "float32", ("batch", 3)),),
    input_tree=Tree("dict", ("x",), (Tree(),)),
    output_tree=Tree(),
    dims=(Dim("batch", 1, 2, 16),),
)
PORTABLE = Part("onnxruntime", {"threads": 1}, uses_graph=True, needs={"onnxruntime": "1"})
CODE = Part("null", {"behaviour": "right"}, uses_graph=True, code=True)


def graph_proto() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "sample",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(W, "w"), numpy_helper.from_array(B, "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


GRAPH = graph_proto().SerializeToString()


def save_sample(path: Path, *parts: tuple[Part, Path], **changes: Any) -> Path:
    """Save the sample engine, with these parts or the portable one."""
    arguments: dict[str, Any] = {
        "name": "sample",
        "signature": SIGNATURE,
        "parts": parts or [(PORTABLE, path.parent)],
        "graph": GRAPH,
        "check": Check(tolerance=1e-5, latency_s=1e-5),
        "inputs": [X],
        "outputs": [Y],
        "machine": {"cpu": "test"},
        **changes,
    }
    engine_file.save(path, **arguments)
    return path
