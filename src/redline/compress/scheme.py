"""What is compressed and how, as data: the shape that every method of graphs shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Calibration:
    """Inputs that stand for real use: one tuple of arrays a batch, in the order of the signature.

    Attributes:
        batches: what the graph is run on to find ranges.
        source: where they came from, for the report.
    """

    batches: Sequence[tuple[np.ndarray, ...]]
    source: str


@dataclass(frozen=True)
class Scheme:
    """One way to compress a graph.

    Attributes:
        method: a name of METHODS: int8, int8-dynamic, int8-weights, int4-weights, fp16, bf16.
        setting: choices of the method, such as {"ranges": "percentile"}.
        keep: names of nodes that stay as they are.
    """

    method: str
    setting: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    keep: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Layer:
    """What became of one operator that could have been compressed.

    Attributes:
        node, operator: its name in the graph, its operator.
        precision: what it is computed in now: "int8", "fp32", ...
        reason: why it stays as it was, "" where it was compressed.
        sensitivity: error of the outputs when only this layer is compressed (relative, against
            float64), where that was measured.
    """

    node: str
    operator: str
    precision: str
    reason: str = ""
    sensitivity: float | None = None


@dataclass(frozen=True)
class Compressed:
    """A graph and what was done to it."""

    graph: ir.Model
    scheme: Scheme
    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()


# graph, scheme, calibration (None where the method needs none) -> compressed; the given graph is
# left as it was. Raises RefusedError with the reason, InputError about the calibration.
Method = Callable[[ir.Model, Scheme, Calibration | None], Compressed]
