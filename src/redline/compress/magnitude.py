"""Unstructured pruning: the smallest weights of the whole model become zero.

Han et al., arXiv 1506.02626; one threshold for all layers as in Frankle & Carbin, arXiv 1803.03635.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import prune as torch_prune

from redline.compress.masks import check_settings, described, ratio_of
from redline.compress.modules import layers_of
from redline.compress.scheme import Layer, Scheme
from redline.errors import RefusedError


def cut(model: nn.Module, scheme: Scheme, inputs: tuple[Any, ...]) -> tuple[Layer, ...]:
    """Mask the smallest weights, in place. Setting: ratio (0.5) of all weights that are not kept.

    Raises:
        InputError: the ratio is out of range.
        RefusedError: every layer is kept.
    """
    check_settings(scheme, "ratio")
    ratio, layers = ratio_of(scheme), layers_of(model)
    chosen = [(layer, "weight") for name, layer in layers.items() if name not in scheme.keep]
    if not chosen:
        raise RefusedError("every layer is kept, nothing is left to prune")
    torch_prune.global_unstructured(chosen, torch_prune.L1Unstructured, amount=ratio)
    return tuple(
        Layer(name, type(layer).__name__, "fp32", "kept")
        if name in scheme.keep else described(name, layer)
        for name, layer in layers.items()
    )  # fmt: skip
