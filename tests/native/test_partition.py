"""Models with operators that the compiler lacks: cut, compiled in pieces, run in one engine."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from native_models import graph, needs_compiler, reference, with_types
from onnx import helper

import redline
from redline import backends
from redline.backends.base import Candidate, Source
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.errors import RefusedError, RunError
from redline.native.partition import Cut, lacking
from redline.runtime import run_native
from redline.signature import Signature, TensorSpec
from redline.tree import Tree

pytestmark = needs_compiler


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def detector():
    """A convolution, the boxes that are above a bound, and what is left of them."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalMaxPool", ["r"], ["m"]),
        helper.make_node("Flatten", ["m"], ["f"]),
        helper.make_node("Greater", ["f", "bound"], ["g"]),
        helper.make_node("NonZero", ["g"], ["n"]),
        helper.make_node("Cast", ["n"], ["k"], to=1),
        helper.make_node("Gemm", ["f", "v"], ["y"]),
    ]
    weights = {"w": array(24, 3, 3, 3), "v": array(24, 5, seed=1), "bound": np.float32(4.0)}
    x = array(1, 3, 20, 20, seed=2)
    model = with_types(graph(nodes, {"x": x}, ["y", "k"], weights))
    del model.graph.output[:]
    for name, shape in (("y", (1, 5)), ("k", (2, "found"))):
        model.graph.output.append(helper.make_tensor_value_info(name, 1, shape))
    return model, x


def test_only_what_is_lacking_is_left(tmp_path):
    model, _ = detector()
    cut = Cut(onnx_ir.serde.deserialize_model(model))
    assert [part.foreign for part in cut.segments] == [False, True]
    assert [node.op_type for node in cut.segments[1].nodes] == ["NonZero", "Cast"]
    assert cut.left["NonZero"] == "NonZero: its output's shape depends on values"
    assert cut.left["Cast"] == "the shapes of its inputs depend on values"


def test_the_engine_is_right_and_says_what_it_left(tmp_path):
    import onnxruntime

    model, x = detector()
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    engine = redline.optimize(path, {"x": x}, backends=["native"], budget=60, use_cache=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seed in (2, 3, 4):
        given = array(1, 3, 20, 20, seed=seed)
        got, want = engine(given), session.run(None, {"x": given})
        for name, other in zip(session.get_outputs(), want, strict=True):
            np.testing.assert_allclose(got[name.name], other, rtol=1e-4, atol=1e-4)
    assert "NonZero is left to ONNX Runtime" in engine.explain()


def test_a_shape_that_depends_on_values_leaves_the_rest_to_us(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"]),
        helper.make_node("Reshape", ["g", "shape"], ["y"]),
    ]
    inputs = {"x": array(4, 8), "shape": np.array([2, 12])}
    model = with_types(graph(nodes, inputs, ["y"], {"w": array(8, 6, seed=1)}))
    path = tmp_path / "net.onnx"
    onnx.save(model, path)
    leaf = Tree("leaf")
    specs = (TensorSpec("x", "float32", (4, 8)), TensorSpec("shape", "int64", (2,)))
    signature = Signature(specs, (), leaf, leaf)
    native, plain = backends.get("native"), Candidate("native", {"threads": 1, "winograd": False})
    part = native.build(Source(signature, tuple(inputs.values()), path), plain, tmp_path)
    runner = run_native.open_part(part, FolderStore(tmp_path), signature)
    whole = reference(model, [inputs["x"], np.array([2, 12])])[0]
    for shape in ([2, 12], [24, 1], [3, 8]):
        (got,) = runner.run([inputs["x"], np.array(shape)])
        np.testing.assert_allclose(got, whole.reshape(shape), rtol=1e-4, atol=1e-5)
    assert any("Reshape is left to ONNX Runtime" in line for line in runner.missed)
    runner.close()
    lost = graph(nodes[2:], {"g": array(4, 6), "shape": np.array([2, 12])}, ["y"])
    onnx.save(lost, path)
    with pytest.raises(RefusedError, match="not known at build"):
        native.build(Source(signature, tuple(inputs.values()), path), plain, tmp_path)


def test_the_segments_take_turns_and_are_few():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Det", ["a"], ["b"]),
        helper.make_node("Abs", ["b"], ["c"]),
        helper.make_node("MatMul", ["x", "w"], ["d"]),
        helper.make_node("Mul", ["c", "d"], ["y"]),
    ]
    model = graph(nodes, {"x": array(4, 4)}, ["y"], {"w": array(4, 4, seed=1)})
    inferred = onnx.shape_inference.infer_shapes(model)
    cut = Cut(onnx_ir.serde.deserialize_model(inferred))
    kinds = [[node.op_type for node in part.nodes] for part in cut.segments]
    assert kinds == [["MatMul", "MatMul"], ["Det"], ["Abs", "Mul"]]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([("MatMul", ["x", "w"], ["y"])], "nothing to cut"),
        ([("Relu", ["x"], ["a"]), ("NonZero", ["a"], ["y"])], "not worth a cut"),
    ],
)
def test_a_cut_that_brings_nothing_is_refused(nodes, reason):
    made = [helper.make_node(*node) for node in nodes]
    model = graph(made, {"x": array(4, 4)}, ["y"], {"w": array(4, 4)})
    with pytest.raises(RefusedError, match=reason):
        Cut(onnx_ir.serde.deserialize_model(model))


def test_what_is_lacking_is_known_by_name():
    assert lacking(["Conv", "Gelu", "NonZero", "Det"]) == ["NonZero", "Det"]


def test_a_plan_that_cannot_be_read_is_one_clear_error(tmp_path):
    (tmp_path / "plan.json").write_text("{}")
    part = Part("native", {"threads": 1, "partition": True}, files=("plan.json",))
    signature = Signature((TensorSpec("x", "float32", (4,)),), (), Tree(), Tree())
    with pytest.raises(RunError, match="plan cannot be read"):
        run_native.open_part(part, FolderStore(tmp_path), signature)
