"""Every schedule that tuning may choose computes the same, on every instruction set."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
from native_models import agree, graph, needs_compiler, opened, reference, targets
from onnx import helper

from redline.backends.base import Traits
from redline.backends.native import NativeBackend
from redline.native import isa, tune
from redline.native.compile import compile_graph, tune_graph
from redline.native.fuse import fuse
from redline.native.read import read
from redline.signature import Signature
from redline.tree import Tree

pytestmark = needs_compiler


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "size", "channels", "batch", "threads"),
    [
        (3, 2, (1, 1, 1, 1), (15, 17), (24, 72), 2, 2),
        (5, 2, (2, 2, 1, 1), (29, 20), (40, 160), 1, 1),
        pytest.param(3, 1, (1, 1, 1, 1), (14, 14), (16, 48), 1, 2, marks=pytest.mark.slow),
        pytest.param(5, 1, (2, 2, 2, 2), (16, 30), (17, 35), 1, 2, marks=pytest.mark.slow),
        pytest.param(3, 2, (0, 0, 1, 1), (28, 14), (32, 200), 1, 2, marks=pytest.mark.slow),
        pytest.param(3, 1, (0, 0, 0, 0), (40, 14), (16, 16), 2, 1, marks=pytest.mark.slow),
    ],
)
def test_widened_rows_in_a_ring(target, kernel, stride, pads, size, channels, batch, threads):
    narrow, wide = channels
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["m"]),
        helper.make_node("Conv", ["m", "f"], ["d"], group=wide, pads=pads, strides=[stride] * 2),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    weights = {
        "w": array(wide, narrow, 1, 1),
        "b": array(wide, seed=1),
        "f": array(wide, 1, kernel, kernel, seed=2),
    }
    x = array(batch, narrow, *size, seed=3)
    agree(graph(nodes, {"x": x}, ["y"], weights), [x], target=target, threads=threads)


def network():
    """Every kind of node that has schedules."""
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["a", "w1"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w2"], ["d"], pads=[1, 1, 1, 1], group=96),
        helper.make_node("Conv", ["d", "w3"], ["e"]),
        helper.make_node("Conv", ["e", "w4"], ["f"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["e", "f"], ["g"]),
        helper.make_node("GlobalAveragePool", ["g"], ["h"]),
        helper.make_node("Flatten", ["h"], ["i"]),
        helper.make_node("Gemm", ["i", "w5"], ["y"]),
    ]
    sizes = {
        "w0": (32, 3, 3, 3), "w1": (96, 32, 1, 1), "w2": (96, 1, 3, 3),
        "w3": (40, 96, 1, 1), "w4": (40, 40, 3, 3), "w5": (40, 70),
    }  # fmt: skip
    weights = {name: array(*shape, seed=i) * 0.2 for i, (name, shape) in enumerate(sizes.items())}
    x = array(1, 3, 30, 34)
    return graph(nodes, {"x": x}, ["y"], weights), x


def close(model, x, folder, target, choices, threads=2):
    read_again = onnx_ir.serde.deserialize_model(model)
    compile_graph(read_again, isa.get(target), threads, folder, winograd=True, choices=choices)
    runner = opened(model, [x], folder, threads=threads)
    (got,), (want,) = runner.run([x]), reference(model, [x])
    runner.close()
    scale = np.sqrt(np.mean(np.square(want)))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("target", targets())
def test_every_schedule_is_right(target, tmp_path):
    model, x = network()
    units = tune.space(fuse(read(onnx_ir.serde.deserialize_model(model))), isa.get(target), True)
    assert {kind for unit in units for way in unit.ways for kind in way} == {
        "tile", "order", "winograd", "expand",
    }  # fmt: skip
    assert all(2 <= len(unit.ways) <= tune.MOST and unit.ways[0] == {} for unit in units)
    for place in range(max(len(unit.ways) for unit in units)):
        choices = {unit.key: unit.ways[place % len(unit.ways)] for unit in units}
        folder = tmp_path / str(place)
        folder.mkdir()
        close(model, x, folder, target, choices)


def test_tuning_chooses_among_the_schedules_and_changes_no_result(tmp_path):
    model, x = network()
    target = targets()[0]
    again = onnx_ir.serde.deserialize_model(model)
    choices = tune_graph(again, isa.get(target), 2, [x], winograd=True, seconds=1)
    units = {u.key: u for u in tune.space(fuse(read(again)), isa.get(target), True)}
    assert all(way in units[name].ways for name, way in choices.items())
    close(model, x, tmp_path, target, choices)


def test_schedules_are_kept_for_other_weights_and_measured_anew_when_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLINE_CACHE_DIR", str(tmp_path))
    tuned = []

    def measured(units, build, inputs, seconds):
        tuned.append({unit.key: unit.ways[-1] for unit in units})
        return tuned[-1]

    monkeypatch.setattr("redline.native.compile.tune", measured)
    target = isa.get("portable")
    model, x = network()

    def choices(threads=2, **how):
        graph = onnx_ir.serde.deserialize_model(model)
        return tune_graph(graph, target, threads, [x], winograd=True, **how)

    first = choices()
    for tensor in model.graph.initializer:  # the same network, trained further
        tensor.raw_data = bytes(len(tensor.raw_data))
    assert choices() == first
    assert len(tuned) == 1
    choices(fresh=True)
    choices(threads=1)
    assert len(tuned) == 3
    for file in (tmp_path / "schedules").iterdir():
        file.write_text('{"no such group": {"tile": [1, 1]}}')
    assert choices() == first
    assert len(tuned) == 4
    for file in (tmp_path / "schedules").iterdir():
        file.write_text("broken")
    assert choices() == first
    assert len(tuned) == 5


class Clock:
    """A model whose groups take as long as their schedules say."""

    def __init__(self, costs, choices):
        self.names = [{name} for name in costs]
        self.times = [costs[name][choices.get(name, {}).get("tile", 0)] for name in costs]

    def profile(self):
        return np.array(self.times, float)

    def call(self):
        return float(sum(self.times))

    def close(self):
        pass


@pytest.mark.parametrize(
    ("costs", "want"),
    [
        ({"a": [5, 3, 4], "b": [1, 2, 3]}, {"a": {"tile": 1}}),
        ({"a": [5, 6, 4], "b": [9, 8, 7]}, {"a": {"tile": 2}, "b": {"tile": 2}}),
        ({"a": [1, 2, 2], "b": [1, 2, 3]}, {}),
    ],
)
def test_the_fastest_schedule_of_each_group_is_taken(monkeypatch, costs, want):
    ways = ({}, {"tile": 1}, {"tile": 2})
    units = [tune.Unit(name, frozenset({name}), ways) for name in costs]
    monkeypatch.setattr(tune, "_built", lambda choices, *_: Clock(costs, choices))
    assert tune.tune(units, lambda *_: None, [], seconds=60) == want


def test_no_further_variant_is_begun_when_the_time_is_over(monkeypatch):
    tried = []
    monkeypatch.setattr(
        tune,
        "_built",
        lambda choices, *_: tried.append(choices) or Clock({"a": [2, 1, 1]}, choices),
    )
    unit = tune.Unit("a", frozenset({"a"}), ({}, {"tile": 1}, {"tile": 2}))
    assert tune.tune([unit], lambda *_: None, [], seconds=0) == {"a": {"tile": 1}}
    assert {"a": {"tile": 2}} not in tried


def test_the_knob_leaves_tuned_candidates_out(monkeypatch):
    signature = Signature((), (), Tree(), Tree())
    traits = Traits(signature, 2, True, True, True, operators={"Conv": 3})
    for value, tuned in (("1", 1), ("0", 0)):
        monkeypatch.setenv("REDLINE_TUNE", value)
        found = NativeBackend().candidates(traits)
        assert sum(bool(one.setting.get("tuned")) for one in found) == tuned
