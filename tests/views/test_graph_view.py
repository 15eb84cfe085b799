"""graph_view() against torch's own counters on a real run, and what it leaves untouched."""

from __future__ import annotations

import json
from typing import Any

import networks  # type: ignore[import-not-found]
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import redline
from redline.errors import InputError, ModelError


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def really(model: nn.Module, x: torch.Tensor) -> tuple[int, int, int, int]:
    """(forward FLOPs, all FLOPs, bytes saved, FLOPs of the first child) of a real run.

    Independent of the views: torch's counter, torch's saved tensors, nothing of ours.
    """
    held = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers(), x]}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        out = model(x)
        forward = counter.get_total_flops()
        total = sum(saved.values())
        out.sum().backward()
    child = f"{type(model).__name__}.{next(iter(model._modules))}"
    first = sum(counter.get_flop_counts().get(child, {}).values())
    return forward, counter.get_total_flops(), total, first


@pytest.mark.parametrize("name", networks.EXACT)
def test_flops_and_saved_bytes_are_those_of_a_real_run(name: str) -> None:
    model, x = networks.EXACT[name]()
    view = redline.graph_view(model, x)
    root = view.modules[0]
    forward, both, saved, first = really(model, x)
    assert root.flops == forward > 0
    assert root.flops + root.backward_flops == both
    assert root.saved == saved
    child = view.module(next(iter(model._modules)))
    assert child.flops + child.backward_flops == first


@pytest.mark.parametrize("name", networks.EXACT)
def test_without_values_it_tells_what_it_tells_with_them(name: str) -> None:
    model, x = networks.EXACT[name]()
    told, measured = redline.graph_view(model, x), redline.graph_view(model, x, real=True)
    assert told.modules == measured.modules
    assert told.peak_inference == measured.peak_inference > 0
    assert told.peak_training == measured.peak_training >= told.modules[0].saved
    assert measured.measured


@pytest.mark.parametrize("name", networks.EXACT)
def test_parts_add_up_to_the_whole(name: str) -> None:
    model, x = networks.EXACT[name]()
    view = redline.graph_view(model, x)
    assert [one.path for one in view.modules] == [path for path, _ in model.named_modules()]
    assert sum(flops for _, flops, _ in view.order) == view.modules[0].flops
    assert sum(saved for *_, saved in view.order) == view.modules[0].saved
    for one in view.modules:
        inside = [other for other in view.modules if other.path.rpartition(".")[0] == one.path]
        inside = [other for other in inside if other.path]
        assert sum(other.flops for other in inside) <= one.flops
        assert sum(other.saved for other in inside) <= one.saved


def test_lenet_by_hand() -> None:
    model, _ = networks.lenet()
    view = redline.graph_view(model, torch.zeros(1, 1, 28, 28))
    conv, relu = view.module("0"), view.module("1")
    assert conv.outputs == ("1x6x28x28 float32",)
    assert conv.parameters == 6 * 25 + 6
    assert conv.flops == 2 * 28 * 28 * 6 * 25
    assert conv.backward_flops == conv.flops  # the input needs no gradient
    assert view.module("3").backward_flops == 2 * view.module("3").flops
    assert conv.made == relu.made == relu.saved == 6 * 28 * 28 * 4
    assert view.saved_inputs == 28 * 28 * 4


def test_an_input_that_requires_a_gradient_costs_its_backward() -> None:
    model, _ = networks.lenet()
    x = torch.zeros(1, 1, 28, 28, requires_grad=True)
    for real in (False, True):
        conv = redline.graph_view(model, x, real=real).module("0")
        assert conv.backward_flops == 2 * conv.flops
    assert x.grad is None


def test_a_container_is_not_said_to_be_left_out() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.ParameterList([nn.Parameter(torch.ones(4))])
            self.parts = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.parts[0](x) * self.scale[0]

    view = redline.graph_view(Stack(), torch.zeros(1, 4))
    assert view.module("parts").flops == view.module("parts.0").flops == 32
    assert "not called" not in str(view)


def test_checkpointed_parts_save_what_comes_out_of_them() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(
                nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)) for _ in range(3)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                x = checkpoint(part, x, use_reentrant=False)
            return x.square()

    view = redline.graph_view(Chain(), torch.zeros(10, 8))
    assert view.modules[0].saved == 3 * 10 * 8 * 4  # what comes out of each; not what is inside
    assert view.modules[0].backward_flops > 2 * view.modules[0].flops  # a part runs again


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_fused_recurrent_layers_have_their_flops() -> None:
    """oneDNN's layer is unknown to torch's counter; the same layer in parts is not."""
    model, x = networks.lstm()
    view = redline.graph_view(model, x)
    with torch.backends.mkldnn.flags(enabled=False):
        forward, both, _, _ = really(model, x)
    assert view.modules[0].flops == forward > 0
    if torch.backends.mkldnn.is_available():
        assert view.modules[0].backward_flops == 2 * forward
        assert any("oneDNN" in note for note in view.notes)
    assert both >= 2 * forward


def test_workspace_of_a_recurrent_layer_is_the_estimate_that_the_note_says() -> None:
    model, x = networks.lstm()
    told, measured = redline.graph_view(model, x), redline.graph_view(model, x, real=True)
    assert told.modules[0].flops == measured.modules[0].flops
    assert told.modules[0].saved <= measured.modules[0].saved
    assert bool(told.notes) == (told.modules[0].saved < measured.modules[0].saved)
    assert measured.notes == ()


def test_it_changes_nothing() -> None:
    model, x = networks.resnet50()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    state = torch.random.get_rng_state()
    for real in (False, True):
        redline.graph_view(model, x, real=real)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert model.training


def test_a_model_without_memory() -> None:
    """Ten thousand times ten thousand, in float32, a hundred times: 40 GB that are never taken."""
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(10_000, 10_000) for _ in range(100)))
    view = redline.graph_view(model, torch.zeros(1, 10_000))
    assert view.modules[0].flops == 100 * 2 * 10_000**2
    assert view.modules[0].parameter_bytes == 100 * 4 * (10_000**2 + 10_000)
    assert view.device == "meta"
    assert "upper bound" in view.notes[0]
    with pytest.raises(ModelError, match="no weights to run"):
        redline.graph_view(model, torch.zeros(1, 10_000), real=True)


def test_a_forward_that_looks_at_values() -> None:
    model, x = networks.LooksAtValues(), torch.ones(1, 4)
    with pytest.raises(ModelError, match="looks at values") as told:
        redline.graph_view(model, x)
    assert "networks.py" in told.value.where
    assert "real=True" in told.value.hint
    assert redline.graph_view(model, x, real=True).modules[0].flops == 32


def test_shared_and_repeated_modules() -> None:
    model, x = networks.tied()
    view = redline.graph_view(model, x)
    assert view.module("twice").calls == 2
    assert view.module("twice").flops == 2 * 2 * 10 * 8 * 8
    assert view.modules[0].parameters == 30 * 8 + 8 * 8 + 8
    assert view.module("head").parameters == 30 * 8
    assert view.module("head").path in str(view)


def test_unused_modules_and_frozen_parameters_are_shown() -> None:
    model, x = networks.faulty()
    view = redline.graph_view(model, x)
    assert view.module("unused").calls == 0
    assert view.modules[0].parameters - view.modules[0].trainable == 20
    assert "not called" in str(view)
    assert "20 frozen" in str(view)


def test_nothing_to_train() -> None:
    model, x = networks.lenet()
    view = redline.graph_view(model.requires_grad_(False), x)
    assert view.modules[0].saved == view.modules[0].backward_flops == 0
    assert "no output requires a gradient" in view.notes[0]


@pytest.mark.parametrize(
    ("model", "x", "error", "words"),
    [
        ("net.pt", None, ModelError, "got a str, expected a torch.nn.Module"),
        (nn.Linear(4, 2), torch.zeros(1, 5), ModelError, "fails on these inputs"),
        (nn.Linear(4, 2), (torch.zeros(1, 4),) * 2, InputError, "do not fit forward"),
        (nn.Linear(4, 2), None, InputError, "example_inputs is missing"),
    ],
)
def test_bad_input_gets_one_clear_error(
    model: Any, x: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        redline.graph_view(model, x)


def test_a_script_module_is_refused() -> None:
    class Named(torch.jit.ScriptModule):
        pass

    with pytest.raises(ModelError, match="takes no hooks"):
        redline.graph_view(Named(), torch.zeros(1))


def test_text_fits_and_folds() -> None:
    model, x = networks.resnet50()
    view = redline.graph_view(model, x)
    for width in (80, 100, 140):
        lines = view.text(width).splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) < 60
    assert "layer4" in view.text()
    assert "downsample" not in view.text()
    assert "downsample" in view.text(depth=9)
    assert "layer4" not in view.text(depth=0)


def test_json_has_the_figures() -> None:
    model, x = networks.lenet()
    told = json.loads(redline.graph_view(model, x).json())
    assert told["schema"] == 1
    assert told["modules"][1]["kind"] == "Conv2d"
    assert told["modules"][1]["flops"] == 2 * 2 * 28 * 28 * 6 * 25


def test_inputs_by_name_and_other_types() -> None:
    model = nn.Bilinear(3, 4, 2).half()
    inputs = {"input2": torch.zeros(5, 4).half(), "input1": torch.zeros(5, 3).half()}
    view = redline.graph_view(model, inputs)
    assert view.inputs == ("input1 5x3 float16", "input2 5x4 float16")
    assert view.modules[0].outputs == ("5x2 float16",)
