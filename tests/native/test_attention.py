"""Attention is one group, and computes what its three nodes do."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from native_models import agree, graph, needs_compiler, targets
from onnx import helper

from redline.native.attention import fuse_attention
from redline.native.fuse import fuse
from redline.native.read import read

pytestmark = needs_compiler


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def kinds(model) -> list[str]:
    program = fuse_attention(fuse(read(onnx_ir.serde.deserialize_model(model))))
    return [node.kind for node in program.nodes]


def heads(batch: int, m: int, n: int, count: int, width: int):
    """torch's own form: heads are views of rows, queries and keys are scaled, rows come back."""
    nodes = []
    for name in "qkv":
        order = [0, 2, 3, 1] if name == "k" else [0, 2, 1, 3]
        nodes += [
            helper.make_node("Reshape", [name, f"{name}_shape"], [f"{name}r"]),
            helper.make_node("Transpose", [f"{name}r"], [f"{name}t"], perm=order),
        ]
    nodes += [
        helper.make_node("Mul", ["qt", "scale"], ["qs"]),
        helper.make_node("Mul", ["kt", "scale"], ["ks"]),
        helper.make_node("MatMul", ["qs", "ks"], ["scores"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("IsNaN", ["weights"], ["odd"]),
        helper.make_node("Where", ["odd", "zero", "weights"], ["safe"]),
        helper.make_node("MatMul", ["safe", "vt"], ["o"]),
        helper.make_node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["ot", "o_shape"], ["y"]),
    ]
    weights = {
        "scale": np.array(width**-0.25, np.float32),
        "zero": np.array(0, np.float32),
        "q_shape": np.array([batch, m, count, width]),
        "k_shape": np.array([batch, n, count, width]),
        "v_shape": np.array([batch, n, count, width]),
        "o_shape": np.array([batch, m, count * width]),
    }
    return nodes, weights


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize(
    ("batch", "m", "n", "count", "width", "threads"),
    [
        (1, 37, 37, 3, 20, 2),
        (2, 5, 50, 2, 16, 1),
        pytest.param(1, 197, 197, 6, 64, 2, marks=pytest.mark.slow),
        pytest.param(3, 1, 33, 4, 8, 2, marks=pytest.mark.slow),
        pytest.param(1, 64, 300, 1, 40, 2, marks=pytest.mark.slow),
    ],
)
def test_scaled_heads_with_a_mask(target, batch, m, n, count, width, threads):
    nodes, weights = heads(batch, m, n, count, width)
    wide = count * width
    inputs = {
        "q": array(batch, m, wide),
        "k": array(batch, n, wide, seed=1),
        "v": array(batch, n, wide, seed=2),
        "mask": np.where(array(batch, 1, m, n, seed=3) > 1, -np.inf, 0).astype(np.float32),
    }
    inputs["mask"][..., 0] = 0
    inputs["mask"][0, 0, 0] = -np.inf  # nobody may be seen: weights are NaN, then 0
    model = graph(nodes, inputs, ["y"], weights)
    found = kinds(model)  # a loop may write the output
    assert found[0] == "attention"
    assert found[1:] in ([], ["loop"])
    with np.errstate(invalid="ignore"):  # in the reference
        agree(model, list(inputs.values()), target=target, threads=threads)


@pytest.mark.parametrize("target", targets())
def test_a_causal_mask_by_row_and_a_bias_by_key(target):
    m = 19
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Div", ["s", "root"], ["d"]),
        helper.make_node("Add", ["d", "causal"], ["c"]),
        helper.make_node("Add", ["c", "bias"], ["b"]),
        helper.make_node("Softmax", ["b"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    inputs = {"q": array(2, m, 8), "k": array(2, 8, m, seed=1), "v": array(2, m, 12, seed=2)}
    inputs["bias"] = array(2, 1, m, seed=3)
    weights = {
        "causal": np.triu(np.full((m, m), -np.inf, np.float32), 1),
        "root": np.array(2.5, np.float32),
    }
    model = graph(nodes, inputs, ["y"], weights)
    assert kinds(model) == ["attention"]
    agree(model, list(inputs.values()), target=target, threads=2)


def test_weights_that_are_an_output_stay():
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    inputs = {"q": array(1, 9, 8), "k": array(1, 8, 9, seed=1), "v": array(1, 9, 8, seed=2)}
    model = graph(nodes, inputs, ["y", "p"], {})
    assert "softmax" in kinds(model)
    agree(model, list(inputs.values()), threads=1)
