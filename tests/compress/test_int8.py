"""int8: what is quantised, what stays, and what cannot be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from redline.capture.capture import capture
from redline.capture.cases import Case
from redline.capture.reference import make_reference
from redline.compress.calibrate import collect
from redline.compress.float_nodes import plain_proto
from redline.compress.int8 import RANGES
from redline.compress.methods import compress
from redline.compress.mixed import (
    by_error,
    by_error_per_work,
    keeping,
    sensitivities,
    smallest,
)
from redline.compress.scheme import Scheme
from redline.errors import InputError, RefusedError, UnknownNameError
from redline.graph.serialize import graph_hash, to_bytes

pytest.importorskip("nncf")


@pytest.fixture(scope="module")
def model(digits):
    return capture(digits.net, digits.x[:1])


@pytest.fixture(scope="module")
def calibration(digits, model):
    return collect([digits.x[:100]], model.signature)


@pytest.fixture(scope="module")
def made(model, calibration):
    return compress(model.graph, Scheme("int8"), calibration)


def outputs(graph, x):
    session = onnxruntime.InferenceSession(plain_proto(graph).SerializeToString())
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: row[None].numpy()})[0] for row in x])


def test_every_layer_is_int8_and_the_numbers_stay_near(model, made, digits):
    assert {layer.precision for layer in made.layers} == {"int8"}
    assert sum(layer.operator in ("Conv", "Gemm", "MatMul") for layer in made.layers) == 4
    plain, small = (
        outputs(model.graph, digits.test_x[:100]),
        outputs(made.graph, digits.test_x[:100]),
    )
    assert np.mean(plain.argmax(1) == small.argmax(1)) >= 0.98
    assert 0 < np.linalg.norm(plain - small) / np.linalg.norm(plain) < 0.1
    assert len(to_bytes(made.graph)) < 0.45 * len(to_bytes(model.graph))


def test_the_given_graph_is_left_alone(model, calibration):
    before = graph_hash(model.graph)
    compress(model.graph, Scheme("int8"), calibration)
    assert graph_hash(model.graph) == before


def test_onnxruntime_runs_it_in_whole_numbers(made, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(plain_proto(made.graph).SerializeToString(), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3
    assert "Conv" not in kinds


@pytest.mark.parametrize("rows", [(), (5,)])  # a Gemm; a MatMul and an Add
def test_onnxruntime_multiplies_bytes_where_a_product_has_a_bias(rows, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).eval()
    x = torch.randn(40, *rows, 64)
    model = capture(net, x[:1])
    made = compress(model.graph, Scheme("int8"), collect([x], model.signature))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    onnxruntime.InferenceSession(to_bytes(made.graph), options)
    kinds = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert not {"Gemm", "MatMul"} & set(kinds)
    want, got = outputs(model.graph, x), outputs(made.graph, x)
    assert 0 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.05
    back = keeping(model.graph, made, frozenset(layer.node for layer in made.layers))
    np.testing.assert_array_equal(outputs(back.graph, x), want)


def test_layers_that_are_kept_are_the_float_ones_to_the_bit(model, made, digits):
    names = frozenset(layer.node for layer in made.layers)
    back = keeping(model.graph, made, names)
    assert {layer.precision for layer in back.layers} == {"fp32"}
    x = digits.test_x[:20]
    np.testing.assert_array_equal(outputs(back.graph, x), outputs(model.graph, x))


def test_sensitivity_finds_the_planted_channel(digits):
    model = capture(digits.planted, digits.x[:1])
    calibration = collect([digits.x[:100]], model.signature)
    made = compress(model.graph, Scheme("int8"), calibration)
    batches = calibration.batches[:20]
    reference = make_reference(model, [Case("calibration", batch) for batch in batches])
    told = sensitivities(model.graph, made, batches, reference.expected)
    order = by_error(told)
    known = {layer.node: layer.sensitivity for layer in told.layers}
    assert known[order[0]] > 0.3
    healthy = [layer.sensitivity for layer in told.layers if layer.operator == "Gemm"]
    assert healthy[0] < 0.05
    sets = [frozenset(order[:count]) for count in (1, 2, 4)]
    errors = []
    for names in (frozenset(), *sets):
        graph = keeping(model.graph, made, names).graph
        got, want = outputs(graph, digits.test_x[:50]), outputs(model.graph, digits.test_x[:50])
        errors.append(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert errors[0] > 0.3
    assert errors[-1] < 0.2 * errors[0]


def test_a_sensitivity_is_the_error_against_float64_with_that_layer_alone(model, made, calibration):
    batches = calibration.batches[:5]
    reference = make_reference(model, [Case("calibration", batch) for batch in batches])
    assert reference.expected[0][0].dtype == np.float64
    told = sensitivities(model.graph, made, batches, reference.expected)
    first = told.layers[0]
    alone = keeping(model.graph, made, frozenset(one.node for one in made.layers[1:])).graph
    got = outputs(alone, torch.from_numpy(np.concatenate([batch[0] for batch in batches])))
    want = np.concatenate([ys[0] for ys in reference.expected])
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert first.sensitivity == pytest.approx(error, rel=1e-6)
    assert 1e-4 < first.sensitivity < 0.1


def test_layers_that_cost_little_work_go_to_float_first(made):
    first, second, *rest = [layer.node for layer in made.layers]
    told = replace(made, layers=(
        *(replace(layer, sensitivity=0.01) for layer in made.layers[2:]),
        replace(made.layers[0], sensitivity=0.1), replace(made.layers[1], sensitivity=0.09),
    ))  # fmt: skip
    assert by_error(told)[:2] == [first, second]
    flops = {first: 1000.0, second: 10.0} | dict.fromkeys(rest, 1000.0)
    assert by_error_per_work(told, flops)[:2] == [second, first]


@given(most=st.integers(0, 60), least=st.integers(1, 70))
def test_the_least_count_that_holds_is_found_in_few_questions(most, least):
    asked = []

    def holds(count: int) -> bool:
        asked.append(count)
        return count >= least

    assert smallest(most, holds) == (least if least <= most else None)
    assert len(asked) == len(set(asked)) <= 13
    assert all(1 <= count <= most for count in asked)


def test_narrow_weights_fit_seven_bits(model, calibration):
    made = compress(model.graph, Scheme("int8", {"narrow": True}), calibration)
    tensors = [v.const_value.numpy() for v in made.graph.graph.initializers.values()]
    weights = [t for t in tensors if t.dtype == np.int8 and t.ndim > 1]
    assert len(weights) == 4
    assert max(int(np.abs(w.astype(int)).max()) for w in weights) <= 64


def test_each_way_to_find_ranges_does_what_it_says(digits, model):
    """One broken sample of a hundred: means cut it off, extremes and squares take it in."""
    spoilt = digits.x[:100].clone()
    spoilt[0, 0, 0, 0] = 500.0
    calibration = collect([spoilt], model.signature)
    steps, errors = {}, {}
    for ranges in RANGES:
        made = compress(model.graph, Scheme("int8", {"ranges": ranges}), calibration)
        held = made.graph.graph.initializers
        node = next(n for n in made.graph.graph if n.op_type == "QuantizeLinear")
        steps[ranges] = float(held[node.inputs[1].name].const_value.numpy())
        got, want = (
            outputs(made.graph, digits.test_x[:50]),
            outputs(model.graph, digits.test_x[:50]),
        )
        errors[ranges] = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert steps["minmax"] == pytest.approx(500 / 255, rel=0.02)
    assert steps["mean"] == pytest.approx((500 + 99) / 100 / 255, rel=0.02)
    assert max(errors["percentile"], errors["mean"]) < 0.5 * errors["minmax"]

    def squared(step: float) -> float:  # of rounding all values that calibration saw
        values = spoilt.numpy().astype(np.float64)
        return float(np.mean((np.clip(np.rint(values / step), 0, 255) * step - values) ** 2))

    assert squared(steps["mse"]) < 0.1 * min(squared(steps["mean"]), squared(steps["percentile"]))
    assert squared(steps["mse"]) < 1.05 * squared(steps["minmax"])


def test_smoothing_moves_outliers_of_activations_into_weights():
    """A transformer's channels of very different size (SmoothQuant, arXiv 2211.10438)."""
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 64)
            with torch.no_grad():
                self.norm.weight[:3] = 60.0  # outlier channels
                self.one.weight[:, :3] /= 60

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.relu(self.one(self.norm(x))))

    x = torch.randn(40, 8, 64)
    model = capture(Block().eval(), x[:1])
    calibration = collect([x], model.signature)
    lost = {}
    for smooth in (True, False):
        made = compress(model.graph, Scheme("int8", {"smooth": smooth}), calibration)
        got, want = outputs(made.graph, x[:20]), outputs(model.graph, x[:20])
        lost[smooth] = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert lost[True] < 0.6 * lost[False]
    plain = compress(model.graph, Scheme("int8"), calibration)
    got = outputs(plain.graph, x[:20])
    assert np.linalg.norm(got - want) / np.linalg.norm(want) == pytest.approx(lost[True], rel=0.05)


def test_biases_make_up_for_what_rounding_moves(digits, model, calibration):
    """With the biases as they were, the outputs are further off on average (arXiv 1906.04721).

    In 7 bits, which round more coarsely than the 8 that a CPU with VNNI takes.
    """
    made = compress(model.graph, Scheme("int8", {"narrow": True}), calibration)
    plain = {name: value.const_value.numpy()
             for name, value in model.graph.graph.initializers.items()}  # fmt: skip
    before = onnx_ir.serde.deserialize_model(plain_proto(made.graph))
    moved = 0
    for name, value in before.graph.initializers.items():
        if name in plain and len(value.shape) == 1:
            moved += not np.array_equal(value.const_value.numpy(), plain[name])
            value.const_value = onnx_ir.tensor(plain[name], name=name)
    assert moved == 3  # those of convolutions; the product's is a whole number
    want = outputs(model.graph, digits.x[:200])
    error, uncorrected = (
        np.linalg.norm((outputs(graph, digits.x[:200]) - want).mean(0))
        for graph in (made.graph, before)
    )
    assert error < 0.9 * uncorrected


def test_what_cannot_be_quantised_is_said(model, made, calibration):
    with pytest.raises(RefusedError, match="needs calibration data"):
        compress(model.graph, Scheme("int8"), None)
    with pytest.raises(RefusedError, match="quantised already"):
        compress(made.graph, Scheme("int8"), calibration)
    with pytest.raises(UnknownNameError, match="did you mean 'int8'"):
        compress(model.graph, Scheme("int9"), calibration)
    with pytest.raises(InputError, match="minmax"):
        compress(model.graph, Scheme("int8", {"ranges": "max"}), calibration)
    flat = capture(nn.Sequential(nn.ReLU(), nn.Sigmoid()).eval(), torch.zeros(1, 4))
    with pytest.raises(RefusedError, match="no operator can be quantised"):
        compress(flat.graph, Scheme("int8"), collect([torch.zeros(2, 4)], flat.signature))


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ([], "gave no batch"),
        (7, "is a int, expected a loader"),
        ([torch.zeros(2, 3, 8, 8)], r"has shape \[2, 3, 8, 8\], expected \[1, 1, 8, 8\]"),
        ([torch.zeros(2, 1, 8, 8, dtype=torch.int64)], "is int64, expected float32"),
        ([torch.full((1, 1, 8, 8), float("nan"))], "not finite"),
        ([{"picture": torch.zeros(1, 1, 8, 8)}], "has no input 'input'"),
        ([()], "0 entries for 1 inputs"),
        ([torch.zeros(0, 1, 8, 8)], "gave no batch"),
        (iter([]), "gave no batch"),
        ((torch.zeros(8)[9] for _ in range(2)), "loader raised IndexError"),
    ],
)
def test_calibration_that_does_not_fit_is_said_by_name(model, loader, message):
    with pytest.raises(InputError, match=message):
        collect(loader, model.signature)


def test_batches_smaller_than_a_call_are_said(digits):
    model = capture(digits.net, digits.x[:8])
    with pytest.raises(InputError, match="as many samples as a call takes: at most 3, expected 8"):
        collect([digits.x[:3], digits.x[:2]], model.signature)


def test_calibration_takes_what_loaders_give(model, digits):
    pairs = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(digits.x[:40], digits.y[:40]), batch_size=16
    )
    held = collect(pairs, model.signature)
    assert len(held.batches) == 40
    assert held.batches[3][0].shape == (1, 1, 8, 8)
    np.testing.assert_array_equal(held.batches[3][0], digits.x[3:4].numpy())
    assert held.source == "40 samples of a DataLoader"
    named = collect([{"input": digits.x[:4].double(), "label": 3}], model.signature)
    assert named.batches[0][0].dtype == np.float32
    assert len(collect([digits.x], model.signature, samples=7).batches) == 7
