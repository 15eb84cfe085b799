"""Bytes at both ends of their range, held against whole numbers: nothing saturates anywhere.

On a CPU without VNNI two products of bytes are added in 16 bits, and 255 * 127 * 2 does not fit.
"""

from __future__ import annotations

import importlib.util

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import redline
from redline.capture.capture import capture
from redline.compress.calibrate import collect
from redline.compress.float_nodes import plain_proto
from redline.compress.int8 import exact as whole
from redline.compress.methods import compress
from redline.compress.scheme import Scheme
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.runtime.runner import open_part
from redline.signature import Signature, TensorSpec, Tree

CHANNELS, ROWS = 64, 16


def extreme(operator: str, unsigned: bool, top: int) -> tuple[bytes, np.ndarray, np.ndarray, float]:
    """A layer between Q/DQ pairs whose sums are as large as bytes make them.

    Returns:
        The model, its input, the exact output in whole numbers, and one step of the output.
    """
    random = np.random.default_rng(0)
    high, kind = (255, np.uint8) if unsigned else (127, np.int8)
    conv = operator == "Conv"
    axis = 1 if operator == "MatMul" else 0
    shape = {"Conv": (32, CHANNELS, 3, 3), "Gemm": (32, CHANNELS), "MatMul": (CHANNELS, 32)}
    weights = np.full(shape[operator], top)
    weights[(slice(None),) * axis + (slice(1, None, 2),)] *= -1
    taken = random.integers(high - 3, high + 1, (1, CHANNELS, 5, 5) if conv else (ROWS, CHANNELS))
    step = np.float32(weights.size // 32 * high * top / 120)
    arrays = {
        "one": np.float32(1), "nothing": kind(0), "weights": weights.astype(np.int8),
        "scale": np.ones(32, np.float32), "middle": np.zeros(32, np.int8), "step": step,
        "zero": np.array(128, np.uint8) if unsigned else np.int8(0),
    }  # fmt: skip
    how = {"kernel_shape": [3, 3]} if conv else {"transB": 1} if operator == "Gemm" else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "nothing"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "one", "nothing"], ["x_f"]),
        helper.make_node("DequantizeLinear", ["weights", "scale", "middle"], ["w"], axis=axis),
        helper.make_node(operator, ["x_f", "w"], ["product"], **how),
        helper.make_node("QuantizeLinear", ["product", "step", "zero"], ["y_q"]),
        helper.make_node("DequantizeLinear", ["y_q", "step", "zero"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, taken.shape)
    rows = (1, 32, 3, 3) if conv else (ROWS, 32)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, rows)
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "extreme", [given], [made], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if conv:
        windows = np.lib.stride_tricks.sliding_window_view(taken, (3, 3), (2, 3))
        exact = np.einsum("bchwij,ocij->bohw", windows, weights)
    else:
        exact = taken @ (weights if axis else weights.T)
    return model.SerializeToString(), taken.astype(np.float32), exact, float(step)


def run(backend: str, model: bytes, x: np.ndarray, shape: tuple[int, ...], folder) -> np.ndarray:
    (folder / "graph.onnx").write_bytes(model)
    setting = {"threads": 1, "level": "all"} if backend == "onnxruntime" else {
        "threads": 1, "hint": "LATENCY"}  # fmt: skip
    ends = (TensorSpec("x", "float32", x.shape),), (TensorSpec("y", "float32", shape),)
    signature = Signature(*ends, Tree(), Tree())
    runner = open_part(Part(backend, setting, uses_graph=True), FolderStore(folder), signature)
    try:
        return runner.run([x])[0]
    finally:
        runner.close()


@pytest.mark.parametrize("unsigned", [True, False])
@pytest.mark.parametrize("operator", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize(("backend", "top"), [
    ("onnxruntime", 127), ("onnxruntime", 64), ("openvino", 64),
])  # fmt: skip
def test_sums_of_the_largest_bytes_are_exact(backend, top, operator, unsigned, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    model, x, exact, step = extreme(operator, unsigned, top)
    got = run(backend, model, x, exact.shape, tmp_path)
    assert np.abs(exact).max() > 100 * step  # far out, where a saturated sum could not be
    np.testing.assert_allclose(got, exact, rtol=0, atol=0.51 * step)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_int8_makes_of_extreme_layers_is_exact(backend, tmp_path):
    """Weights of one size and inputs at their end: every pair of products is the largest."""
    pytest.importorskip("nncf")
    pytest.importorskip(backend)
    net = nn.Sequential(nn.Conv2d(CHANNELS, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16))
    with torch.no_grad():
        for layer in (net[0], net[3]):
            layer.weight.fill_(0.02)
            layer.weight[1::2] *= -1
            layer.bias.zero_()
    x = torch.full((1, CHANNELS, 5, 5), 3.0)
    model = capture(net.eval(), x)
    ramp = torch.linspace(0, 3, 20).view(-1, 1, 1, 1) * torch.ones(20, CHANNELS, 5, 5)
    whole = Scheme("int8", {"ranges": "minmax"})  # activations are levels: only weights round
    proto = plain_proto(compress(model.graph, whole, collect([ramp], model.signature)).graph)
    want = net(x).detach().numpy()
    proto.graph.input[0].name, old = "x", proto.graph.input[0].name
    for node in proto.graph.node:
        node.input[:] = ["x" if name == old else name for name in node.input]
    got = run(backend, proto.SerializeToString(), x.numpy(), (1, 16), tmp_path)
    assert np.abs(want).max() > 90
    np.testing.assert_allclose(got, want, rtol=0.03)  # a 64th of a weight; saturated: half


@pytest.mark.slow
def test_an_engine_from_a_file_with_8_bit_weights_is_exact(tmp_path):
    """OpenVINO saturates on a CPU without VNNI; then its output is refused, not handed over."""
    pytest.importorskip("openvino")
    model, x, exact, step = extreme("Conv", unsigned=True, top=127)
    path = tmp_path / "given.onnx"
    path.write_bytes(model)
    with redline.optimize(
        path, x, backends=["openvino", "onnxruntime"], budget="60s", use_cache=False, progress=False
    ) as engine:
        np.testing.assert_allclose(engine(x), exact, rtol=0, atol=1.01 * step)
        records = engine.report.study.records
        rows = [row for row in records if row.timing]
        limit = 2 * step / np.sqrt(np.mean(exact.astype(float) ** 2))
        assert all(row.error < limit for row in rows)
        if not whole():  # else OpenVINO adds in 32 bits, too
            found = [row for row in records if row.backend == "openvino"]
            assert not any(row.timing for row in found)
            assert any(row.outcome == "wrong result" and row.error > limit for row in found)


def test_dynamic_int8_of_extreme_products_is_exact():
    layer = nn.Linear(CHANNELS, 32, bias=False).eval()
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.weight[1::2] *= -1
    x = torch.full((4, CHANNELS), 3.0)
    made = compress(capture(layer, x).graph, Scheme("int8-dynamic"))
    session = onnxruntime.InferenceSession(plain_proto(made.graph).SerializeToString())
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, layer(x).detach().numpy(), rtol=0.03)
