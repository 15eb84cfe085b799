"""Models of a few kilobytes, whose right answers NumPy knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import redline
from redline.engine.file import save as save_engine_file
from redline.engine.manifest import Part
from redline.signature import Dim, Signature, TensorSpec, Tree

W = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)


def expected(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """What mlp() answers."""
    return np.maximum(x @ (W * np.float32(scale)), 0)


def _model(nodes, inputs, outputs, constants=()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opset = [helper.make_opsetid("", 20)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10)


def mlp(batch: int | str = "batch", scale: float = 1.0) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    w = helper.make_tensor("w", TensorProto.FLOAT, W.shape, (W * np.float32(scale)).ravel())
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    return _model(
        nodes,
        [info("x", TensorProto.FLOAT, [batch, 8])],
        [info("y", TensorProto.FLOAT, [batch, 4])],
        [w],
    )


def add_sub() -> onnx.ModelProto:
    """Triton's "simple": the sum and the difference of two inputs of 16 int32."""
    info, shape = helper.make_tensor_value_info, ["batch", 16]
    return _model(
        [
            helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
            helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
        ],
        [info(f"INPUT{k}", TensorProto.INT32, shape) for k in (0, 1)],
        [info(f"OUTPUT{k}", TensorProto.INT32, shape) for k in (0, 1)],
    )


def gather() -> onnx.ModelProto:
    """y = 10 * i for indices 0 to 3; another index is an error while it runs."""
    info = helper.make_tensor_value_info
    table = helper.make_tensor("t", TensorProto.FLOAT, [4], [0.0, 10.0, 20.0, 30.0])
    return _model(
        [helper.make_node("Gather", ["t", "i"], ["y"])],
        [info("i", TensorProto.INT64, ["batch", "n"])],
        [info("y", TensorProto.FLOAT, ["batch", "n"])],
        [table],
    )


def identity(kind: str) -> onnx.ModelProto:
    info, code = helper.make_tensor_value_info, getattr(TensorProto, kind)
    shape = ["batch", "n"]
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [info("x", code, shape)],
        [info("y", code, shape)],
    )


def first_row() -> onnx.ModelProto:
    """Every row gets the first one's sum added: its first axis is free, but is no batch."""
    info = helper.make_tensor_value_info
    zero = helper.make_tensor("z", TensorProto.INT64, [1], [0])
    nodes = [
        helper.make_node("Gather", ["x", "z"], ["f"], axis=0),
        helper.make_node("Add", ["x", "f"], ["y"]),
    ]
    shape = ["time", 3]
    return _model(
        nodes, [info("x", TensorProto.FLOAT, shape)], [info("y", TensorProto.FLOAT, shape)], [zero]
    )


def save(path: Path, model: onnx.ModelProto) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    onnx.save(model, part)
    part.replace(path)


def save_engine(path: Path) -> None:
    """mlp() through optimize(), as a user would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = path.parent.parent / "source.onnx"
    save(source, mlp())
    engine = redline.optimize(
        str(source),
        {"x": np.ones((2, 8), np.float32)},
        dynamic={"batch": (1, 2, 16)},
        backends=["onnxruntime"],
        budget="12s",
    )
    with engine:
        engine.save(path)
    source.unlink()


def save_null(path: Path, behaviour: str, **setting) -> None:
    """An engine whose part does what the null backend can be told: crash, hang, slow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = TensorSpec("x", "float32", ("batch", 8)), TensorSpec("y", "float32", ("batch", 4))
    part = Part("null", {"behaviour": behaviour, **setting}, uses_graph=True)
    save_engine_file(
        path,
        name="null",
        signature=Signature(
            (x,), (y,), Tree("dict", ("x",), (Tree(),)), Tree(), (Dim("batch", 1, 2, 8),)
        ),
        parts=[(part, path.parent)],
        graph=mlp().SerializeToString(),
        check=None,
    )
