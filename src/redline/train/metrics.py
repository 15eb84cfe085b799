"""Metrics as sums over batches, so that they are exact on any batch size and over processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from redline.errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Metric:
    """count(output, target) is added up over batches; finish turns the sum into the value.

    Example:
        >>> Metric("mae", lambda o, t: torch.stack([(o - t).abs().sum(), torch.tensor(o.numel())]),
        ...        lambda s: s[0] / s[1], higher=False)
    """

    name: str
    count: Callable[[Any, Any], torch.Tensor]
    finish: Callable[[Sequence[float]], float]
    higher: bool = True


def wide(value: torch.Tensor) -> torch.Tensor:
    """In float64, which Apple's GPUs do not have: from there it goes to the cpu."""
    return (value.cpu() if value.device.type == "mps" else value).double()


def _pair(total: torch.Tensor, number: int) -> torch.Tensor:
    total = wide(total)
    return torch.stack([total, total.new_tensor(number)])


def _right(output: torch.Tensor, target: torch.Tensor, k: int) -> torch.Tensor:
    if output.ndim > 2:  # (batch, time, classes)
        output, target = output.flatten(0, -2), target.flatten()
    best = output.topk(min(k, output.shape[-1]), dim=-1).indices
    return _pair((best == target.unsqueeze(-1)).any(-1).sum(), target.numel())


def _binary(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return _pair(((output > 0) == (target > 0.5)).sum(), target.numel())


def _squares(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    error, target = wide(output - target), wide(target)
    sums = [error.square().sum(), target.sum(), target.square().sum()]
    return torch.stack([*sums, target.new_tensor(target.numel())])


def _r2(s: Sequence[float]) -> float:
    spread = s[2] - s[1] ** 2 / s[3]
    return 1 - s[0] / spread if spread > 0 else math.nan


def _mean(s: Sequence[float]) -> float:
    return s[0] / s[1] if s[1] else math.nan


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", lambda o, t: _right(o, t, 1), _mean),
        Metric("top5", lambda o, t: _right(o, t, 5), _mean),
        Metric("binary_accuracy", _binary, _mean),
        Metric("mae", lambda o, t: _pair((o - t).abs().sum(), t.numel()), _mean, higher=False),
        Metric("rmse", _squares, lambda s: math.sqrt(s[0] / s[3]), higher=False),
        Metric("r2", _squares, _r2),
    )
}
FITTING = {"classes": ("accuracy",), "values": ("r2", "rmse"), "tokens": ("accuracy",)}


def metrics(given: Sequence[Any], kind: str) -> list[Metric]:
    """Metrics by name or as objects; none given takes those that fit the kind of data.

    Raises:
        UnknownNameError: a name that is not in METRICS.
        InputError: not a name and not a Metric.
    """
    found = []
    for each in given or FITTING.get(kind, ()):
        if isinstance(each, str) and each not in METRICS:
            raise UnknownNameError("metric", each, METRICS)
        if not isinstance(each, str | Metric):
            raise InputError(f"{each!r} is not a metric", hint="give a name or a Metric object")
        found.append(METRICS[each] if isinstance(each, str) else each)
    return found
