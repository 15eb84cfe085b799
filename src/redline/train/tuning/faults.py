"""Faults that can be read off a loop, named before anything is changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from redline import machine
from redline.report import units
from redline.train.tuning.loop import Loop, tensors
from redline.train.tuning.setup import Setup

_OFTEN = 10  # a log more seldom than this is not looked at
_SHARE = 0.01  # of the step: what a log may take
INPUT_GAP = 0.05  # of the step: what waiting for data may take
_ARITHMETIC = {  # by /proc/cpuinfo's names, Arm's last
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "fphp"},
}
_MANY = 8  # parameters: below, one kernel each is no burden


@dataclass(frozen=True)
class Fault:
    """What is wrong, the numbers that say so, and what mends it."""

    name: str
    evidence: str
    remedy: str


def find(
    loop: Loop, setup: Setup, phases: dict[str, float], batch: Any,
    slowest: tuple[str, float] | None = None,
) -> list[Fault]:  # fmt: skip
    """Every fault of the loop as it is."""
    step = sum(phases.values())
    found = [
        _slow_input(phases["input"], step, setup, slowest),
        _mixed_layout(loop, batch),
        _frequent_log(loop, phases["log"], step),
        _kept_gradients(loop, setup),
        _loop_optimizer(loop),
        _emulated(loop, setup),
    ]
    return [fault for fault in found if fault is not None]


def has_arithmetic(dtype: str, device: torch.device) -> bool:
    """Whether a device multiplies "bfloat16" or "float16" itself; only CPUs are asked."""
    return device.type != "cpu" or bool(_ARITHMETIC[dtype] & set(machine.isa_flags()))


def _emulated(loop: Loop, setup: Setup) -> Fault | None:
    if not setup.autocast or has_arithmetic(setup.autocast, loop.device):
        return None
    return Fault(
        f"{setup.autocast} autocast without the arithmetic",
        f"none of {', '.join(sorted(_ARITHMETIC[setup.autocast]))} is among the processor's flags",
        "leave torch.autocast out on this processor",
    )


def mixed_layout(model: nn.Module, batch: Any) -> str:
    """Which has channels_last alone: "channels_last" (the weights), "input", or "" for neither."""
    weights = [
        one.weight for one in model.modules()
        if isinstance(one, nn.Conv2d) and _is_last(one.weight) is not None
    ]  # fmt: skip
    images = [one for one in tensors(batch) if one.ndim == 4 and _is_last(one) is not None]
    if not weights or not images:
        return ""
    last = sum(bool(_is_last(one)) for one in weights) > len(weights) / 2
    if last == bool(_is_last(images[0])):
        return ""
    return "channels_last" if last else "input"


def _is_last(t: torch.Tensor) -> bool | None:
    """None where both formats are true at once, or neither."""
    last, first = t.is_contiguous(memory_format=torch.channels_last), t.is_contiguous()
    return None if last == first else last


def is_looped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer walks over the parameters one by one, though it need not."""
    return "foreach" in optimizer.defaults and any(
        not group.get("fused") and (group.get("foreach") is False or not _on_gpu(group["params"]))
        and not group.get("foreach")
        for group in optimizer.param_groups
    )  # fmt: skip


def _on_gpu(parameters: Sequence[torch.Tensor]) -> bool:
    return all(one.device.type == "cuda" for one in parameters)


def _slow_input(
    waited: float, step: float, setup: Setup, slowest: tuple[str, float] | None
) -> Fault | None:
    if waited <= INPUT_GAP * step:
        return None
    who = f"; {slowest[0]} takes {slowest[1]:.0%} of dataset[i]" if slowest else ""
    workers = f"{setup.workers} workers" if setup.workers != 1 else "1 worker"
    return Fault(
        "slow transform in the dataset" if slowest else "slow input pipeline",
        f"{waited / step:.0%} of a step waits for data ({units.seconds(waited)}, {workers}){who}",
        "transform once, give the work to worker processes, or make the transform quicker",
    )


def _mixed_layout(loop: Loop, batch: Any) -> Fault | None:
    kind = mixed_layout(loop.model, batch)
    if not kind:
        return None
    words = ("channels_last", "NCHW") if kind == "channels_last" else ("NCHW", "channels_last")
    return Fault(
        "memory formats do not match",
        f"convolution weights are {words[0]}, the input is {words[1]}: it is copied every step",
        "give both the same memory format",
    )


def _frequent_log(loop: Loop, spent: float, step: float) -> Fault | None:
    if loop.log is None or loop.log_every >= _OFTEN or spent <= _SHARE * step:
        return None
    return Fault(
        "logging every step" if loop.log_every == 1 else f"logging every {loop.log_every} steps",
        f"log takes {units.seconds(spent)}, {spent / step:.0%} of a step; .item() also waits for"
        " the device",
        "log every 50 steps",
    )


def _kept_gradients(loop: Loop, setup: Setup) -> Fault | None:
    if setup.set_to_none:
        return None
    size = sum(one.nbytes for one in loop.model.parameters() if one.requires_grad)
    return Fault(
        "zero_grad(set_to_none=False)",
        f"{units.size(size)} of gradients are filled with zeros, read again and added to, a step",
        "zero_grad(), which frees them",
    )


def _loop_optimizer(loop: Loop) -> Fault | None:
    count = sum(len(group["params"]) for group in loop.optimizer.param_groups)
    if not is_looped(loop.optimizer) or count < _MANY:
        return None
    return Fault(
        "optimizer without foreach or fused",
        f"{type(loop.optimizer).__name__} updates {count} parameters one after the other",
        "fused=True, or foreach=True",
    )
