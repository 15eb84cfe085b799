"""What is worth trying, in order: each stage proposes changes, or says why it has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from redline import machine
from redline.train.tuning import faults, feeds
from redline.train.tuning.loop import Loop, tensors
from redline.train.tuning.setup import Change, Setup, change

LOG_EVERY = 50


@dataclass(frozen=True)
class Facts:
    """What the stages look at besides the setup. `gap` is the part of a step that waits for data;
    `restart` the part that the start of an epoch takes, shared out over its steps.
    """

    gap: float
    restart: float
    batch: Any


Proposal = list[Change] | str
Stage = Callable[[Loop, Setup, Facts], Proposal]


def whole_input(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """Other ways for samples to become batches."""
    if why := _no_input(loop, facts):
        return why
    if feeds.can_slice(loop):
        why = "the tensors are in memory: a batch is one slice, not a call a sample"
        return [
            change("slices of the tensors", feed="slices", workers=0, persistent=False, why=why)
        ]
    able, why_not = feeds.can_hold(loop)
    if not able:
        return why_not
    why = "dataset[i] gives the same each time; the first epoch takes as long as before"
    return [change("samples kept in memory", feed="memory", workers=0, persistent=False, why=why)]


def workers(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """Worker processes: 0, 1, 2, 4, ... up to the usable cores."""
    if why := _no_input(loop, facts):
        return why
    cores = machine.usable_cores()
    counts = sorted({0, cores, *(2**power for power in range(cores.bit_length()))})
    return [
        change(f"num_workers={n}", workers=n, persistent=n > 0, prefetch=None)
        for n in counts if n <= cores and n != setup.workers
    ]  # fmt: skip


def prefetch(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """Longer queues."""
    if why := _no_input(loop, facts):
        return why
    if not setup.workers:
        return "there are no workers to fill a queue"
    return [change("prefetch_factor=4", prefetch=4), change("prefetch_factor=8", prefetch=8)]


def persistent(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """Workers that outlive an epoch."""
    if not setup.workers or setup.persistent:
        return "no workers are started anew"
    if facts.restart < 0.01:
        return f"starting an epoch takes {facts.restart:.1%} of it"
    return [change("persistent_workers=True", persistent=True)]


def pinned(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """Copies to a GPU that do not wait."""
    if loop.device.type != "cuda":
        return "batches stay on the CPU: there is nothing to copy to a GPU"
    if setup.pin and setup.non_blocking:
        return "it is so already"
    return [change("pinned memory, non_blocking copies", pin=True, non_blocking=True)]


def gradients(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """zero_grad that frees."""
    if setup.set_to_none:
        return "it is so already"
    return [change("zero_grad(set_to_none=True)", set_to_none=True)]


def optimizer(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """The optimizer's implementations."""
    defaults = loop.optimizer.defaults
    if any(group.get("fused") for group in loop.optimizer.param_groups):
        return "it is fused already"
    found = [
        change(f"{name}=True", kernel=name)
        for name in ("fused", "foreach") if name in defaults
    ]  # fmt: skip
    return found or f"{type(loop.optimizer).__name__} has neither foreach nor fused"


def log(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """Logging less often."""
    if loop.log is None:
        return "the loop was given without a log"
    if setup.log_every >= faults._OFTEN:
        return f"it is every {setup.log_every} steps already"
    return [change(f"log every {LOG_EVERY} steps", log_every=LOG_EVERY)]


def precision(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """Reduced precision where the device has it."""
    if setup.autocast:
        if faults.has_arithmetic(setup.autocast, loop.device):
            return f"it is {setup.autocast} already"
        why = f"this processor has no {setup.autocast} arithmetic and does it in float32, piecemeal"
        return [change("no autocast", exact=False, why=why, autocast="")]
    why = "weights stay float32; products and convolutions round to fewer bits"
    if loop.device.type == "cuda":
        if torch.cuda.get_device_capability(loop.device) < (8, 0):
            return [change("float16 autocast", exact=False, why=why, autocast="float16")]
        return [
            change("bfloat16 autocast", exact=False, why=why, autocast="bfloat16"),
            change("TF32 products", exact=False, why=why, tf32=True),
        ]
    if not faults.has_arithmetic("bfloat16", loop.device):
        return "this processor has no bfloat16 arithmetic"
    return [change("bfloat16 autocast", exact=False, why=why, autocast="bfloat16")]


def layout(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """One memory format for weights and input together."""
    if not any(isinstance(one, nn.Conv2d) for one in loop.model.modules()):
        return "the model has no 2-d convolution"
    if not any(one.ndim == 4 for one in tensors(facts.batch)):
        return "no input has four axes"
    return [
        change("contiguous weights and input", layout="contiguous"),
        change("channels_last weights and input", layout="channels_last"),
    ]


def threads(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """Threads of one operator."""
    if loop.device.type != "cpu":
        return "the work is on the GPU"
    cores = machine.usable_cores()
    counts = sorted({1, max(1, cores // 2), max(1, cores - setup.workers), cores})
    found = [change(f"{n} threads", threads=n) for n in counts if n != setup.threads]
    return found or "there is one core"


def benchmark(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """cuDNN's own search."""
    if loop.device.type != "cuda" or setup.cudnn_benchmark:
        return "it is on already" if setup.cudnn_benchmark else "there is no cuDNN on a CPU"
    return [change("cudnn.benchmark", cudnn_benchmark=True)]


def compiled(loop: Loop, setup: Setup, facts: Facts) -> Proposal:
    """torch.compile."""
    if hasattr(loop.model, "_orig_mod"):
        return "the model is compiled already"
    return [change("torch.compile", exact=True, compile=True)]


STAGES: Mapping[str, tuple[Stage, ...]] = {
    "input": (whole_input, workers, prefetch, persistent, pinned),
    "loop": (gradients, log),
    "optimizer": (optimizer,),
    "precision": (precision,),
    "layout": (layout,),
    "threads": (threads, benchmark),
    "compile": (compiled,),
}
LATER = ("batch", "lr")  # offered, never made


def _no_input(loop: Loop, facts: Facts) -> str:
    if not feeds.is_tunable(loop):
        return "the loader is not a DataLoader over a dataset with an index"
    if facts.gap <= faults.INPUT_GAP:
        return f"{facts.gap:.1%} of a step waits for data"
    return ""
