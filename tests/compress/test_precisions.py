"""optimize() with lower precisions: within what may be lost, or fp32 with the reason."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest
import torch
from torch import nn

import redline
from redline.errors import InputError
from redline.graph.serialize import to_bytes

pytest.importorskip("nncf")
HOW = {"backends": ["onnxruntime"], "budget": "120s", "use_cache": False, "progress": False}


@pytest.fixture(autouse=True)
def _busy(monkeypatch):
    monkeypatch.setenv("REDLINE_QUIET", "0")


def refused(engine, name):
    return next(r for r in engine.report.study.records if r.id == name and r.outcome == "refused")


def test_int8_within_the_budget_may_win_and_says_what_it_costs(digits, tmp_path):
    with redline.optimize(
        digits.net, digits.x[:1], precisions=("int8", "fp32"), calibration=[digits.x[:100]],
        evaluate=digits.accuracy, goal=redline.Goal(minimize="size", max_drop=0.02), **HOW,
    ) as engine:  # fmt: skip
        study = engine.report.study
        winner = next(record for record in study.records if record.winner)
        assert winner.precision == "int8"  # it is the smaller one
        assert digits.accuracy(digits.net) - winner.accuracy <= 0.02
        (tried,) = study.compressed
        assert tried.name == "int8"
        assert {layer.precision for layer in tried.layers} == {"int8"}
        want = engine(digits.test_x[:1])
        path = engine.save(tmp_path / "small.redline")
    with redline.load(path) as loaded:
        np.testing.assert_array_equal(loaded(digits.test_x[:1]), want)
        assert loaded.report.study.compressed == study.compressed


def test_garbage_ends_in_float_layers(digits):
    with redline.optimize(
        digits.planted, digits.x[:1], precisions=("int8", "fp32"), calibration=[digits.x[:100]],
        evaluate=digits.accuracy, goal=redline.Goal(max_drop=0.01), **HOW,
    ) as engine:  # fmt: skip
        tried = engine.report.study.compressed
        assert tried[0].name == "int8"
        assert tried[0].drop > 0.1
        base = next(one for one in tried if one.layers[0].sensitivity is not None)
        assert all(layer.sensitivity is not None for layer in base.layers)
        assert all(one.seconds > 0 and one.fp32_seconds > 0 for one in tried)
        assert digits.accuracy(digits.planted) - digits.accuracy(engine) <= 0.01
        kept = tried[-1]
        assert [one.name for one in tried[1:3]] == ["int8-mse", "int8-minmax"]
        holding = [one for one in tried if one.drop <= one.max_drop]
        if holding:
            assert all("-keep" in one.name for one in holding)
            assert any(layer.reason == "kept for accuracy" for layer in kept.layers)
        else:
            assert "loses" in refused(engine, "int8").reason


@pytest.mark.slow
def test_without_a_metric_the_outputs_are_compared_and_the_report_says_so(digits):
    with redline.optimize(
        digits.planted, digits.x[:1], precisions=("int8", "fp32"), calibration=[digits.x[:100]],
        **HOW,
    ) as engine:  # fmt: skip
        first = engine.report.study.compressed[0]
        assert "no metric was given: class agreement" in first.how
        assert first.drop > first.max_drop == 0.01


def test_without_calibration_fp32_stays_with_the_reason(digits):
    with redline.optimize(digits.net, digits.x[:1], precisions=("fp32", "int8"), **HOW) as engine:
        assert "needs calibration data" in refused(engine, "int8").reason
        assert next(r for r in engine.report.study.records if r.winner).precision == "fp32"


@pytest.mark.slow
def test_nothing_may_be_lost(digits):
    def strict(model) -> float:  # anything but fp32 scores less
        with torch.no_grad():
            got = torch.as_tensor(model(digits.test_x[:1]))
            return 1.0 - float((got - digits.net(digits.test_x[:1])).abs().max())

    with redline.optimize(
        digits.net, digits.x[:1], precisions=("fp32", "int8"), calibration=[digits.x[:50]],
        evaluate=strict, goal=redline.Goal(max_drop=1e-5), **HOW,
    ) as engine:  # fmt: skip
        assert "may be lost" in refused(engine, "int8").reason
        assert next(r for r in engine.report.study.records if r.winner).precision == "fp32"


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [(lambda model: float("nan"), "gave nan"), (lambda model: 1 / 0, "raised ZeroDivisionError")],
)
def test_a_metric_that_fails_is_one_clear_error(digits, evaluate, message):
    with pytest.raises(InputError, match=message):
        redline.optimize(
            digits.net, digits.x[:1], precisions=("fp32", "int8"), calibration=[digits.x[:8]],
            evaluate=evaluate, **HOW,
        )  # fmt: skip


def test_a_loader_that_does_not_fit_is_told_before_the_race(digits):
    with pytest.raises(InputError, match=r"expected \[1, 1, 8, 8\]"):
        redline.optimize(
            digits.net, digits.x[:1], precisions=("fp32", "int8"), calibration=[digits.x[:, :, 1:]],
            **HOW,
        )  # fmt: skip


def test_fp8_is_refused_on_a_cpu(digits):
    with redline.optimize(digits.net, digits.x[:1], precisions=("fp32", "fp8"), **HOW) as engine:
        assert "needs a GPU" in refused(engine, "fp8").reason


@pytest.mark.slow
def test_a_model_of_integers_alone_is_refused(tmp_path):
    class Lookup(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 + 1

    x = torch.arange(6).reshape(1, 6)
    with redline.optimize(
        Lookup().eval(), x, precisions=("fp32", "int8"), calibration=[x], **HOW
    ) as engine:
        assert "no operator can be quantised" in refused(engine, "int8").reason


def test_a_quantised_file_is_taken_as_it_is(digits, tmp_path):
    from redline.capture.capture import capture
    from redline.compress.calibrate import collect
    from redline.compress.methods import compress
    from redline.compress.scheme import Scheme

    model = capture(digits.net, digits.x[:1])
    made = compress(model.graph, Scheme("int8"), collect([digits.x[:50]], model.signature))
    path = tmp_path / "small.onnx"
    path.write_bytes(to_bytes(made.graph))
    with redline.optimize(
        path, digits.x[:1], precisions=("fp32", "int8"), calibration=[digits.x[:50]], **HOW
    ) as engine:
        assert "quantised already" in refused(engine, "int8").reason


def test_a_metric_that_sees_nothing_lets_no_garbage_pass(digits, monkeypatch):
    def garbage(graph, scheme, calibration):
        made = compress_for_real(graph, scheme, calibration)
        for name, value in made.graph.graph.initializers.items():
            array = value.const_value.numpy()
            if array.dtype == np.int8 and array.ndim > 1:
                noise = np.random.default_rng(0).integers(-127, 128, array.shape).astype(np.int8)
                value.const_value = onnx_ir.tensor(noise, name=name)
        return made

    from redline import lowering

    compress_for_real = lowering.compress
    monkeypatch.setattr(lowering, "compress", garbage)
    with redline.optimize(
        digits.net, digits.x[:1], precisions=("int8",), calibration=[digits.x[:50]],
        evaluate=lambda model: 1.0, goal=redline.Goal(minimize="size", max_drop=0.9), **HOW,
    ) as engine:  # fmt: skip
        rows = engine.report.study.compressed
        assert rows[0].drop == float("inf")
        assert not any(r.precision == "int8" and r.winner for r in engine.report.study.records)
        with torch.no_grad():
            want = digits.net(digits.x[:50]).argmax(1)
            found = torch.stack([torch.as_tensor(engine(one[None]))[0] for one in digits.x[:50]])
        assert (found.argmax(1) == want).float().mean() > 0.9


def make(digits, tmp_path, evaluate, deadline=float("inf")):
    """make_variants() alone."""
    from redline.api import _with_graph_written
    from redline.capture.capture import capture
    from redline.capture.cases import make_cases
    from redline.variants import make_variants

    model = _with_graph_written(capture(digits.net, digits.x[:1]), tmp_path)
    cases = make_cases(model.signature, model.example)
    goal = redline.Goal(max_drop=0.02)
    return make_variants(
        model, tmp_path, ["int8", "bf16"], [digits.x[:50]], evaluate, goal, cases,
        lambda text: None, deadline,
    )  # fmt: skip


def test_a_metric_that_fails_on_a_compressed_graph_refuses_that_graph(digits, tmp_path):
    def only_the_model(model):
        if not isinstance(model, nn.Module):
            raise TypeError("no module")
        return 0.9

    found = make(digits, tmp_path, only_the_model)
    assert not found.ready
    assert all("TypeError: no module" in row.reason for row in found.refused)


@pytest.mark.slow
def test_graphs_are_timed_beside_fp32_and_cost_no_more_than_their_share(digits, tmp_path):
    found = make(digits, tmp_path, digits.accuracy)
    assert [one.name for one in found.tried] == ["int8", "bf16"]
    assert all(one.seconds > 0 and one.fp32_seconds > 0 for one in found.tried)
    late = make(digits, tmp_path, digits.accuracy, deadline=0.0)
    assert not late.ready
    assert {row.reason for row in late.refused} == {"no time was left to make it"}


def test_ctrl_c_while_graphs_are_made_keeps_what_is_ready(digits, tmp_path):
    calls = []

    def interrupted(model):
        calls.append(model)
        if len(calls) == 3:  # the model, int8, bf16
            raise KeyboardInterrupt
        return digits.accuracy(model)

    found = make(digits, tmp_path, interrupted)
    assert found.cancelled
    assert [one.name for one in found.ready] == ["int8"]
    assert "Ctrl-C" in found.refused[0].reason


@pytest.mark.slow
def test_backends_without_kernels_for_it_say_so():
    from redline.backends import get, names

    def takes(precision):
        return {name for name in names() if not get(name).lacks(precision)}

    assert takes("int8") == {"native", "onnxruntime", "openvino"}
    assert takes("int8-dynamic") == takes("int4-weights") == {"onnxruntime", "openvino"}
