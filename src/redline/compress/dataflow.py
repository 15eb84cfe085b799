"""Which layer made what another reads, seen in one call of a module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from redline.compress.finetune import call
from redline.compress.modules import hooked, layers_of, tensors

_CLIPS = {"relu", "relu_", "relu6", "hardtanh", "hardtanh_"}
# What only picks or moves values: those of a grid stay on it.
_MOVES = _CLIPS | {
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "alpha_dropout",
    "channel_shuffle", "chunk", "clone", "contiguous", "dropout", "dropout2d", "flatten",
    "max_pool1d", "max_pool2d", "max_pool3d", "permute", "pixel_shuffle", "reshape", "squeeze",
    "transpose", "unflatten", "unsqueeze", "view",
}  # fmt: skip

_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)


@dataclass(frozen=True)
class Flow:
    """
    Attributes:
        order: layers with weights, as a call reaches them.
        source: layer -> the layer whose output it reads, at most picked from or moved on the way.
        clipped: layers whose output is read by nothing but functions that cut off below zero.
        last: layers whose output is an output of the model.
        relus: nn.ReLU -> the layers of `clipped` whose outputs are all that it reads.
        pools: max pooling -> the layers whose outputs it picks from.
    """

    order: tuple[str, ...]
    source: dict[str, str]
    clipped: frozenset[str]
    last: frozenset[str]
    relus: dict[str, frozenset[str]]
    pools: dict[str, frozenset[str]]


def flow_of(model: nn.Module, inputs: tuple[Any, ...]) -> Flow:
    """One call of the model, watched.

    Example:
        >>> flow_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), (x,)).source
        {'2': '0'}
    """
    watch, read = _Watch(), dict[str, set[str]]()
    cut, picked = dict[str, set[str]](), dict[str, set[str]]()
    handles = []
    for kinds, seen, ask in ((nn.ReLU,), cut, watch.fresh), (_POOLS, picked, watch.maker):
        for name, each in layers_of(model, kinds).items():
            handles.append(each.register_forward_pre_hook(
                lambda _, x, name=name, seen=seen, ask=ask:
                    seen.setdefault(name, set()).add(ask(x[0]))
            ))  # fmt: skip
    for name, layer in layers_of(model).items():
        handles.append(layer.register_forward_hook(lambda _, x, y, name=name: watch.made(name, y)))
        handles.append(layer.register_forward_pre_hook(
            lambda _, x, name=name: read.setdefault(name, set()).add(watch.maker(x[0]))
        ))  # fmt: skip
    with hooked(handles), torch.no_grad(), watch:
        outputs = call(model, inputs)
    found = {name: makers.pop() for name, makers in read.items() if len(makers) == 1}
    clipped = frozenset(watch.clipped - watch.plain)
    return Flow(
        tuple(read),
        {name: maker for name, maker in found.items() if maker},
        clipped,
        frozenset(maker for y in tensors(outputs) if (maker := watch.maker(y))),
        {name: frozenset(makers) for name, makers in cut.items() if makers <= clipped},
        {name: frozenset(makers) for name, makers in picked.items()},
    )


class _Watch(TorchFunctionMode):
    """Follows what layers made through functions that leave values on their grid."""

    def __init__(self) -> None:
        super().__init__()
        self.clipped: set[str] = set()
        self.plain: set[str] = set()  # read by something that does not clip
        self._makers: dict[int, str] = {}
        self._fresh: dict[int, str] = {}  # as the layer made it
        self._alive: list[torch.Tensor] = []  # or another tensor would get its id

    def made(self, name: str, value: Any) -> None:
        for each in tensors(value):
            self._alive.append(each)
            self._makers[id(each)] = self._fresh[id(each)] = name

    def maker(self, value: Any) -> str:
        """The layer that made a tensor, "" where that is not known."""
        return self._makers.get(id(value), "")

    def fresh(self, value: Any) -> str:
        """The same, "" for what was changed or moved since."""
        return self._fresh.get(id(value), "")

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        found = [*tensors(result)]
        if not found:  # a shape, a number of axes
            return result
        name = getattr(func, "__name__", "")
        clips = name in _CLIPS and bool((found[0] >= 0).all())
        given = [*tensors((*args, *(kwargs or {}).values()))]
        for each in given:
            if self.fresh(each):
                (self.clipped if clips else self.plain).add(self.fresh(each))
        maker = self.maker(given[0]) if given and name in _MOVES else ""
        for each in found:
            self._alive.append(each)
            self._fresh.pop(id(each), None)  # it may have been changed in place
            self._makers[id(each)] = maker
        return result
