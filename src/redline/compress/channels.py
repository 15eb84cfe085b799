"""Structured pruning: whole channels are removed, so that every backend gets a smaller network.

torch-pruning finds which layers must shrink together: what adds to, concatenates with, normalises
or groups the same channels (Fang et al., arXiv 2301.12900). The channels whose weights have the
least norm over such a group go (Li et al., arXiv 1608.08710).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from redline.compress.finetune import call
from redline.compress.masks import check_settings, ratio_of
from redline.compress.modules import layers_of, tensors
from redline.compress.scheme import Layer, Scheme
from redline.errors import BuildError, InputError, MissingError, RefusedError


def cut(model: nn.Module, scheme: Scheme, inputs: tuple[Any, ...]) -> tuple[Layer, ...]:
    """Remove channels, in place. Settings: ratio (0.5) of the channels of every group, "round"
    (8): channels stay multiples of it, as vector units like them.

    Raises:
        InputError: a setting is out of range.
        MissingError: torch-pruning is not installed.
        RefusedError: no layer has channels that can go, or the outputs would shrink.
        BuildError: torch-pruning failed.
    """
    check_settings(scheme, "ratio", "round")
    ratio, step = ratio_of(scheme), scheme.setting.get("round", 8)
    if not isinstance(step, int) or step < 1:
        raise InputError(f"round is {step!r}, expected a whole number, 1 or more")
    layers = layers_of(model)
    before = {name: _channels(layer) for name, layer in layers.items()}
    shapes = _shapes(model, inputs)
    last = _pruned(model, inputs, ratio, step, {layers[name] for name in scheme.keep})
    try:
        after = _shapes(model, inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise RefusedError(
            f"without its channels the model does not run: {str(error).splitlines()[0]}",
            hint="keep the layers in front of a view or reshape with constant sizes",
        ) from error
    if after != shapes:
        raise RefusedError(
            f"the outputs would shrink from {shapes} to {after}",
            hint="keep the layers that make the outputs",
        )
    found = []
    for name, layer in layers.items():
        kind, now, old = type(layer).__name__, _channels(layer), before[name]
        if now < old:
            found.append(Layer(name, kind, f"{now} of {old} channels"))
        else:
            reason = "its channels are outputs of the model" if layer in last else "too few to go"
            found.append(Layer(name, kind, "fp32", "kept" if name in scheme.keep else reason))
    if all(layer.reason for layer in found):
        raise RefusedError(
            "no channel was removed: " + "; ".join(sorted({layer.reason for layer in found})),
            hint='a larger "ratio", or a smaller "round"',
        )
    return tuple(found)


def _pruned(
    model: nn.Module, inputs: tuple[Any, ...], ratio: float, step: int, keep: set[nn.Module]
) -> set[nn.Module]:
    """Remove the channels; returns the layers whose channels are outputs of the model."""
    torch_pruning, given = _library(), _given(inputs)
    wanted = {name: each.requires_grad for name, each in model.named_parameters()}
    model.requires_grad_(True)  # the library's graph is the one of autograd
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph = torch_pruning.DependencyGraph().build_dependency(model, given)
            last = {layer for layer in layers_of(model).values() if _makes_outputs(graph, layer)}
            pruner = torch_pruning.pruner.BasePruner(
                model, given, torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio, round_to=step, ignored_layers=[*(last | keep)],
            )  # fmt: skip
            pruner.step()
    except Exception as error:  # the library raises whatever its tracing meets
        raise BuildError(f"torch-pruning cannot prune it: {str(error)[:300]}") from error
    for name, each in model.named_parameters():
        each.requires_grad_(wanted.get(name, True))
    return last


def partners(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, frozenset[str]]:
    """For each layer, those that lose the same channels: all that are added together.

    Raises:
        MissingError: torch-pruning is not installed.
    """
    library = _library()
    names = {layer: name for name, layer in layers_of(model).items()}
    found = {}
    model = model.requires_grad_(True)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        graph = library.DependencyGraph().build_dependency(model, _given(inputs))
        for layer, name in names.items():
            group = graph.get_pruning_group(
                layer, graph.get_pruner_of_module(layer).prune_out_channels, idxs=[0]
            )
            found[name] = frozenset(
                names[item.dep.target.module]
                for item in group
                if item.dep.target.module in names
                and graph.is_out_channel_pruning_fn(item.dep.handler)
            )
    return found


def _library() -> Any:
    try:
        import torch_pruning
    except ImportError:
        raise MissingError(
            "torch-pruning is not installed", hint='pip install "redline[prune]"'
        ) from None
    return torch_pruning


def _given(inputs: tuple[Any, ...]) -> Any:
    return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else inputs


def _makes_outputs(graph: Any, layer: nn.Module) -> bool:
    """Whether no layer reads the channels of this one: they are outputs then."""
    prune_out = graph.get_pruner_of_module(layer).prune_out_channels
    group = graph.get_pruning_group(layer, prune_out, idxs=[0])
    return not any(
        graph.is_in_channel_pruning_fn(item.dep.handler)
        and not graph.is_out_channel_pruning_fn(item.dep.handler)  # a norm, or depthwise
        and next(item.dep.target.module.parameters(recurse=False), None) is not None
        for item in group
    )


def _channels(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _shapes(model: nn.Module, inputs: tuple[Any, ...]) -> list[list[int]]:
    with torch.no_grad():
        return [list(y.shape) for y in tensors(call(model, inputs))]
