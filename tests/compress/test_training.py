"""Methods that train: what they reach on digits, what they leave alone, what they refuse."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from training_kit import LOSS, Skip, in_onnxruntime

import redline
from redline.compress import Scheme, convert_qat, distill, prepare_qat, prune, qat
from redline.compress import what_was_done as record
from redline.compress.distillation import soft_loss
from redline.compress.lsq import best_step
from redline.compress.modules import fold_norms
from redline.errors import (
    InputError,
    ModelError,
    RefusedError,
    RunError,
    UnknownNameError,
)
from redline.graph.serialize import to_bytes

# --- qat


@pytest.mark.usefixtures("untouched")
def test_qat_recovers_most_of_what_few_bits_lose(skip):
    scheme = Scheme("qat", {"weights": 2, "edges": 4})
    rounded = qat(skip.net, skip.loader, LOSS, 0, scheme=scheme)
    trained = qat(skip.net, skip.loader, LOSS, 3, scheme=scheme, evaluate=skip.accuracy)
    plain, lost = skip.accuracy(skip.net), skip.accuracy(rounded)
    assert lost < plain - 0.05, "rounding must lose something for the test to mean anything"
    assert skip.accuracy(trained) - lost > 0.5 * (plain - lost)
    history = record(trained).trained.history
    assert [each.number for each in history] == [0, 1, 2, 3]
    assert history[0].score == pytest.approx(lost, abs=0.01)


@pytest.mark.parametrize(("bits", "low", "high"), [(8, -127, 127), (4, -8, 7), (2, -2, 1)])
@pytest.mark.usefixtures("untouched")
def test_qat_exports_pairs_that_onnxruntime_runs_alike(skip, bits, low, high, tmp_path):
    setting = {"weights": bits, "edges": bits, "narrow": False}
    made = qat(skip.net, skip.loader, LOSS, 0, scheme=Scheme("qat", setting))
    graph, found, run = in_onnxruntime(made, skip.x[:40], tmp_path)
    kinds = [node.op_type for node in graph.graph]
    layers = [layer for layer in record(made).layers if layer.precision == f"{bits}-bit weights"]
    assert len(layers) == 5
    # one for the input of each layer, and for the output of each convolution
    assert kinds.count("QuantizeLinear") == 9
    assert kinds.count("DequantizeLinear") == 14
    assert run.count("QLinearConv") == 4
    assert "Conv" not in run
    assert "BatchNormalization" not in kinds
    weights = [value.const_value.numpy() for value in graph.graph.initializers.values()
               if value.dtype.name == "INT8" and len(value.shape) > 1]  # fmt: skip
    assert len(weights) == 5
    assert all(low <= weight.min() and weight.max() <= high for weight in weights)
    with torch.no_grad():
        wanted = made(skip.x[:40]).numpy()
    # integer kernels may round one step apart
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.95


def test_qat_runs_in_openvino(skip):
    pytest.importorskip("openvino")
    from redline.capture.capture import capture
    from redline.runtime.run_openvino import CORE

    made = qat(skip.net, skip.loader, LOSS, 0, scheme=Scheme("qat", {"weights": 4}))
    model = CORE.compile_model(CORE.read_model(to_bytes(capture(made, skip.x[:1]).graph)), "CPU")
    found = np.concatenate([model(row[None].numpy())[0] for row in skip.x[:40]])
    with torch.no_grad():
        wanted = made(skip.x[:40]).numpy()
    assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.95


def test_folding_a_norm_changes_no_output_and_a_shared_tensor_is_left(skip):
    folded = fold_norms(skip.net, (skip.x,))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(skip.x), skip.net(skip.x), rtol=1e-4, atol=1e-4)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.norm.running_var.fill_(9.0)

        def forward(self, x):
            x = self.conv(x)
            return self.norm(x) + x

    both = Both().eval()
    assert isinstance(fold_norms(both, (skip.x,)).norm, nn.BatchNorm2d)


def test_prepared_modules_train_in_any_loop(skip):
    prepared = prepare_qat(skip.net, skip.loader, Scheme("qat", {"weights": 4}))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01, momentum=0.9)
    before = {name: p.detach().clone() for name, p in prepared.named_parameters()}
    for x, y in skip.loader[:4]:
        optimizer.zero_grad()
        LOSS(prepared(x), y).backward()
        optimizer.step()
    moved = [name for name, p in prepared.named_parameters() if not torch.equal(p, before[name])]
    # all are learned but that of the pixels: 0 to 16 sixteenths lie on the grid already
    assert sum(name.endswith("log_step") for name in moved) >= 9
    with torch.no_grad():
        wanted = prepared.eval()(skip.x)
        torch.testing.assert_close(convert_qat(prepared)(skip.x), wanted, rtol=0.05, atol=0.05)


def test_steps_minimise_the_squared_error():
    torch.manual_seed(0)
    x = torch.randn(3, 4096) * torch.tensor([[0.01], [1.0], [50.0]])
    step = best_step(x, -8, 7)
    # the best 4-bit uniform quantiser of a normal variable has steps of 0.335 (Max, 1960)
    torch.testing.assert_close(step / x.std(1), torch.full((3,), 0.335), rtol=0.08, atol=0)
    assert best_step(torch.zeros(1, 8), -8, 7).isfinite().all()


# --- distillation


def test_the_soft_loss_is_hintons():
    got, wanted = torch.randn(5, 7), torch.randn(5, 7)
    p, q = torch.softmax(wanted / 3, 1), torch.softmax(got / 3, 1)
    hand = 9 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(soft_loss(got, wanted, 3.0), hand)


@pytest.mark.usefixtures("untouched")
def test_a_student_learns_from_a_teacher_without_a_label(skip):
    torch.manual_seed(1)
    student, teacher = Skip(4), skip.net
    noisy = [(x, torch.zeros(len(x), dtype=torch.long)) for x, _ in skip.loader]
    made = distill(student, teacher, noisy, 8, scheme=Scheme("distill", {"alpha": 1}), lr=5e-3)
    assert skip.accuracy(made) > 0.6  # every label is 0: what it knows is the teacher's
    bare = distill(student, teacher, [x for x, _ in skip.loader], 1,
                   scheme=Scheme("distill", {"alpha": 1}))  # fmt: skip
    assert record(bare).trained.kept == 1


@pytest.mark.usefixtures("untouched")
def test_features_are_learned_through_a_bridge(skip):
    torch.manual_seed(1)
    student = Skip(4)
    scheme = Scheme("distill", {"alpha": 0, "beta": 10, "features": [("inside", "inside")]})

    def gap(model):
        """How much of the teacher's features a linear map of the student's leaves unexplained."""
        found = []
        for net in (model, skip.net):
            net.inside.register_forward_hook(lambda _, i, y: found.append(y.detach()))
            with torch.no_grad():
                net(skip.x)
            net.inside._forward_hooks.clear()
        mine, theirs = (y.movedim(1, -1).flatten(0, -2) for y in found)
        fit = torch.linalg.lstsq(mine, theirs).solution
        return float((mine @ fit - theirs).square().mean())

    with_features = distill(student, skip.net, skip.loader, 3, scheme=scheme, lr=5e-3)
    without = distill(
        student, skip.net, skip.loader, 3, scheme=Scheme("distill", {"alpha": 0}), lr=5e-3
    )
    assert gap(with_features) < gap(without)


# --- what is refused


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("loader", "match"),
    [
        ([], "gives no batch"),
        (iter([(torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long))]), "only once"),
        (3, "expected an iterable"),
        ([(torch.rand(2, 3, 8, 8), torch.zeros(2, dtype=torch.long))], r"float32\[2, 3, 8, 8\]"),
        ([(torch.rand(2, 1, 8, 8), torch.zeros(3, dtype=torch.long))], "does not fit"),
        ([torch.rand(2, 1, 8, 8)], "no target"),
        ([()], "empty"),
    ],
)
def test_a_bad_loader_is_one_clear_error(skip, loader, match):
    with pytest.raises(InputError, match=match):
        qat(skip.net, loader, LOSS, 1)
    if not hasattr(loader, "__next__"):
        with pytest.raises(InputError, match=match):
            prune(skip.net, Scheme("2:4"), skip.x, loader, LOSS, 1)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("loss", "error", "match"),
    [
        (lambda y, t: LOSS(y, t) * math.nan, RunError, r"loss is nan"),
        (lambda y, t: 0.5, InputError, "the loss gave float"),
        (lambda y, t: y, InputError, r"the loss gave float32\[64, 10\]"),
        (lambda y, t: LOSS(y.detach(), t), InputError, "depends on the model"),
    ],
)
def test_a_bad_loss_is_one_clear_error(skip, loss, error, match):
    for train in (
        lambda: qat(skip.net, skip.loader, loss, 1),
        lambda: prune(skip.net, Scheme("2:4"), skip.x, skip.loader, loss, 1),
    ):
        with pytest.raises(error, match=match) as caught:
            train()
        assert "epoch 1, batch 0" in caught.value.where


@pytest.mark.usefixtures("untouched")
def test_evaluate_that_fails_is_told(skip):
    with pytest.raises(InputError, match="evaluate gave nan"):
        qat(skip.net, skip.loader, LOSS, 1, evaluate=lambda model: math.nan)
    with pytest.raises(InputError, match="evaluate raised KeyError"):
        qat(skip.net, skip.loader, LOSS, 1, evaluate=lambda model: {}["x"])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda s: qat(nn.ReLU(), s.loader, LOSS, 1), RefusedError, "no convolution"),
        (lambda s: qat(lambda x: x, s.loader, LOSS, 1), ModelError, "expected a torch module"),
        (lambda s: qat(s.net, s.loader, LOSS, -1), InputError, "epochs is -1"),
        (lambda s: qat(s.net, s.loader, LOSS, 1, scheme=Scheme("qat", {"weights": 9})),
         InputError, "weights is 9"),
        (lambda s: qat(s.net, s.loader, LOSS, 1, scheme=Scheme("qat", {"bits": 4})),
         InputError, "no setting 'bits'"),
        (lambda s: qat(s.net, s.loader, LOSS, 1, scheme=Scheme("qat", keep=frozenset({"x"}))),
         InputError, "keep names 'x'"),
        (lambda s: convert_qat(s.net), InputError, "prepare_qat"),
        (lambda s: qat(prepare_qat(s.net, s.loader), s.loader, LOSS, 1), RefusedError,
         "quantised already"),
        (lambda s: prune(nn.ReLU(), Scheme("2:4"), s.x), RefusedError, "no convolution"),
        (lambda s: prune(s.net, Scheme("magnitud"), s.x), UnknownNameError, "magnitude"),
        (lambda s: prune(s.net, Scheme("magnitude", {"ratio": 1}), s.x), InputError, "ratio is 1"),
        (lambda s: prune(s.net, Scheme("magnitude", {"ratio": 0}), s.x), InputError, "ratio is 0"),
        (lambda s: prune(s.net, Scheme("2:4", {"stay": 4}), s.x), InputError, "stay is 4"),
        (lambda s: prune(s.net, Scheme("2:4"), s.x[:, :, 0]), InputError, "example"),
        (lambda s: prune(s.net, Scheme("2:4"), s.x, epochs=1), InputError, "needs a loader"),
        (lambda s: prune(nn.Linear(3, 3), Scheme("2:4"), torch.rand(1, 3)), RefusedError,
         "no multiple of 4"),
        (lambda s: distill(Skip(4, 5), s.net, s.loader, 1), InputError, r"\[64, 5\]"),
        (lambda s: distill(Skip(4), s.net, s.loader, 1, scheme=Scheme("d", {"alpha": 2})),
         InputError, "alpha is 2"),
        (lambda s: distill(Skip(4), s.net, s.loader, 1, scheme=Scheme("d", {"temperature": 0})),
         InputError, "temperature is 0"),
        (lambda s: distill(Skip(4), s.net, s.loader, 1,
                           scheme=Scheme("d", {"features": [("nope", "inside")]})),
         InputError, "no layer 'nope'"),
        (lambda s: distill(Skip(4), s.net, s.loader, 1,
                           scheme=Scheme("d", {"features": [("inside", "head")]})),
         InputError, "differ in more"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("untouched")
def test_what_cannot_be_done_is_said(skip, call, error, match):
    with pytest.raises(error, match=match):
        call(skip)


@pytest.mark.usefixtures("untouched")
def test_ctrl_c_keeps_the_best_so_far(skip):
    calls = []

    def loss(y, target):
        calls.append(1)
        if len(calls) == 2 * len(skip.loader) + 3:  # in the third epoch
            raise KeyboardInterrupt
        return LOSS(y, target)

    scheme = Scheme("qat", {"weights": 2, "edges": 4})
    made = qat(skip.net, skip.loader, loss, 9, scheme=scheme, evaluate=skip.accuracy)
    trained = record(made).trained
    assert trained.interrupted
    assert "Ctrl-C" in record(made).notes[0]
    assert [each.number for each in trained.history] == [0, 1, 2]
    best = max(trained.history, key=lambda each: each.score)
    assert trained.kept == best.number
    assert skip.accuracy(made) == pytest.approx(best.score, abs=0.01)


# --- to an engine, and to a GPU


@pytest.mark.slow
def test_what_they_make_goes_straight_in(skip):
    made = [qat(skip.net, skip.loader, LOSS, 1, scheme=Scheme("qat", {"weights": 4}))]
    made += [prune(skip.net, Scheme("2:4"), skip.x)]
    for module in made:
        with redline.optimize(
            module, skip.x[:1], backends=["onnxruntime"], budget="90s", use_cache=False
        ) as engine:
            assert engine.backend == "onnxruntime"
            found = np.array([int(engine(row[None]).argmax()) for row in skip.x])
            with torch.no_grad():
                wanted = module(skip.x).argmax(1).numpy()
            assert (found == wanted).mean() > 0.97
