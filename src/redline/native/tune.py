"""Tuning: every group's schedules are timed inside the whole model, all groups at the same time.

A group timed alone has warm caches that it will not have in the model. Here variant i of the model
gives each group its i-th schedule, so that a dozen builds at most time all schedules of all groups
where they will run. The two best of each group meet once more; the sum must beat the default.
"""

from __future__ import annotations

import ctypes
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redline.native.ir import Node, Program
from redline.native.isa import Isa

Way = Mapping[str, Any]  # "tile": (rows, vectors), "order": "rows" | "panels", "winograd", "expand"
Choices = dict[str, Way]  # by the names of a fused node, joined by "+"
Build = Callable[[Choices, Path], None]
MOST = 12  # schedules of one group
_CALLS = 12


@dataclass(frozen=True)
class Unit:
    """What is chosen together: a node, or a depthwise convolution with the 1x1 before it.

    Attributes:
        key: the node that carries the choice; names: whose groups' times count for it.
        ways: its schedules, the default first.
    """

    key: str
    names: frozenset[str]
    ways: tuple[Way, ...]


def key(node: Node) -> str:
    """How a choice names its node."""
    return "+".join(node.names)


def space(program: Program, isa: Isa, winograd: bool) -> list[Unit]:
    """The units of a fused program that have a choice, each with at most MOST schedules."""
    makers = {node.out: node for node in program.nodes}
    found = []
    for node in program.nodes:
        ways: list[Way] = [{}]
        names = set(node.names)
        if node.kind in ("conv", "gemm"):
            ways += [{"tile": tile} for tile in _tiles(node, isa)]
        if node.kind == "conv" and node.attrs["groups"] == 1:
            ways += [{"order": order} for order in ("rows", "panels")]
            if winograd and _could_be_winograd(node):
                ways += [{"winograd": outputs} for outputs in (4, 2, 0)]
        if node.kind == "depthwise" and node.ins[0] in makers:
            names |= set(makers[node.ins[0]].names)
            ways += [{"expand": False}, {"expand": True}]
        if node.kind == "attention":
            ways += [{"blocks": False}, {"blocks": True}]
        if len(ways) > 1:
            found.append(Unit(key(node), frozenset(names), tuple(ways[:MOST])))
    return found


def _could_be_winograd(node: Node) -> bool:
    a = node.attrs
    return bool(
        node.floating
        and a["weights"].shape[2:] == (3, 3)
        and a["strides"] == (1, 1)
        and a["dilations"] == (1, 1)
    )


def _tiles(node: Node, isa: Isa) -> list[tuple[int, int]]:
    """The three best shapes of a tile by the analytic model: two fused multiply-adds a cycle, two
    loads a cycle (a broadcast for each row, one for each vector of weights), all sums in registers.
    """
    columns = node.attrs["n"] if node.kind == "gemm" else node.attrs["weights"].shape[0]
    rows = node.attrs["m"] if node.kind == "gemm" else int(np.prod(node.out.shape[2:]))
    vectors = -(-columns // isa.lanes)
    scored = []
    for wide in range(1, min(8, vectors) + 1):
        most = min(rows, isa.accumulators // wide)
        tiles = -(-rows // most)
        high = -(-rows // tiles)
        cycles = max(high * wide, high + wide) / 2
        waste = tiles * high / rows * (-(-vectors // wide) * wide / vectors)
        scored.append((cycles / (high * wide) * waste, -wide, (most, wide)))
    return [shape for _, _, shape in sorted(scored)[:3]]


class Model:
    """A built model, opened to time its groups on inputs of zeros and ones."""

    def __init__(self, folder: Path, inputs: Sequence[np.ndarray]) -> None:
        library = ctypes.CDLL(str(folder / "model.so"))
        library.redline_describe.restype = ctypes.c_char_p
        library.redline_open.restype = ctypes.c_void_p
        library.redline_times.restype = ctypes.POINTER(ctypes.c_uint64)
        self._library, told = library, json.loads(library.redline_describe())
        self.names = [set(group["name"].split("+")) for group in told["groups"]]
        self._weights = np.zeros(64, np.uint8)
        if told["weights"]:
            self._weights = np.memmap(folder / "weights.bin", np.uint8, "r")
        address = ctypes.c_void_p(self._weights.ctypes.data)
        self._context = ctypes.c_void_p(library.redline_open(address))
        self._inputs = list(inputs)
        self._outputs = [np.empty(spec["shape"], spec["dtype"]) for spec in told["outputs"]]
        self._sources = _pointers(self._inputs)
        self._targets = _pointers(self._outputs)

    def call(self) -> float:
        """Run once; seconds."""
        start = time.perf_counter()
        self._library.redline_run(self._context, self._sources, self._targets)
        return time.perf_counter() - start

    def profile(self) -> np.ndarray:
        """The least nanoseconds of each group over some calls: what others do only adds."""
        self._library.redline_profile(self._context, 1)
        times = np.full(len(self.names), np.inf)
        for _ in range(_CALLS):
            self.call()
            found = self._library.redline_times(self._context)[: len(self.names)]
            times = np.minimum(times, found)
        self._library.redline_profile(self._context, 0)
        return times

    def close(self) -> None:
        """Let go of its threads and its workspace."""
        self._library.redline_close(self._context)


def _pointers(arrays: Sequence[np.ndarray]) -> Any:
    return (ctypes.c_void_p * max(1, len(arrays)))(*(array.ctypes.data for array in arrays))


def tune(
    units: Sequence[Unit], build: Build, inputs: Sequence[np.ndarray], seconds: float
) -> Choices:
    """The choices that ran fastest; {} where the default did.

    Args:
        build: writes "model.so" and "weights.bin" of the model under the given choices.
        inputs: what the model is timed on.
        seconds: no further variant is begun after so long.
    """
    until = time.monotonic() + seconds
    best: dict[str, list[tuple[float, int]]] = {unit.key: [] for unit in units}
    for place in range(max((len(unit.ways) for unit in units), default=0)):
        if place > 1 and time.monotonic() > until:
            break
        with tempfile.TemporaryDirectory() as name:
            model = _built({u.key: u.ways[place % len(u.ways)] for u in units}, build, name, inputs)
            times = model.profile()
            model.close()
        for unit in units:
            if place < len(unit.ways):
                took = sum(t for t, n in zip(times, model.names, strict=True) if n & unit.names)
                best[unit.key].append((float(took), place))
    ranked = {unit.key: [unit.ways[i] for _, i in sorted(best[unit.key])[:2]] for unit in units}
    return _final(units, ranked, build, inputs)


def _final(
    units: Sequence[Unit],
    ranked: Mapping[str, Sequence[Way]],
    build: Build,
    inputs: Sequence[np.ndarray],
) -> Choices:
    """First and second of each group once more, then what they make against the default."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first = _built({unit.key: ranked[unit.key][0] for unit in units}, build, one, inputs)
        second = _built({unit.key: ranked[unit.key][-1] for unit in units}, build, two, inputs)
        a, b = first.profile(), second.profile()
        a, b = np.minimum(a, first.profile()), np.minimum(b, second.profile())
        names = (first.names, second.names)
        first.close()
        second.close()
    chosen: Choices = {}
    for unit in units:
        took = [
            sum(t for t, n in zip(times, groups, strict=True) if n & unit.names)
            for times, groups in zip((a, b), names, strict=True)
        ]
        way = ranked[unit.key][0] if took[0] <= took[1] else ranked[unit.key][-1]
        if way:
            chosen[unit.key] = way
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        plain, tuned = _built({}, build, one, inputs), _built(chosen, build, two, inputs)
        pairs = [(plain.call(), tuned.call(), tuned.call(), plain.call()) for _ in range(_CALLS)]
        plain.close()
        tuned.close()
    gain = np.median([(p + q) / (s + t) for p, s, t, q in pairs])
    return chosen if gain > 1 else {}


def _built(choices: Choices, build: Build, folder: str, inputs: Sequence[np.ndarray]) -> Model:
    build({name: way for name, way in choices.items() if way}, Path(folder))
    model = Model(Path(folder), inputs)
    model.call()
    return model
