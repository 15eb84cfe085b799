"""2:4 sparsity: of every four weights along the input channels the two largest stay.

Mishra et al., arXiv 2104.08378: NVIDIA GPUs from Ampere on multiply such weights twice as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from redline.compress.masks import check_settings, described, masked
from redline.compress.modules import layers_of
from redline.compress.scheme import Layer, Scheme
from redline.errors import InputError, RefusedError


def cut(model: nn.Module, scheme: Scheme, inputs: tuple[Any, ...]) -> tuple[Layer, ...]:
    """Mask the weights, in place. Settings: stay (2) of every group (4).

    Raises:
        InputError: stay is not below group.
        RefusedError: no layer has input channels in groups.
    """
    check_settings(scheme, "stay", "group")
    stay, group = scheme.setting.get("stay", 2), scheme.setting.get("group", 4)
    if not isinstance(stay, int) or not isinstance(group, int) or not 0 < stay < group:
        raise InputError(f"stay is {stay!r} of {group!r}, expected 0 < stay < group")
    found, some = [], False
    for name, layer in layers_of(model).items():
        kind, inside = type(layer).__name__, layer.weight.shape[1]
        if name in scheme.keep:
            found.append(Layer(name, kind, "fp32", "kept"))
        elif inside % group:
            reason = f"{inside} input channels of a weight are no multiple of {group}"
            found.append(Layer(name, kind, "fp32", reason))
        else:
            masked(layer, largest(layer.weight.detach(), stay, group))
            found.append(described(name, layer))
            some = True
    if not some:
        reasons = sorted({layer.reason for layer in found})
        raise RefusedError(f"no layer can be pruned: {'; '.join(reasons)}")
    return tuple(found)


def largest(weight: torch.Tensor, stay: int, group: int) -> torch.Tensor:
    """1 for the largest of every group along axis 1, 0 for the others."""
    last = weight.movedim(1, -1)
    groups = last.reshape(-1, group).abs()
    places = groups.topk(stay, dim=1).indices
    mask = torch.zeros_like(groups).scatter_(1, places, 1.0)
    return mask.view(last.shape).movedim(-1, 1).contiguous()
