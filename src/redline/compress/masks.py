"""Masks that stay: a weight that was cut is exactly zero after any training.

torch.nn.utils.prune computes weight = weight_orig * mask before every forward, so neither
momentum nor weight decay can bring a weight back; at the end the product is made the weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from redline.compress.scheme import Layer, Scheme
from redline.errors import InputError


def ratio_of(scheme: Scheme, default: float = 0.5) -> float:
    """The part that is removed.

    Raises:
        InputError: it is not between 0 and 1, both left out.
    """
    ratio = scheme.setting.get("ratio", default)
    if not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise InputError(f"ratio is {ratio!r}, expected more than 0 and less than 1")
    return float(ratio)


def check_settings(scheme: Scheme, *known: str) -> None:
    """Raises InputError for a setting that the method does not have."""
    for name in scheme.setting:
        if name not in (*known, "sensitivity"):
            raise InputError(
                f"{scheme.method} has no setting {name!r}",
                hint=f"known: {', '.join((*known, 'sensitivity'))}",
            )


def masked(layer: Any, mask: torch.Tensor) -> None:
    """Hold a layer's weight under a mask until finished()."""
    torch_prune.custom_from_mask(layer, "weight", mask)  # type: ignore[no-untyped-call]


def described(name: str, layer: Any) -> Layer:
    """A layer under a mask: how much of it is zero."""
    share = 1 - float(layer.weight_mask.mean())
    return Layer(name, type(layer).__name__, f"{share:.0%} zeros")


def finished(model: nn.Module) -> nn.Module:
    """The model with plain weights, zeros where masks were."""
    for each in model.modules():
        if hasattr(each, "weight_mask"):
            torch_prune.remove(each, "weight")  # type: ignore[no-untyped-call]
    return model
