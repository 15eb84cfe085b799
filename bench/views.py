"""What graph_view() says before a model runs, against torch's allocator when it does.

python bench/views.py            # the table of docs/networks.md; a minute

Training mode, batch 1, one forward and backward. "kept" is what the allocator still holds after the
forward, without the outputs; "peak" the most that it held during both. Sums of the profiler's
memory events, after a first step, with every .grad at None.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

import models
import redline
from redline.report import units

NAMES = ("lenet", "resnet50", "mobilenetv3", "vit", "bert", "lstm")


def call(model: torch.nn.Module, example: Any) -> Any:
    return model(**example) if isinstance(example, dict) else model(example)


def tensors(output: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(output) if isinstance(one, torch.Tensor)]


def step(model: torch.nn.Module, example: Any, backward: bool) -> tuple[int, int]:
    """(highest, at the end) of what the allocator holds, the outputs left out of the end."""
    model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = call(model, example)
        if backward:
            roots = [one for one in tensors(output) if one.requires_grad]
            torch.autograd.backward(roots, [torch.ones_like(one) for one in roots])
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    return peak, held - sum(one.nbytes for one in tensors(output))


def main() -> None:
    print("| model | took | saved, told | kept | peak, told | peak |")
    print("|---|---|---|---|---|---|")
    for name in NAMES:
        torch.manual_seed(0)
        label, build = models.ZOO[name]
        model, example = build()
        model.train()
        redline.graph_view(model, example)
        begin = time.perf_counter()
        view = redline.graph_view(model, example)
        took = time.perf_counter() - begin
        step(model, example, True)
        _, kept = step(model, example, False)
        peak, _ = step(model, example, True)
        told = (view.modules[0].saved, kept, view.peak_training, peak)
        print(f"| {label} | {units.seconds(took)} |", " | ".join(map(units.size, told)), "|")


if __name__ == "__main__":
    main()
