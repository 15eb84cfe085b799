"""graph_view() before running, against what torch's own allocator then hands out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networks  # type: ignore[import-not-found]
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import redline


def allocated(model: nn.Module, run: Callable[[], Any]) -> tuple[int, int, Any]:
    """(highest, at the end) sum of the allocator's bytes over one run, and what the run returned.

    After a first run, so that nothing that is made once is counted; the model starts without .grad.
    """
    run()
    model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events = profiler.profiler.kineto_results.events()
    blocks = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, size in blocks:
        held += size
        peak = max(peak, held)
    return peak, held, result


@pytest.mark.parametrize("name", ["lenet", "resnet50", "transformer", "tied"])
def test_what_is_kept_after_a_forward_is_what_was_saved_and_the_outputs(name: str) -> None:
    torch.manual_seed(0)
    model, x = networks.EXACT[name]()
    view = redline.graph_view(model, x)
    _, kept, out = allocated(model, lambda: model(x))
    outputs = sum(one.nbytes for one in tree_leaves(out))
    assert kept == view.modules[0].saved + outputs


@pytest.mark.parametrize("name", ["transformer", "tied"])
def test_peaks_are_the_allocators_where_no_kernel_takes_a_workspace(name: str) -> None:
    torch.manual_seed(0)
    model, x = networks.EXACT[name]()
    view = redline.graph_view(model, x)
    assert allocated(model, lambda: _train(model, x))[0] == view.peak_training
    assert allocated(model, lambda: _infer(model, x))[0] == view.peak_inference


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False)
        return x


def test_the_peak_of_a_checkpointed_chain_is_the_allocators() -> None:
    model, x = Checkpointed(), torch.randn(500, 64)
    view = redline.graph_view(model, x)
    assert allocated(model, lambda: _train(model, x))[0] == view.peak_training


@pytest.mark.parametrize("name", ["lenet", "resnet50"])
def test_peaks_are_a_lower_bound_where_kernels_take_workspaces(name: str) -> None:
    torch.manual_seed(0)
    model, x = networks.EXACT[name]()
    view = redline.graph_view(model, x)
    assert view.peak_training <= allocated(model, lambda: _train(model, x))[0]
    assert view.peak_inference <= allocated(model, lambda: _infer(model, x))[0]


def _train(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = model(x)
    torch.autograd.backward(out, torch.ones_like(out))
    return out


def _infer(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(x)
    return out
