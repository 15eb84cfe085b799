"""autograd_view() against torch's own account of the same graph."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import networks  # type: ignore[import-not-found]
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import redline
from redline.errors import InputError, ModelError
from redline.views.watch import Watch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def step(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, Watch]:
    with redline.watch(model) as watch:
        loss = model(x).square().mean()
    return loss, watch


@pytest.mark.parametrize("name", [*networks.EXACT, "lstm"])
def test_saved_bytes_are_what_torch_packs(name: str) -> None:
    model, x = {**networks.EXACT, "lstm": networks.lstm}[name]()
    held = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers(), x]}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.eval()  # the same numbers are drawn in both runs: none
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        counted = model(x).square().mean()
    loss, watch = step(model, x)
    view = redline.autograd_view(loss, watch)
    reached = redline.autograd_view(counted, watch)
    assert len(reached.nodes) == len(view.nodes)
    if name == "faulty":  # what leads to no loss was saved, and is let go
        assert view.saved_bytes <= sum(saved.values())
    else:
        assert view.saved_bytes == sum(saved.values()) > 0


@pytest.mark.parametrize(
    "name", sorted(networks.EXACT.keys() - {"faulty"})
)  # a part leads to no loss
def test_it_saves_what_graph_view_says(name: str) -> None:
    """The two views count by different means: hooks before running, the graph after it."""
    model, x = networks.EXACT[name]()
    with redline.watch(model) as watch:
        out = model(x)
    view = redline.autograd_view(out, watch)
    told = redline.graph_view(model, x)
    assert view.saved_bytes == told.modules[0].saved
    by_module = {one.path: one.saved for one in told.modules}
    for path in {node.path for node in view.nodes}:
        inside = [
            n for n in view.nodes if n.path == path or not path or n.path.startswith(f"{path}.")
        ]
        assert sum(n.activation_bytes for n in inside) == by_module[path], path


def test_nodes_of_resnet50_belong_to_the_modules_that_ran() -> None:
    model, x = networks.resnet50()
    loss, watch = step(model, x)
    view = redline.autograd_view(loss, watch)
    kinds = {path: type(part).__name__ for path, part in model.named_modules()}
    named = {"ConvolutionBackward0": "Conv2d", "NativeBatchNormBackward0": "BatchNorm2d",
             "ReluBackward0": "ReLU", "AddBackward0": "Bottleneck"}  # fmt: skip
    seen = [node for node in view.nodes if node.name in named]
    assert len(seen) == 53 + 53 + 49 + 16
    assert all(kinds[node.path] == named[node.name] for node in seen)
    assert set(view.leaves) == {name for name, _ in model.named_parameters()}
    assert view.folding == "watched"
    assert len(view.text().splitlines()) < 80


def test_an_estimated_fold_is_right_where_there_are_parameters() -> None:
    model, x = networks.resnet50()
    loss, watch = step(model, x)
    exact, guess = redline.autograd_view(loss, watch), redline.autograd_view(loss, model)
    assert guess.folding == "estimated"
    assert any("inferred" in note for note in guess.notes)
    for one, other in zip(exact.nodes, guess.nodes, strict=True):
        if one.name in ("ConvolutionBackward0", "NativeBatchNormBackward0", "AccumulateGrad"):
            assert one.path == other.path
        else:  # never too deep: only ever a module around the right one
            assert one.path == other.path or one.path.startswith(other.path)


def test_edges_lead_from_the_loss_to_every_leaf() -> None:
    model, x = networks.transformer()
    loss, watch = step(model, x)
    view = redline.autograd_view(loss, watch)
    root = next(i for i, n in enumerate(view.nodes) if not any(i in m.inputs for m in view.nodes))
    seen, waiting = {root}, [root]
    while waiting:
        for follower in view.nodes[waiting.pop()].inputs:
            if follower not in seen:
                seen.add(follower)
                waiting.append(follower)
    assert seen == set(range(len(view.nodes)))
    assert set(view.leaves) == {name for name, _ in model.named_parameters()}
    assert len(view.leaves) == len(set(view.leaves))


def test_cuts_and_reasons_with_the_lines_that_made_them() -> None:
    model, x = networks.faulty()
    loss, watch = step(model, x)
    view = redline.autograd_view(loss, watch)
    assert [(kind, path) for kind, path, *_ in view.cuts] == [("no_grad", "silent"), ("detach", "")]
    source = (networks.__file__, [where.rpartition(":")[2] for _, _, where, _, _ in view.cuts])
    with open(source[0], encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert "self.silent(x)" in lines[int(source[1][0]) - 1]
    assert ".detach()" in lines[int(source[1][1]) - 1]
    why = dict(view.unreached)
    assert set(why) == {
        f"{part}.{name}"
        for part in ("silent", "cut", "unused", "frozen", "side")
        for name in ("weight", "bias")
    }
    assert "no_grad" in why["silent.weight"]
    assert "cut off by detach" in why["cut.bias"]
    assert why["unused.weight"] == "never used in the forward"
    assert why["frozen.bias"].startswith("frozen")
    assert why["side.weight"].endswith("does not reach the loss")
    assert "gradients stop here" in str(view).lower()


def test_a_cut_in_a_loop_is_one_cut() -> None:
    class Loop(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(3):
                x = super().forward(x.detach())
            return x

    model = Loop(4, 4)
    loss, watch = step(model, torch.zeros(1, 4))
    cuts = redline.autograd_view(loss, watch).cuts
    assert [(kind, times) for kind, *_, times in cuts] == [("detach", 2)]  # the input has no graph


def test_a_whole_part_under_no_grad_is_one_cut() -> None:
    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, _ = networks.lenet()
            self.head = nn.Linear(10, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                features = self.body(x)
            return self.head(features)

    model = Probe()
    loss, watch = step(model, torch.randn(2, 1, 28, 28))
    view = redline.autograd_view(loss, watch)
    assert [(kind, path) for kind, path, *_ in view.cuts] == [("no_grad", "body")]
    assert {name.partition(".")[0] for name, _ in view.unreached} == {"body"}


def test_inference_mode_is_a_cut_as_well() -> None:
    model = nn.Linear(4, 4)
    with redline.watch(model) as watch:
        with torch.inference_mode():
            model(torch.zeros(1, 4))
        loss = model(torch.zeros(1, 4)).sum()
    view = redline.autograd_view(loss, watch)
    assert [(kind, path) for kind, path, *_ in view.cuts] == [("no_grad", "")]
    assert view.unreached == ()


def test_views_and_aliases_count_once() -> None:
    x = torch.randn(100, 10)
    w = torch.randn(10, 10, requires_grad=True)
    h = x @ w  # 4000 B
    loss = (h[:50] * h[50:]).sum() + h.sin().sum()
    view = redline.autograd_view(loss)
    assert view.saved_bytes == 4000 + 4000  # x, which only a watch knows as an input, and h
    assert view.leaves == ("tensor 10x10 float32",)


def test_after_a_backward_it_says_that_memory_is_freed() -> None:
    model, x = networks.lenet()
    loss, watch = step(model, x)
    before = redline.autograd_view(loss, watch)
    loss.backward()
    after = redline.autograd_view(loss, watch)
    assert after.saved_bytes == 0 < before.saved_bytes
    assert any("has freed" in note for note in after.notes)
    assert [node.path for node in after.nodes] == [node.path for node in before.nodes]


def test_checkpoints_are_not_run_again_to_look_inside() -> None:
    class Counted(nn.Linear):
        runs = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counted.runs += 1
            return torch.sin(super().forward(x))

    part = Counted(4, 4)
    loss = checkpoint(part, torch.randn(2, 4), use_reentrant=False).sum()
    view = redline.autograd_view(loss, part)
    assert Counted.runs == 1
    assert any("packed" in note for note in view.notes)


def test_custom_functions_keep_their_name_and_bytes() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x * 2)
            return x**3

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            (doubled,) = ctx.saved_tensors
            return gradient * 0.75 * doubled**2

    view = redline.autograd_view(Cube.apply(torch.ones(5, requires_grad=True)).sum())
    assert [node.name for node in view.nodes] == ["CubeBackward", "SumBackward0", "AccumulateGrad"]
    assert view.saved_bytes == 20


def test_a_graph_deeper_than_the_stack() -> None:
    x = torch.ones(1, requires_grad=True)
    y = x
    for _ in range(20_000):
        y = y + 1
    view = redline.autograd_view(y)
    assert len(view.nodes) == 20_001
    rows = ElementTree.fromstring(view.svg()).findall("{*}g")
    assert 0 < len(rows) <= 60


def test_picture_has_a_row_for_each_group_and_an_arc_for_each_skip() -> None:
    model, x = networks.resnet50()
    loss, watch = step(model, x)
    view = redline.autograd_view(loss, watch)
    folded = ElementTree.fromstring(view.svg(depth=1))
    firsts = ["conv1", "bn1", "relu", "maxpool", "layer1"]
    titles = [one.text or "" for one in folded.findall(".//{*}title")]
    assert [title.partition(":")[0] for title in titles][:5] == firsts
    everything = ElementTree.fromstring(view.svg(depth=1_000_000))
    inner = sum(not node.leaf for node in view.nodes)
    assert len(everything.findall("{*}g")) == inner
    assert len(everything.findall("{*}path")) >= 16  # the residual connections


@pytest.mark.parametrize(
    ("loss", "of", "error", "words"),
    [
        (1.5, None, InputError, "got a float"),
        (torch.zeros(2), None, InputError, "does not require a gradient"),
        (torch.zeros(2, requires_grad=True).sum(), "net", InputError, "got a str"),
    ],
)
def test_bad_input_gets_one_clear_error(
    loss: Any, of: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        redline.autograd_view(loss, of)


def test_watch_refuses_what_it_cannot_watch() -> None:
    with pytest.raises(ModelError, match=r"expected a torch\.nn\.Module"):
        redline.watch(len)  # type: ignore[arg-type]
    model, _ = networks.lenet()
    with redline.watch(model) as watch, pytest.raises(InputError, match="watching already"):
        watch.__enter__()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_a_watch_ends_cleanly_when_the_forward_fails() -> None:
    model, x = networks.lenet()
    with pytest.raises(RuntimeError), redline.watch(model) as watch:
        model(x[:, :, :3, :3])
    assert not any(part._forward_hooks for part in model.modules())
    loss, _ = step(model, x)
    with watch:
        model(x)
    assert len(watch.calls) == 13
    assert redline.autograd_view(loss).nodes


def test_json_and_a_lone_leaf() -> None:
    w = torch.ones(3, requires_grad=True)
    told = json.loads(redline.autograd_view(w).json())
    assert told["nodes"] == [
        {"name": "AccumulateGrad", "path": "", "saved": [], "inputs": [], "stops": 0,
         "leaf": "tensor 3 float32"}
    ]  # fmt: skip
