"""grad_report() on gradients that were broken on purpose, and on sound ones."""

from __future__ import annotations

import json

import networks  # type: ignore[import-not-found]
import pytest
import torch
from torch import nn

import redline
from redline.errors import InputError


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def trained(model: nn.Module, x: torch.Tensor) -> redline.watch:  # type: ignore[valid-type]
    with redline.watch(model) as watch:
        loss = model(x).square().mean()
    loss.backward()
    return watch


@pytest.mark.parametrize("build", [networks.lenet, networks.transformer, networks.lstm])
def test_sound_gradients_are_ok(build) -> None:  # type: ignore[no-untyped-def]
    model, x = build()
    report = redline.grad_report(trained(model, x))
    assert report.ok
    assert all(layer.verdict == "ok" for layer in report.layers)
    assert "What is wrong" not in str(report)


def test_norms_are_those_of_torch() -> None:
    model, x = networks.resnet50()
    report = redline.grad_report(trained(model, x))
    for one, (name, parameter) in zip(report.parameters, model.named_parameters(), strict=True):
        assert one.name == name
        assert one.grad_norm == pytest.approx(parameter.grad.norm().item(), rel=1e-4)
    whole = nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert sum(layer.grad_norm**2 for layer in report.layers) ** 0.5 == pytest.approx(whole, 1e-4)


def test_every_reason_for_a_missing_gradient() -> None:
    model, x = networks.faulty()
    watch = trained(model, x)
    report = redline.grad_report(watch)
    why = {one.name: (one.state, one.why) for one in report.parameters}
    assert why["good.weight"] == ("ok", "")
    assert why["frozen.weight"] == ("frozen", "frozen: its requires_grad is False")
    assert why["unused.bias"] == ("none", "never used in the forward")
    assert why["silent.weight"][1].startswith("used only without gradients (no_grad), ")
    assert why["cut.weight"][1].startswith("its result is cut off by detach, ")
    assert why["side.weight"][1].endswith("does not reach the loss")
    assert not report.ok
    assert report.layer("frozen").verdict == "frozen"
    assert report.layer("unused").verdict == "none"


def test_without_a_watch_it_says_how_to_learn_more() -> None:
    model, x = networks.faulty()
    model(x).sum().backward()
    report = redline.grad_report(model)
    assert {one.name for one in report.parameters if one.state == "none"} == {
        f"{part}.{name}"
        for part in ("silent", "cut", "unused", "side")
        for name in ("weight", "bias")
    }
    assert "redline.watch" in report.notes[0]


def test_before_a_backward_it_says_so() -> None:
    model, x = networks.lenet()
    with redline.watch(model) as watch:
        model(x)
    report = redline.grad_report(watch)
    assert "no backward has run" in report.notes[0]
    assert {one.why for one in report.parameters} == {"no backward has run"}


def test_a_parameter_used_both_ways_is_blamed_on_the_cut_only_when_it_has_no_gradient() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                self.line(x)
            return self.line(x)

    assert redline.grad_report(trained(Both(), torch.randn(2, 4))).ok


def test_exploding_gradients_are_found() -> None:
    """A recurrence whose matrix doubles its state, over 60 steps."""

    class Recurrence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Linear(8, 8, bias=False)
            self.head = nn.Linear(8, 1)
            self.step.weight.data = 2 * torch.eye(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(60):
                x = self.step(x)
            return self.head(x)

    report = redline.grad_report(trained(Recurrence(), torch.randn(4, 8)))
    assert report.layer("step").verdict == "exploding"
    assert "clip_grad_norm_" in str(report)
    assert not report.ok


def test_vanishing_gradients_are_found() -> None:
    """Thirty sigmoids: each takes at least three quarters of the gradient away."""
    layers = [part for _ in range(30) for part in (nn.Linear(8, 8), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(8, 1))
    report = redline.grad_report(trained(model, torch.randn(4, 8)))
    assert report.layer("0").verdict == "vanishing"
    assert report.layer("60").verdict == "ok"
    assert "exploding" not in {layer.verdict for layer in report.layers}
    norms = [layer.grad_norm for layer in report.layers]
    assert norms[0] < 1e-8 * norms[-1]


def test_infinite_and_zero_gradients_are_found() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    model[0].weight.grad[0, 0] = float("inf")  # type: ignore[index, union-attr]
    model[1].weight.grad.zero_()  # type: ignore[union-attr]
    model[1].bias.grad.zero_()  # type: ignore[union-attr]
    report = redline.grad_report(model)
    assert report.layer("0").verdict == "not finite"
    assert report.layer("1").verdict == "zero"
    assert json.loads(report.json())["schema"] == 1
    assert "not finite" in report.html()


@pytest.mark.parametrize("functional", [False, True])
def test_dead_relus_are_found(functional: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out, self.relu = nn.Linear(4, 6), nn.Linear(6, 1), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.hidden(x)
            return self.out(torch.relu(h) if functional else self.relu(h))

    model = Net()
    with torch.no_grad():
        model.hidden.bias.fill_(10).index_fill_(0, torch.tensor([1, 4]), -1000)
    watch = trained(model, torch.randn(32, 4))
    report = redline.grad_report(watch)
    assert report.layer("hidden").dead == (1, 4)
    assert report.layer("hidden").units == 6
    assert report.relus == (("" if functional else "relu", 6, (1, 4)),)
    assert redline.grad_report(model).layer("hidden").dead == (1, 4)
    assert "2 of 6" in str(report)


def test_dead_channels_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 2))
    with torch.no_grad():
        model[0].bias.fill_(5)[3] = -100  # type: ignore[index, union-attr, operator]
    report = redline.grad_report(trained(model, torch.randn(2, 1, 8, 8)))
    assert report.layer("0").dead == (3,)
    assert report.relus == (("1", 5, (3,)),)


def test_a_unit_that_lives_for_one_sample_is_alive() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0], [1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -5.0]))
    report = redline.grad_report(trained(model, torch.tensor([[-1.0], [2.0]])))
    assert report.relus == (("1", 2, (1,)),)


def test_sparse_and_half_gradients() -> None:
    embed = nn.Embedding(10, 4, sparse=True)
    embed(torch.tensor([1, 1, 2])).sum().backward()
    report = redline.grad_report(embed)
    assert report.parameters[0].grad_norm == pytest.approx((4 * 4 + 4) ** 0.5)
    half = nn.Linear(2, 2).half()
    half.weight.grad = torch.full((2, 2), 60000.0, dtype=torch.float16)
    report = redline.grad_report(half)
    assert report.parameters[0].grad_norm == pytest.approx(120_000, rel=1e-3)
    assert report.layer("").verdict == "exploding"


def test_bad_input_gets_one_clear_error() -> None:
    for wrong in (None, "net", 3):
        with pytest.raises(
            InputError, match=f"got a?.?{type(wrong).__name__.removesuffix('Type')}"
        ):
            redline.grad_report(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="on the meta device"):
        redline.grad_report(nn.Linear(2, 2, device="meta"))


def test_it_changes_nothing() -> None:
    model, x = networks.lenet()
    watch = trained(model, x)
    before = [parameter.grad.clone() for parameter in model.parameters()]
    str(redline.grad_report(watch))
    after = [parameter.grad for parameter in model.parameters()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
