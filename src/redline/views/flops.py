"""FLOP formulas for the recurrent kernels that torch's own counter passes over."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


def counter() -> FlopCounterMode:
    """torch's FLOP counter, which also knows the fused recurrent layers of oneDNN and cuDNN.

    It counts matrix products, convolutions and attention, a multiply-add as 2; elementwise work,
    normalization and pooling count nothing.
    """
    aten = torch.ops.aten
    known = {
        aten.mkldnn_rnn_layer: _onednn,
        aten.mkldnn_rnn_layer_backward: _onednn_backward,
        aten._cudnn_rnn: _cudnn,
        aten._cudnn_rnn_backward: _cudnn_backward,
    }
    made = FlopCounterMode(display=False, custom_mapping=known)
    made.mod_tracker = _NoModules()  # type: ignore[assignment]
    return made


class _NoModules:
    """In the place of torch's tracker, whose hooks on a checkpoint's second forward keep all that
    it makes alive until the end of the backward. Modules are followed by calls.py.
    """

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _layer(sequence: Shape, weights: Iterable[Shape]) -> int:
    """Every step multiplies its input and its state by each matrix."""
    steps = prod(sequence[:-1])
    return 2 * steps * sum(prod(shape) for shape in weights if len(shape) == 2)


def _onednn(x: Shape, first: Shape, second: Shape, *_: Any, **__: Any) -> int:
    return _layer(x, (first, second))


def _onednn_backward(x: Shape, first: Shape, second: Shape, *_: Any, **__: Any) -> int:
    return 2 * _layer(x, (first, second))


def _cudnn(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return _layer(x, weights)


def _cudnn_backward(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    return 2 * _layer(x, weights)
