"""Small ONNX models in Triton's layout, and a real plane that serves them."""

import asyncio

import onnx
from onnx import TensorProto, helper

from redline.serve.plane import Plane
from redline.serve.repository import Repository
from redline.serve.settings import Settings

ONNX = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16, "BYTES": TensorProto.STRING,
}  # fmt: skip


def write(root, name, nodes, inputs, outputs, version=1, config=None):
    """inputs and outputs: name -> (datatype, shape)."""
    ends = [
        [helper.make_tensor_value_info(n, ONNX[t], shape) for n, (t, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    model = helper.make_model(
        helper.make_graph(nodes, name, *ends),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip
    onnx.checker.check_model(model)
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    if config:
        (root / name / "config.pbtxt").write_text(config, encoding="utf-8")


def identity(root, name, datatype, shape, config="max_batch_size: 0"):
    """A model whose output y is its input x."""
    end = {"x": (datatype, shape)}
    node = helper.make_node("Identity", ["x"], ["y"])
    write(root, name, [node], end, {"y": end["x"]}, config=config)


def simple(root, name="simple", datatype="INT32"):
    """Triton's own example: OUTPUT0 is the sum, OUTPUT1 the difference."""
    ends = [{f"{side}{n}": (datatype, ["n", 16]) for n in (0, 1)} for side in ("INPUT", "OUTPUT")]
    nodes = [
        helper.make_node(op, ["INPUT0", "INPUT1"], [f"OUTPUT{n}"])
        for n, op in enumerate(("Add", "Sub"))
    ]
    write(root, name, nodes, *ends, config="max_batch_size: 8")


def real_plane(root, **changes):
    """A plane that serves a folder."""
    settings = Settings(models=root, threads=1, grpc_port=0, http_port=0, **changes)

    async def make():
        return Plane(Repository(settings), settings)

    return asyncio.run(make())
