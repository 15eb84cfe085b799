"""What bounds a step: its phases, held against this device's speed of arithmetic, memory, calls."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from redline.train.tuning.loop import tensors
from redline.train.tuning.rig import Rig

_VIEWS = ("view", "t.", "transpose", "permute", "expand", "detach", "alias", "slice", "select",
          "unsqueeze", "squeeze", "as_strided", "empty", "split", "unbind")  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What a step does: FLOPs, bytes read and written by operators, and operators called."""

    flops: int
    bytes: int
    calls: int


@dataclass(frozen=True)
class Peaks:
    """What the device does: FLOP/s of a float32 product, bytes/s of a copy, seconds an operator."""

    flops: float
    bandwidth: float
    overhead: float


@dataclass(frozen=True)
class Memory:
    """Bytes that a step holds at its fullest, by what they are."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.parameters + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Bound:
    """The verdict: `name` is input, copy, compute, launch or memory; seconds by these names."""

    name: str
    seconds: dict[str, float]

    @property
    def share(self) -> float:
        """Of the step, what goes to what bounds it."""
        return self.seconds[self.name] / max(sum(self.seconds.values()), 1e-12)


def judge(phases: dict[str, float], work: Work, peaks: Peaks) -> Bound:
    """Split a step by what it waits for.

    Forward, backward and optimizer are shared out in proportion to what the device would need: for
    the calls of operators, and for arithmetic or memory traffic, whichever takes longer (the two
    overlap). The log and the loop's own Python are calls too.

    Example:
        >>> judge({"input": 9.0, "forward": 1.0}, Work(1, 1, 1), Peaks(1.0, 1.0, 0.0)).name
        'input'
    """
    inside = sum(phases.get(name, 0.0) for name in ("forward", "backward", "optimizer"))
    calling = work.calls * peaks.overhead
    computing, moving = work.flops / peaks.flops, work.bytes / peaks.bandwidth
    calls = inside * calling / max(calling + max(computing, moving), 1e-30)
    rest = inside - calls
    arithmetic = computing >= moving
    seconds = {
        "input": phases.get("input", 0.0),
        "copy": phases.get("copy", 0.0),
        "launch": calls + phases.get("log", 0.0) + phases.get("other", 0.0),
        "compute": rest if arithmetic else 0.0,
        "memory": 0.0 if arithmetic else rest,
    }
    return Bound(max(seconds, key=lambda name: seconds[name]), seconds)


class _Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators that reach the device, and the bytes of what goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = str(func).removeprefix("aten.")
        if not name.startswith(_VIEWS):
            self.calls += 1
            self.bytes += sum(one.nbytes for one in tensors((args, kwargs or {}, out)))
        return out


def count(rig: Rig, batch: Any) -> tuple[Work, Memory]:
    """Count one step of a rig that is not compiled."""
    held: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in rig.parts.model.parameters()}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return saved

    flops, calls = FlopCounterMode(display=False), _Count()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved), flops, calls:
        rig.step(batch, None)
    parameters = list(rig.parts.model.parameters())
    memory = Memory(
        sum(one.nbytes for one in parameters),
        sum(one.nbytes for one in parameters if one.requires_grad),
        sum(one.nbytes for one in tensors(list(rig.parts.optimizer.state.values()))),
        sum(held.values()),
    )
    return Work(flops.get_total_flops(), calls.bytes, calls.calls), memory


def probe(device: torch.device) -> Peaks:
    """Measure the device in about a tenth of a second; torch's own operators, its own threads."""
    a, big = torch.randn(768, 768, device=device), torch.zeros(1 << 23, device=device)
    small, out = torch.zeros(1, device=device), torch.empty_like(big)
    product = _best(lambda: a @ a, 5, device)
    copied = _best(lambda: out.copy_(big), 3, device)
    calls = _best(lambda: [small + small for _ in range(200)], 5, device) / 200
    return Peaks(2 * 768**3 / product, 2 * big.nbytes / copied, calls)


def _best(work: Any, times: int, device: torch.device) -> float:
    best = float("inf")
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
