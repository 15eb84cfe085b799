"""Quantisation-aware training: the network learns with the rounding that it will run with.

Jacob et al., arXiv 1712.05877; step sizes are learned as in LSQ (Esser et al., arXiv 1902.08153).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from redline.compress.dataflow import Flow, flow_of
from redline.compress.finetune import (
    Loss,
    MakeOptimizer,
    Metric,
    Training,
    batch_fits,
    call,
    finetune,
    place_of,
    some,
    supervised,
)
from redline.compress.int8 import exact
from redline.compress.lsq import (
    ActivationQuantizer,
    Frozen,
    Grid,
    Quantized,
    Rounded,
    Samples,
    WeightQuantizer,
)
from redline.compress.modules import (
    CompressedModule,
    copied,
    fold_norms,
    hooked,
    layers_of,
    replaced,
    with_record,
)
from redline.compress.scheme import Layer, Scheme
from redline.errors import InputError, RefusedError

BITS = range(2, 9)
_SETTINGS = ("weights", "edges", "narrow", "samples")
_SAMPLES = 16  # batches that ranges are found on


def qat(
    model: nn.Module, loader: Any, loss: Loss, epochs: int = 1, *,
    scheme: Scheme | None = None, lr: float = 1e-3, optimizer: MakeOptimizer | None = None,
    evaluate: Metric | None = None,
) -> nn.Module:  # fmt: skip
    """A copy of the model, trained with the rounding of its weights and activations.

    Weights are rounded by output channel; the input of every convolution and linear layer, and the
    output of every convolution, by tensor to 8 bits; BatchNorm is folded into the weights before.
    The result exports to ONNX with Q/DQ pairs, so it goes straight into redline.optimize().

    Args:
        model: a trained model; it is left as it is.
        loader: batches (x, target), as loss(model(x), target) takes them; can be run again.
        epochs: passes over it. A tenth of what the model was trained for is often enough; 0
            rounds to nearest with the best ranges and trains nothing.
        scheme: Scheme("qat", setting, keep): "weights" bits (8; 2 to 8), "edges" bits of the first
            and last layer (8), "narrow" (7 bits in place of 8, by default where the CPU adds pairs
            of products in 16 bits), "samples" batches for the ranges (16); keep: layers by name
            that stay in float.
        lr, optimizer, evaluate: see Training.

    Returns:
        A module in eval mode; what_was_done() says more.

    Raises:
        InputError: the loader is empty or does not fit, the loss gives no number.
        RefusedError: there is no layer to quantise.
        RunError: the loss is not finite.

    Example:
        >>> small = qat(net, loader, F.cross_entropy, 3, scheme=Scheme("qat", {"weights": 4}))
        >>> engine = redline.optimize(small, x)
    """
    scheme = scheme or Scheme("qat")
    how = Training(epochs, lr, optimizer, evaluate)
    prepared = prepare_qat(model, loader, scheme)
    trained = finetune(prepared, loader, supervised(loss), how)
    layers = _described(prepared, scheme)
    return with_record(convert_qat(prepared), CompressedModule(scheme, layers, trained))


def prepare_qat(model: nn.Module, loader: Any, scheme: Scheme | None = None) -> nn.Module:
    """A copy with fake quantisation in it, for a training loop of one's own; then convert_qat().

    Example:
        >>> prepared = prepare_qat(net, batches)
        >>> trained = redline.train.fit(prepared, data, epochs=3).model
        >>> engine = redline.optimize(convert_qat(trained), x)
    """
    scheme = scheme or Scheme("qat")
    bits, edges, samples = _settings(scheme)
    own = copied(model).eval()
    if any(isinstance(each, Quantized | Frozen) for each in own.modules()):
        raise RefusedError("the model is quantised already", hint="give the float model")
    batches = some(loader, samples, place_of(own))
    with batch_fits("batch 0", batches[0]):
        own = fold_norms(own, batches[0])
        flow = flow_of(own, batches[0])
    unknown = scheme.keep - set(layers_of(own))
    if unknown:
        raise InputError(f"keep names {sorted(unknown)[0]!r}, which is no layer of the model")
    chosen = [name for name in flow.order if name not in scheme.keep and _has_own(own, name)]
    if not chosen:
        raise RefusedError("no convolution or linear layer can be quantised")
    ends = _activations(own, chosen, batches, flow)
    new: dict[nn.Module, nn.Module] = {}
    for name in chosen:
        layer = own.get_submodule(name)
        low, high = _grid(edges if name in (flow.order[0], flow.order[-1]) else bits, scheme)
        weight = WeightQuantizer(layer.weight, low, high)  # type: ignore[arg-type]
        new[layer] = Quantized(layer, weight, *ends[name])
    new |= _between(own, flow, {name: outputs for name, (_, outputs) in ends.items() if outputs})
    return replaced(own, new)


def convert_qat(prepared: nn.Module) -> nn.Module:
    """The prepared module with its weights as integers, in eval mode; what to export.

    Raises:
        InputError: it was not made by prepare_qat().
    """
    own = copied(prepared)
    new: dict[nn.Module, nn.Module] = {
        each: Frozen(each) for each in own.modules() if isinstance(each, Quantized)
    }
    if not new:
        raise InputError("the module was not made by prepare_qat()")
    new |= {
        each.quantizer: Grid(each.quantizer)
        for each in own.modules()
        if isinstance(each, Rounded) and isinstance(each.quantizer, ActivationQuantizer)
    }
    return replaced(own, new).eval()


def _settings(scheme: Scheme) -> tuple[int, int, int]:
    for name in scheme.setting:
        if name not in _SETTINGS:
            raise InputError(f"qat has no setting {name!r}", hint=f"known: {', '.join(_SETTINGS)}")
    bits, edges = scheme.setting.get("weights", 8), scheme.setting.get("edges", 8)
    for name, value in (("weights", bits), ("edges", edges)):
        if value not in BITS:
            raise InputError(f"{name} is {value!r}, expected a number of bits from 2 to 8")
    return bits, edges, int(scheme.setting.get("samples", _SAMPLES))


def _grid(bits: int, scheme: Scheme) -> tuple[int, int]:
    """The lowest and highest integer of a weight."""
    if bits == 8 and scheme.setting.get("narrow", not exact()):
        bits = 7
    half = 1 << (bits - 1)
    return (-half if bits < 8 else -127), half - 1


def _has_own(model: nn.Module, name: str) -> bool:
    """Whether a layer's weight is its own: one that another layer reads must stay as it is."""
    weight = model.get_submodule(name).weight
    readers = [each for each in layers_of(model, (nn.Module,)).values()
               if getattr(each, "weight", None) is weight]  # fmt: skip
    return len(readers) == 1 and isinstance(weight, nn.Parameter)


def _activations(
    model: nn.Module, names: list[str], batches: list[tuple[Any, ...]], flow: Flow
) -> dict[str, tuple[ActivationQuantizer, ActivationQuantizer | None]]:
    """Quantizers for the input and the output of each layer.

    A convolution has one for its output, as kernels multiply bytes only where they also give them;
    who reads that output shares it. Products give floats as fast.
    """
    inputs, outputs = _samples(model, names, batches)
    made = {
        name: ActivationQuantizer(values.clamp_min(0) if name in flow.clipped else values)
        for name, values in outputs.items()
        if name not in flow.last and not isinstance(model.get_submodule(name), nn.Linear)
    }
    found = {}
    for name in names:
        source = made.get(flow.source.get(name, ""))
        found[name] = (source or ActivationQuantizer(inputs[name]), made.get(name))
    return found


def _between(
    model: nn.Module, flow: Flow, made: Mapping[str, ActivationQuantizer]
) -> dict[nn.Module, nn.Module]:
    """What stands between layers: a ReLU behind a grid from zero on has nothing left to cut off,
    and pooling says that what it gives is on the grid still, so that it is done in bytes.
    """
    new: dict[nn.Module, nn.Module] = {}
    for name, makers in flow.relus.items():
        if makers <= made.keys():
            new[model.get_submodule(name)] = nn.Identity()
    for name, makers in flow.pools.items():
        if len(makers) == 1 and makers <= made.keys():
            pool = model.get_submodule(name)
            new[pool] = Rounded(pool, made[next(iter(makers))])
    return new


def _samples(
    model: nn.Module, names: list[str], batches: list[tuple[Any, ...]]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A sample of what reaches each layer, and of what it makes."""
    read = {name: Samples([]) for name in names}
    made = {name: Samples([]) for name in names}
    handles = []
    for name in names:
        layer = model.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(lambda _, x, n=name: read[n].take(x[0])))
        handles.append(layer.register_forward_hook(lambda _, x, y, n=name: made[n].take(y)))
    with hooked(handles), torch.no_grad():
        for number, inputs in enumerate(batches):
            with batch_fits(f"batch {number}", inputs):
                call(model, inputs)
    first, second = (
        {name: torch.cat(each.parts) for name, each in some.items()} for some in (read, made)
    )
    return first, second


def _described(prepared: nn.Module, scheme: Scheme) -> tuple[Layer, ...]:
    found = []
    for name, each in prepared.named_modules():
        if isinstance(each, Quantized):
            bits = (each.weight_quantizer.high + 1).bit_length()
            found.append(Layer(name, type(each.layer).__name__, f"{bits}-bit weights"))
    for name, each in layers_of(prepared).items():
        if not any(name == f"{one.node}.layer" for one in found):
            reason = "kept" if name in scheme.keep else "not called, or its weight is shared"
            found.append(Layer(name, type(each).__name__, "fp32", reason))
    return tuple(found)
