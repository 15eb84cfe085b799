"""What the methods for torch modules share: a copy, its layers by name, what was done to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from redline.compress.finetune import Trained, call
from redline.compress.scheme import Layer, Scheme
from redline.errors import ModelError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_RECORD = "_redline_compressed"


@dataclass(frozen=True)
class CompressedModule:
    """What was done to a module: the counterpart of Compressed for graphs.

    Attributes:
        scheme: the method and its setting.
        layers: what became of every layer that could have been compressed.
        trained: epochs, losses and scores; None where nothing was trained.
        notes: sentences for the reader.
    """

    scheme: Scheme
    layers: tuple[Layer, ...] = ()
    trained: Trained | None = None
    notes: tuple[str, ...] = ()


def what_was_done(module: nn.Module) -> CompressedModule | None:
    """The record of a module that qat(), distill() or prune() made; None for any other.

    Example:
        >>> what_was_done(redline.compress.prune(net, scheme, x)).layers[0].precision
        '32 of 64 channels'
    """
    found = vars(module).get(_RECORD)
    return found if isinstance(found, CompressedModule) else None


def with_record(module: nn.Module, record: CompressedModule) -> nn.Module:
    """The module in eval mode, with the record of what was done to it."""
    if record.trained is not None and record.trained.interrupted:
        stopped = "training was stopped by Ctrl-C; the best so far is kept"
        record = replace(record, notes=(*record.notes, stopped))
    plain = replace(record.scheme, setting=dict(record.scheme.setting))  # can be copied and sent
    vars(module)[_RECORD] = replace(record, scheme=plain)
    return module.eval()


def copied(model: Any) -> nn.Module:
    """A copy to work on, so that the caller's model stays as it is whatever happens.

    Raises:
        ModelError: it is no module, or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model is a {type(model).__name__}, expected a torch module")
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever __deepcopy__ of the user's modules raises
        raise ModelError(f"the model cannot be copied: {error}") from error


def layers_of(model: nn.Module, kinds: tuple[type[nn.Module], ...] = LAYERS) -> dict[str, Any]:
    """Layers with weights by name, in the order in which they are registered."""
    return {name: each for name, each in model.named_modules() if isinstance(each, kinds)}


def replaced(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The model with modules in the place of others, wherever they are used."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)


def fold_norms(model: nn.Module, inputs: tuple[Any, ...]) -> nn.Module:
    """Every BatchNorm that follows a layer with weights, in those weights; in eval mode.

    A pair is one tensor that goes from one module to the other; a fold that changes the outputs,
    because something else reads that tensor too, is taken back.
    """
    pairs = _pairs(model, inputs)
    if not pairs:
        return model
    with torch.no_grad():
        wanted = call(model, inputs)
    folded = _folded(model, pairs)
    if _alike(folded, inputs, wanted):
        return folded
    for pair in pairs:
        trial = _folded(model, [pair])
        if _alike(trial, inputs, wanted):
            model = trial
    return model


def _folded(model: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    model = copy.deepcopy(model)
    new: dict[nn.Module, nn.Module] = {}
    for layer_name, norm_name in pairs:
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        fuse: Callable[..., nn.Module] = (
            fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        )
        new[layer], new[norm] = fuse(layer, norm), nn.Identity()
    return replaced(model, new)


def _pairs(model: nn.Module, inputs: tuple[Any, ...]) -> list[tuple[str, str]]:
    """(layer, norm) by name where the norm reads what the layer made, each called once."""
    made: list[tuple[str, Any]] = []
    read: list[tuple[str, Any]] = []
    handles = []
    for name, each in model.named_modules():
        if isinstance(each, LAYERS):
            handles.append(
                each.register_forward_hook(lambda _, i, y, name=name: made.append((name, y)))
            )
        elif isinstance(each, _NORMS) and each.track_running_stats and each.affine:
            handles.append(
                each.register_forward_pre_hook(lambda _, i, name=name: read.append((name, i[0])))
            )
    with hooked(handles), torch.no_grad():
        call(model, inputs)
    once = [names.count for names in ([n for n, _ in made], [n for n, _ in read])]
    return [
        (layer, norm)
        for norm, x in read
        for layer, y in made
        if x is y and once[0](layer) == 1 and once[1](norm) == 1
    ]


@contextmanager
def hooked(handles: list[Any]) -> Iterator[None]:
    """Hooks for a while: they are removed whatever happens."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a nest of outputs."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from tensors(each)


def distance(outputs: Any, wanted: Any) -> float:
    """|y - y0| / |y0| over all float outputs, in the Euclidean norm."""
    error = scale = 0.0
    for y, reference in zip(tensors(outputs), tensors(wanted), strict=True):
        if reference.is_floating_point():
            error += float((y.double() - reference.double()).square().sum())
            scale += float(reference.double().square().sum())
    return (error / scale) ** 0.5 if scale else float(error > 0)


def _alike(model: nn.Module, inputs: tuple[Any, ...], wanted: Any) -> bool:
    with torch.no_grad():
        return distance(call(model, inputs), wanted) < 1e-3
