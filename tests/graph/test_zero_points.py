"""Weights in int8 have a zero point of their own, as ONNX Runtime's exact kernels need it."""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, load_model_from_string, numpy_helper

from redline.graph.serialize import from_bytes, graph_hash, to_bytes


def two_layers(how):
    """Two convolutions between Q/DQ pairs, whose weights go to both ends of a byte."""
    random = np.random.default_rng(0)
    arrays = {
        "step": np.float32(0.05), "zero": np.uint8(0), "scale": np.full(8, 0.01, np.float32),
        "w1": random.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8),
        "w2": random.integers(-127, 128, (8, 8, 3, 3)).astype(np.int8),
        "middle": np.zeros(8, np.int8),
    }  # fmt: skip
    nodes = []
    for n, given in ((1, "x"), (2, "c1")):
        weights = [f"w{n}", "scale"] + ["middle"] * (how == "shared")
        nodes += [
            helper.make_node("QuantizeLinear", [given, "step", "zero"], [f"q{n}"]),
            helper.make_node("DequantizeLinear", [f"q{n}", "step", "zero"], [f"f{n}"]),
            helper.make_node("DequantizeLinear", weights, [f"d{n}"], axis=0),
            helper.make_node("Conv", [f"f{n}", f"d{n}"], [f"c{n}"], kernel_shape=[3, 3]),
        ]
    nodes += [
        helper.make_node("QuantizeLinear", ["c2", "step", "zero"], ["q3"]),
        helper.make_node("DequantizeLinear", ["q3", "step", "zero"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, 8, 8))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 8, 4, 4))
    held = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()
            if how == "shared" or name != "middle"]  # fmt: skip
    graph = helper.make_graph(nodes, "two", [x], [y], held)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def run(data, level, exact):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    options.add_session_config_entry("session.x64quantprecision", exact)
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).uniform(0, 12, (1, 8, 8, 8)).astype(np.float32)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("how", ["left out", "shared"])
def test_exact_kernels_take_zero_points_that_were_left_out_or_shared(how):
    given = two_layers(how)
    plain = run(given, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, "0")
    made = to_bytes(from_bytes(given))
    found = run(made, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL, "1")
    assert plain.max() > 5
    np.testing.assert_allclose(found, plain, rtol=0, atol=0.051)  # one step of rounding
    zeros = [node.input[2] for node in load_model_from_string(made).graph.node
             if node.op_type == "DequantizeLinear" and node.input[0] in ("w1", "w2")]  # fmt: skip
    assert len(set(zeros)) == 2
    assert to_bytes(from_bytes(made)) == made
    assert graph_hash(from_bytes(made)) == graph_hash(from_bytes(given))


def test_what_has_its_own_stays_as_it_is():
    given = load_model_from_string(to_bytes(from_bytes(two_layers("shared"))))
    before = {tensor.name for tensor in given.graph.initializer}
    after = load_model_from_string(to_bytes(from_bytes(given.SerializeToString())))
    assert {tensor.name for tensor in after.graph.initializer} == before
