"""docs/operators.md says what the registry says; a refusal names its reason."""

import numpy as np
import pytest
from native_models import compiled, graph, needs_compiler
from onnx import TensorProto, helper

import operators_reference
from redline.errors import RefusedError


def test_the_page_is_the_registry():
    written = operators_reference.PAGE.read_text(encoding="utf-8")
    assert written == operators_reference.page(), "run: make docs"


def test_at_least_ninety_operators():
    assert len(operators_reference.OPERATORS) >= 90


def refused(node, inputs, tmp_path):
    with pytest.raises(RefusedError) as caught:
        compiled(graph([node], inputs, ["y"]), tmp_path)
    return str(caught.value)


@needs_compiler
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("NonZero", "depends on values"),
        ("RandomNormalLike", "random numbers"),
        ("Det", "Det is not supported"),
    ],
)
def test_refusals_say_why(tmp_path, kind, reason):
    node = helper.make_node(kind, ["x"], ["y"])
    assert reason in refused(node, {"x": np.zeros((2, 2), np.float32)}, tmp_path)


@needs_compiler
def test_a_shape_that_comes_at_run_is_named(tmp_path):
    node = helper.make_node("Reshape", ["x", "s"], ["y"])
    inputs = {"x": np.zeros((2, 3), np.float32), "s": np.array([3, 2])}
    assert "Reshape's input 1 is not known at build" in refused(node, inputs, tmp_path)


@needs_compiler
def test_a_random_constant_is_not_folded(tmp_path):
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], shape=[2, 3], dtype=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    with pytest.raises(RefusedError, match="random numbers"):
        compiled(graph(nodes, {"x": np.zeros((2, 3), np.float32)}, ["y"]), tmp_path)
