"""Pruning: weights or whole channels that matter least are removed, and training mends the rest.

One file for each method: magnitude.py, n_of_m.py, channels.py. Here is what they share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from redline.compress import channels, magnitude, n_of_m
from redline.compress.finetune import (
    Loss,
    MakeOptimizer,
    Metric,
    Training,
    batch_fits,
    call,
    check_loader,
    finetune,
    place_of,
    supervised,
    to_device,
)
from redline.compress.masks import finished
from redline.compress.modules import (
    CompressedModule,
    copied,
    distance,
    layers_of,
    with_record,
)
from redline.compress.scheme import Layer, Scheme
from redline.errors import InputError, RefusedError, UnknownNameError

# module (changed or replaced), scheme, example inputs -> what became of every layer
Cut = Callable[[nn.Module, Scheme, tuple[Any, ...]], tuple[Layer, ...]]
PRUNERS: dict[str, Cut] = {
    "magnitude": magnitude.cut,
    "2:4": n_of_m.cut,
    "channels": channels.cut,
}


@dataclass(frozen=True)
class _Plan:
    cut: Cut
    scheme: Scheme
    inputs: tuple[Any, ...]


def prune(
    model: nn.Module, scheme: Scheme, example: Any, loader: Any = None, loss: Loss | None = None,
    epochs: int = 0, *, lr: float = 1e-3, optimizer: MakeOptimizer | None = None,
    evaluate: Metric | None = None,
) -> nn.Module:  # fmt: skip
    """A copy of the model without the weights or channels that matter least, trained again.

    Args:
        model: a trained model; it is left as it is.
        scheme: Scheme("channels", {"ratio": 0.5}), Scheme("magnitude", {"ratio": 0.8}) or
            Scheme("2:4"), with keep: layers by name that stay whole. "sensitivity" in the setting
            is a limit: layers that alone move the outputs by more stay whole, too.
        example: inputs as the model takes them: a tensor, a tuple, or a dict by name.
        loader, loss, epochs: for training what is left; see qat(). Masked weights stay exactly 0.
        lr, optimizer, evaluate: see Training.

    Returns:
        A module in eval mode; what_was_done() has each layer's sensitivity: |y - y0| / |y0| of the
        outputs on the example when only it is pruned, before training.

    Raises:
        InputError: a ratio out of range, an example or loader that does not fit.
        RefusedError: no layer can be pruned, with the reasons.
        MissingError: torch-pruning is not installed ("channels").
        RunError: the loss is not finite.

    Example:
        >>> half = prune(net, Scheme("channels", {"ratio": 0.5}), x, loader, F.cross_entropy, 5)
        >>> engine = redline.optimize(half, x)
    """
    if scheme.method not in PRUNERS:
        raise UnknownNameError("pruning method", scheme.method, PRUNERS)
    how = Training(epochs, lr, optimizer, evaluate)
    if epochs and (loader is None or loss is None):
        raise InputError("training after pruning needs a loader and a loss", hint="or epochs=0")
    if epochs:
        check_loader(loader, epochs)
    own = copied(model).eval()
    known = layers_of(own)
    for name in scheme.keep - set(known):
        raise InputError(f"keep names {name!r}, which is no layer of the model")
    if not known:
        raise RefusedError("the model has no convolution or linear layer to prune")
    inputs = example if isinstance(example, tuple) else (example,)
    plan = _Plan(PRUNERS[scheme.method], scheme, to_device(inputs, place_of(own)))
    found = sensitivities(own, plan)
    limit = scheme.setting.get("sensitivity")
    if limit is not None:
        far = frozenset(name for name, value in found.items() if value > limit)
        plan = replace(plan, scheme=replace(scheme, keep=scheme.keep | far))
    layers = tuple(
        replace(one, sensitivity=found.get(one.node))
        for one in plan.cut(own, plan.scheme, plan.inputs)
    )
    trained = None
    if epochs and loss is not None:
        trained = finetune(own, loader, supervised(loss), how)
    return with_record(finished(own), CompressedModule(scheme, layers, trained))


def sensitivities(model: nn.Module, plan: _Plan) -> dict[str, float]:
    """|y - y0| / |y0| of the outputs when only one layer is pruned, for each that can be."""
    with torch.no_grad(), batch_fits("example", plan.inputs):
        wanted = call(model, plan.inputs)
    names, found = set(layers_of(model)), {}
    together = channels.partners(copied(model), plan.inputs) if plan.cut is channels.cut else {}
    for name in names - plan.scheme.keep:
        alone = copied(model)
        keep = frozenset(names - {name} - together.get(name, frozenset()))
        try:
            plan.cut(alone, replace(plan.scheme, keep=keep | plan.scheme.keep), plan.inputs)
        except RefusedError:
            continue  # it cannot be pruned; the cut of all says why
        with torch.no_grad():
            found[name] = distance(call(alone, plan.inputs), wanted)
    return found
