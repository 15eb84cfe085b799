"""Fake quantisation with learned step sizes, and the layers that hold it.

LSQ: Esser et al., arXiv 1902.08153. A step size is a parameter; rounding passes the gradient
through, and the step gets the gradient of what it rounds, scaled by 1 / sqrt(elements * levels).
Steps are trained as logarithms here, so that one learning rate fits steps of any size and none
becomes negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
from torch import nn
from torch.nn import functional

_GRID = 40  # steps that are tried for a range
_SAMPLE = 1 << 16  # elements that the range of an activation is found on


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Rounded to nearest; the gradient passes as if it were not (straight through)."""
    return x + (x.round() - x).detach()


def _slowed(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The same value with its gradient times a factor."""
    return (x - x * factor).detach() + x * factor


def best_step(x: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """The step for each row of x (rows, elements) whose rounding has the least squared error.

    The end of the range is tried at 1/40, 2/40, ... of the largest magnitude.
    """
    least = torch.full((len(x),), math.inf, device=x.device)
    ends = (x.abs().amax(1) / high).clamp_min(1e-8)
    found = ends.clone()
    for part in range(1, _GRID + 1):
        step = ends * (part / _GRID)
        level = (x / step[:, None]).round().clamp(low, high)
        error = (level * step[:, None] - x).square().sum(1)
        found = torch.where(error < least, step, found)
        least = torch.minimum(error, least)
    return found


class WeightQuantizer(nn.Module):
    """Weights on a symmetric grid of `bits`, with a learned step for each output channel."""

    def __init__(self, weight: torch.Tensor, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        step = best_step(weight.detach().flatten(1), low, high)
        self.log_step = nn.Parameter(step.log())
        self.scale = 1 / math.sqrt(weight[0].numel() * max(high, 1))

    def step(self) -> torch.Tensor:
        return self.log_step.exp()

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        step = _slowed(self.step(), self.scale).view(-1, *[1] * (weight.ndim - 1))
        return rounded((weight / step).clamp(self.low, self.high)) * step

    def levels(self, weight: torch.Tensor) -> torch.Tensor:
        """The integers that stand for a weight."""
        step = self.step().view(-1, *[1] * (weight.ndim - 1))
        return (weight / step).round().clamp(self.low, self.high).to(torch.int8)


class ActivationQuantizer(nn.Module):
    """Activations in 8 bits, one learned step: from 0 where none is negative, else around 128."""

    def __init__(self, sample: torch.Tensor) -> None:
        super().__init__()
        self.zero = 128 if bool((sample < 0).any()) else 0
        flat = sample.detach().float().flatten()
        some = flat[:: max(1, flat.numel() // _SAMPLE)]
        self.log_step = nn.Parameter(best_step(some[None], -self.zero, 255 - self.zero)[0].log())

    def step(self) -> torch.Tensor:
        return self.log_step.exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = _slowed(self.step(), 1 / math.sqrt(max(1, x.numel()) * 255))
        return rounded((x / step).clamp(-self.zero, 255 - self.zero)) * step


class Quantized(nn.Module):
    """A convolution or linear layer in training: its input, its weights and, where that is given a
    quantizer, its output are rounded. Where one layer reads what another made, both share it.
    """

    def __init__(
        self, layer: Any, weight: WeightQuantizer, inputs: ActivationQuantizer,
        outputs: ActivationQuantizer | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layer, self.weight_quantizer, self.input_quantizer = layer, weight, inputs
        self.output_quantizer = outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight_quantizer(self.layer.weight)
        y = applied(self.layer, self.input_quantizer(x), weight)
        return y if self.output_quantizer is None else self.output_quantizer(y)


class Rounded(nn.Module):
    """What another module makes of values on a grid, which leaves them there, told so."""

    def __init__(self, inside: nn.Module, quantizer: nn.Module) -> None:
        super().__init__()
        self.inside, self.quantizer = inside, quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.quantizer(self.inside(x))
        return y


class Grid(nn.Module):
    """An ActivationQuantizer after training: its step is a constant."""

    def __init__(self, trained: ActivationQuantizer) -> None:
        super().__init__()
        self.step, self.zero = float(trained.step().detach()), trained.zero

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fake_quantize_per_tensor_affine(x, self.step, self.zero, 0, 255)

    def extra_repr(self) -> str:
        return f"step {self.step:.3g}, zero {self.zero}"


class Frozen(nn.Module):
    """A Quantized after training: weights as integers, steps as constants.

    torch.onnx.export makes pairs of QuantizeLinear and DequantizeLinear of it. It runs in float64
    too, as the reference that candidates are held against.
    """

    levels: torch.Tensor
    step: torch.Tensor

    def __init__(self, trained: Quantized) -> None:
        super().__init__()
        self.layer = trained.layer
        self.input, outputs = Grid(trained.input_quantizer), trained.output_quantizer
        self.output = nn.Identity() if outputs is None else Grid(outputs)
        weight = self.layer.weight.detach()
        self.register_buffer("levels", trained.weight_quantizer.levels(weight))
        self.register_buffer("step", trained.weight_quantizer.step().detach().clone())
        del self.layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = None if x.dtype == torch.float32 else x.dtype
        weight = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.levels, self.step, None, 0, -128, 127, torch.int8, out_dtype=wide
        )
        y: torch.Tensor = self.output(applied(self.layer, self.input(x), weight))
        return y


def applied(layer: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer with another weight."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, layer.bias)
    made: torch.Tensor = layer._conv_forward(x, weight, layer.bias)
    return made


@dataclass
class Samples:
    """A part of what reached a layer."""

    parts: list[torch.Tensor]

    def take(self, x: torch.Tensor) -> None:
        flat = x.detach().float().flatten()
        self.parts.append(flat[:: max(1, flat.numel() * 8 // _SAMPLE)].clone())
