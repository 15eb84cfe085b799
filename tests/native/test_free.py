"""One build for every size within a range: right at all of them, refused where it cannot be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx_ir
import pytest
import torch
from native_models import graph, needs_compiler, reference, targets
from onnx import helper

from redline import backends
from redline.backends.base import Source, Traits
from redline.capture.capture import capture
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.errors import RefusedError, RunError
from redline.graph import serialize
from redline.native import isa
from redline.native.compile import compile_free
from redline.native.free import _cpp, _Grid, evaluate
from redline.native.ir import No
from redline.runtime.run_native import open_part
from redline.signature import Dim, Signature, TensorSpec
from redline.tree import Tree

pytestmark = needs_compiler
HEADS, WIDTH = 4, 8
WIDE = HEADS * WIDTH
node = helper.make_node


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def encoder():
    """Attention with a causal mask cut to the length, norms, products, a mean over the length."""
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", ["x", f"w{name}"], [f"{name}0"]),
            node("Reshape", [f"{name}0", "split"], [f"{name}1"]),
            node("Transpose", [f"{name}1"], [f"{name}2"], perm=order),
        ]
    nodes += [
        node("Shape", ["x"], ["length"], start=1, end=2),
        node("Slice", ["mask", "zero", "length", "one"], ["m1"]),
        node("Slice", ["m1", "zero", "length", "zero"], ["m2"]),
        node("MatMul", ["q2", "k2"], ["s"]),
        node("Mul", ["s", "scale"], ["s2"]),
        node("Add", ["s2", "m2"], ["s3"]),
        node("Softmax", ["s3"], ["p"], axis=-1),
        node("MatMul", ["p", "v2"], ["o"]),
        node("Transpose", ["o"], ["o1"], perm=[0, 2, 1, 3]),
        node("Reshape", ["o1", "join"], ["o2"]),
        node("MatMul", ["o2", "wo"], ["o3"]),
        node("Add", ["o3", "x"], ["r"]),
        node("LayerNormalization", ["r", "gain"], ["y"]),
        node("ReduceMean", ["y", "one"], ["z"], keepdims=0),
    ]
    weights = {f"w{n}": array(WIDE, WIDE, seed=i) / 6 for i, n in enumerate("qkvo")}
    weights |= {
        "split": np.array([0, 0, HEADS, WIDTH]), "join": np.array([0, 0, WIDE]),
        "scale": np.array(0.35, np.float32), "gain": array(WIDE, seed=9),
        "mask": np.triu(np.full((80, 80), -np.inf, np.float32), 1),
        "zero": np.array([0]), "one": np.array([1]),
    }  # fmt: skip
    return graph(nodes, {"x": array(1, 8, WIDE)}, ["y", "z"], weights)


def opened(model, shape, dims, folder, *, target="", threads=2):
    """The free build of a model with one input, opened."""
    read, chosen = onnx_ir.serde.deserialize_model(model), isa.get(target or targets()[0])
    quick = replace(chosen, flags=(*chosen.flags, "-O1"))
    made = compile_free(read, [shape], dims, quick, threads, folder)
    leaf = Tree("leaf")
    signature = Signature((TensorSpec("x", "float32", shape),), (), leaf, leaf, tuple(dims))
    setting = {"threads": threads, "free": True}
    part = Part("native", setting, files=("model.so", "weights.bin"), code=True)
    return open_part(part, FolderStore(folder), signature), made


def agree(runner, model, x):
    for got, want in zip(runner.run([x]), reference(model, [x]), strict=True):
        assert got.shape == want.shape
        scale = float(np.sqrt(np.mean(np.square(want))))
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.parametrize(
    "target", [targets()[0], *(pytest.param(t, marks=pytest.mark.slow) for t in targets()[1:])]
)
def test_a_sequence_of_any_length(target, tmp_path):
    runner, made = opened(encoder(), (1, "s", WIDE), [Dim("s", 1, 16, 80)], tmp_path, target=target)
    kinds = [n.kind for n in made.program.nodes]
    assert {"gemm", "attention", "layernorm"} <= set(kinds)
    for size in (1, 2, 6, 16, 77, 80, 5):
        agree(runner, encoder(), array(1, size, WIDE, seed=size))
    runner.close()


@pytest.mark.parametrize("k", [64, 1024])
def test_products_of_whole_numbers(k, tmp_path):
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w", "ws"], ["wd"]),
        node("MatMul", ["d", "wd"], ["y"]),
    ]
    weights = {
        "s": np.array(0.03, np.float32), "z": np.array(120, np.uint8),
        "w": np.random.default_rng(0).integers(-128, 128, (k, 70)).astype(np.int8),
        "ws": np.linspace(0.001, 0.01, 70, dtype=np.float32),
    }  # fmt: skip
    model = graph(nodes, {"x": array(1, 8, k)}, ["y"], weights)
    runner, made = opened(model, (1, "s", k), [Dim("s", 1, 8, 60)], tmp_path)
    assert [n for n in made.program.nodes if n.whole]
    for size in (1, 7, 13, 60):
        agree(runner, model, array(1, size, k, seed=size))
    runner.close()


def test_batch_and_length_at_once_and_many_callers(tmp_path):
    dims = [Dim("b", 1, 2, 9), Dim("s", 1, 16, 80)]
    runner, _ = opened(encoder(), ("b", "s", WIDE), dims, tmp_path)
    sizes = [(1, 1), (1, 80), (9, 80), (9, 1), (2, 16), (3, 77), (8, 64), (5, 2)]
    inputs = [array(*size, WIDE, seed=i) for i, size in enumerate(sizes)]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda x: runner.run([x]), inputs * 3))
    for x, found in zip(inputs * 3, results, strict=True):
        for got, want in zip(found, reference(encoder(), [x]), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    short, long = (runner.profile([array(1, s, WIDE)], calls=2) for s in (10, 20))
    for a, b in zip(short, long, strict=True):
        assert b["flops"] in (0, 2 * a["flops"], 4 * a["flops"])
        assert b["seconds"] >= 0
    runner.close()
    with pytest.raises(RunError, match="closed"):
        runner.run([inputs[0]])


def test_what_lies_outside_is_refused_by_name(tmp_path):
    runner, _ = opened(encoder(), (1, "s", WIDE), [Dim("s", 2, 16, 80)], tmp_path)
    for wrong in (
        array(1, 81, WIDE), array(1, 1, WIDE), array(2, 8, WIDE), array(8, WIDE),
        array(1, 8, WIDE).astype(np.float64),
    ):  # fmt: skip
        with pytest.raises(RunError, match="s 2 to 80"):
            runner.run([wrong])
    strided = np.asfortranarray(array(1, 9, WIDE))
    np.testing.assert_array_equal(
        runner.run([strided])[0], runner.run([np.ascontiguousarray(strided)])[0]
    )
    runner.close()


def test_the_steps_of_an_lstm(tmp_path):
    nodes = [
        node("LSTM", ["x", "w", "r", "b"], ["h"], hidden_size=20),
        node("Squeeze", ["h", "axis"], ["s"]),
        node("MatMul", ["s", "v"], ["y"]),
    ]
    weights = {
        "w": array(1, 80, 6) / 3, "r": array(1, 80, 20, seed=1) / 5, "b": array(1, 160, seed=2),
        "v": array(20, 5, seed=3), "axis": np.array([1]),
    }  # fmt: skip
    model = graph(nodes, {"x": array(16, 2, 6)}, ["y"], weights)
    runner, made = opened(model, ("s", 2, 6), [Dim("s", 1, 16, 64)], tmp_path)
    assert "lstm" in [n.kind for n in made.program.nodes]
    for size in (1, 2, 5, 16, 64):
        agree(runner, model, array(size, 2, 6, seed=size))
    runner.close()


class Tokens(torch.nn.Module):
    """Two embeddings, one of them by the position: constants that both sizes cut."""

    def __init__(self):
        super().__init__()
        self.words, self.places = torch.nn.Embedding(30, 16), torch.nn.Embedding(64, 16)
        self.out = torch.nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1]).expand(ids.shape)
        return self.out(torch.nn.functional.gelu(self.words(ids) + self.places(places)))


def captured(module, example, dynamic, folder):
    """The native part of a captured module by the backend's own candidate, opened."""
    model = capture(module.eval(), example, dynamic=dynamic)
    path = folder / "graph.onnx"
    path.write_bytes(serialize.to_bytes(model.graph))
    operators = {n.op_type: 1 for n in model.graph.graph}
    native = backends.get("native")
    offered = native.candidates(Traits(model.signature, 2, True, True, True, operators))
    (candidate,) = [c for c in offered if c.setting.get("free")]
    part = native.build(Source(model.signature, tuple(model.example), path), candidate, folder)
    return open_part(part, FolderStore(folder), model.signature)


def test_a_captured_module(tmp_path):
    module = Tokens()
    axes = {0: ("batch", 1, 2, 9), 1: ("length", 2, 16, 64)}
    runner = captured(module, torch.randint(0, 30, (2, 16)), {"ids": axes}, tmp_path)
    for batch, length in ((1, 2), (1, 64), (3, 5), (9, 64), (2, 16), (4, 33)):
        ids = torch.randint(0, 30, (batch, length))
        with torch.no_grad():
            want = module(ids).numpy()
        np.testing.assert_allclose(runner.run([ids.numpy()])[0], want, rtol=1e-4, atol=1e-5)
    runner.close()


def refused(model, dims, folder, shape=(1, "s", WIDE)):
    with pytest.raises(RefusedError) as caught:
        opened(model, shape, dims, folder)
    return str(caught.value)


def test_what_cannot_be_free_says_why(tmp_path):
    conv = graph(
        [node("Conv", ["x", "w"], ["y"])], {"x": array(1, 8, WIDE)}, ["y"], {"w": array(32, 8, 3)}
    )
    assert "made for one size" in refused(conv, [Dim("s", 8, 8, 99)], tmp_path, (1, 8, "s"))
    assert "too small a range" in refused(encoder(), [Dim("s", 2, 4, 6)], tmp_path)
    by_length = graph(  # 1 / length is folded into a constant
        [
            node("Shape", ["x"], ["n"], start=1, end=2),
            node("Cast", ["n"], ["f"], to=1),
            node("Sqrt", ["f"], ["d"]),
            node("Div", ["x", "d"], ["y"]),
        ],
        {"x": array(1, 8, WIDE)}, ["y"],
    )  # fmt: skip
    assert "depend on the sizes" in refused(by_length, [Dim("s", 2, 16, 80)], tmp_path)
    halves = graph(  # half the length is no polynomial of it
        [
            node("Shape", ["x"], ["n"], start=1, end=2),
            node("Div", ["n", "two"], ["h"]),
            node("Slice", ["x", "zero", "h", "one"], ["a"]),
            node("Relu", ["a"], ["y"]),
        ],
        {"x": array(1, 8, WIDE)}, ["y"],
        {"two": np.array([2]), "zero": np.array([0]), "one": np.array([1])},
    )  # fmt: skip
    assert "polynomial" in refused(halves, [Dim("s", 2, 16, 80)], tmp_path)
    rest = graph(  # what the greatest size has no room for
        [
            node("Shape", ["x"], ["n"], start=1, end=2),
            node("Slice", ["table", "n", "end", "zero"], ["a"]),
            node("ReduceSum", ["x"], ["sum"]),
            node("Mul", ["sum", "a"], ["b"]),
            node("Softmax", ["b"], ["y"], axis=1),
        ],
        {"x": array(1, 8, WIDE)}, ["y"],
        {"table": np.ones((90, 4), np.float32), "end": np.array([90]), "zero": np.array([0])},
    )  # fmt: skip
    told = refused(rest, [Dim("s", 2, 16, 80)], tmp_path)
    assert "larger at a smaller size" in told or "depend on the sizes" in told


def test_a_number_is_found_from_some_sizes_and_held_against_others():
    grid = _Grid.of([Dim("b", 1, 2, 40), Dim("s", 1, 16, 200)])
    points = [(p["b"], p["s"]) for p in grid.points()]
    assert len(points) > 9
    terms = grid.terms(tuple(7 * b * s * s - 3 * s + 12 for b, s in points))
    assert not isinstance(terms, int)
    assert sorted(terms) == [(-3, 0, 1), (7, 1, 2), (12, 0, 0)]
    assert all(evaluate(terms, p) == 7 * p[0] * p[1] ** 2 - 3 * p[1] + 12 for p in points)
    assert eval(_cpp(terms), {"S0": 5, "S1": 9}) == 7 * 5 * 81 - 27 + 12
    assert grid.terms((4,) * len(points)) == 4
    for odd in (lambda b, s: s**4, lambda b, s: -(-s // 8), lambda b, s: max(b, s)):
        with pytest.raises(No, match="no polynomial"):
            grid.terms(tuple(odd(*p) for p in points))
    assert "S0" in grid.text([f"x[{b}] = {b}L;" for b, _ in points])
    with pytest.raises(No, match="shape of a kernel"):
        grid.text([f"rl::gemm<{b}, 2>(x);" for b, _ in points])
    with pytest.raises(No, match="differs"):
        grid.text([f"f{b}(x);" for b, _ in points])
