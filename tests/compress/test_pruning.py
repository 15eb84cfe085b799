"""Pruning: what goes, what stays exactly zero; and floats of few bits for GPUs."""

import sys

import pytest
import torch
from torch import nn
from training_kit import LOSS, in_onnxruntime

from redline.compress import Scheme, gpu_floats, low_float, prune
from redline.compress import what_was_done as record
from redline.compress.n_of_m import largest
from redline.errors import MissingError, RefusedError

# --- pruning


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("optimizer", [
    lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=0.1),
])  # fmt: skip
def test_two_of_four_stays_exactly_through_training(skip, optimizer):
    made = prune(skip.net, Scheme("2:4"), skip.x, skip.loader, LOSS, 2, optimizer=optimizer)
    reasons = {layer.node: layer.reason for layer in record(made).layers}
    assert "no multiple of 4" in reasons["stem"]
    assert "no multiple of 4" in reasons["depthwise"]
    for name in ("inside", "out", "head"):
        weight = made.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        groups = weight.detach().movedim(1, -1).reshape(-1, 4)
        kept = largest(skip.net.get_submodule(name).weight.detach(), 2, 4)
        assert (groups.ne(0).sum(1) <= 2).all()
        assert torch.equal(weight.detach() * (1 - kept), torch.zeros_like(weight))
        assert not torch.equal(weight.detach(), skip.net.get_submodule(name).weight * kept)
    assert skip.accuracy(made) > skip.accuracy(skip.net) - 0.05


def test_the_two_largest_of_four_input_channels_stay():
    weight = torch.tensor([[1.0, -4, 2, 3, 0, 0, 5, -6]])
    assert largest(weight, 2, 4).tolist() == [[0, 1, 0, 1, 0, 0, 1, 1]]


@pytest.mark.usefixtures("untouched")
def test_magnitude_removes_the_smallest_of_all(skip):
    made = prune(skip.net, Scheme("magnitude", {"ratio": 0.7}, frozenset({"head"})), skip.x)
    names = ("stem", "inside", "depthwise", "out")
    before = torch.cat([skip.net.get_submodule(n).weight.detach().flatten() for n in names]).abs()
    after = torch.cat([made.get_submodule(n).weight.detach().flatten() for n in names])
    assert float((after == 0).float().mean()) == pytest.approx(0.7, abs=1e-3)
    assert before[after == 0].max() <= before[after != 0].min()
    assert torch.equal(made.head.weight, skip.net.head.weight)
    assert all(layer.sensitivity > 0 for layer in record(made).layers if layer.node in names)


@pytest.mark.usefixtures("untouched")
def test_channels_really_go_and_coupled_ones_together(skip, tmp_path):
    pytest.importorskip("torch_pruning")
    scheme = Scheme("channels", {"ratio": 0.5, "round": 4})
    made = prune(skip.net, scheme, skip.x[:2], skip.loader, LOSS, 3, lr=5e-3)
    assert made.stem.out_channels == made.inside.out_channels == made.depthwise.groups == 8
    assert made.norm.num_features == 8
    assert made.out.weight.shape == (16, 8, 3, 3)
    assert made.head.weight.shape == (10, 16)
    layers = {layer.node: layer for layer in record(made).layers}
    assert layers["out"].precision == "16 of 32 channels"
    assert layers["head"].reason == "its channels are outputs of the model"
    assert layers["stem"].sensitivity == pytest.approx(layers["inside"].sensitivity)
    assert 0 < layers["out"].sensitivity < 2
    assert skip.accuracy(made) > skip.accuracy(skip.net) - 0.05
    _, found, _ = in_onnxruntime(made, skip.x[:20], tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), made(skip.x[:20]), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("untouched")
def test_sensitive_layers_stay_whole(skip):
    base = record(prune(skip.net, Scheme("2:4"), skip.x)).layers
    found = {layer.node: layer.sensitivity for layer in base if layer.sensitivity}
    worst = max(found, key=found.__getitem__)
    limit = sorted(found.values())[-2]
    made = prune(skip.net, Scheme("2:4", {"sensitivity": limit}), skip.x)
    kept = [layer.node for layer in record(made).layers if layer.reason == "kept"]
    assert kept == [worst]


def test_too_few_channels_are_refused():
    pytest.importorskip("torch_pruning")
    net = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)).eval()
    scheme = Scheme("channels", {"ratio": 0.1, "round": 16})
    with pytest.raises(RefusedError, match="no channel was removed"):
        prune(net, scheme, torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("method", ["fp8", "fp4"])
def test_low_floats_are_refused_without_a_gpu(method):
    with pytest.raises(RefusedError, match="needs a GPU"):
        low_float(nn.Linear(32, 32), Scheme(method))


@pytest.mark.parametrize(("method", "error"), [("fp8", 0.04), ("fp4", 0.25)])
def test_low_floats_round_as_their_formats_do(method, error):
    pytest.importorskip("torchao", reason="torchao is not installed")
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.Conv1d(32, 32, 1), nn.Linear(9, 9)).eval()
    config = gpu_floats._config(method, weights_only=True)
    made = gpu_floats.quantized(net, Scheme(method), config)
    reasons = {layer.node: layer.reason for layer in record(made).layers}
    assert reasons["0"] == ""
    assert "linear layers" in reasons["1"]
    assert "multiples of 16" in reasons["2"]
    torch.manual_seed(0)
    plain = nn.Linear(64, 32).weight.detach()
    step = (made[0].weight.dequantize() - plain).abs().max() / plain.abs().max()
    assert 0 < step < error


def test_a_missing_library_is_named(skip, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(MissingError, match="torch-pruning"):
        prune(skip.net, Scheme("channels"), skip.x[:2])
