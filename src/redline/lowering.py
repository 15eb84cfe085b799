"""One lower precision: its graph, then other ranges, then layers in float until the bound holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir

from redline.capture.cases import Case
from redline.capture.reference import make_reference
from redline.compress.float_nodes import named, plain_proto
from redline.compress.lookups import unpacked_late
from redline.compress.methods import CALIBRATED, compress
from redline.compress.mixed import (
    SAMPLES,
    between,
    by_error,
    by_error_per_work,
    keeping,
    sensitivities,
    smallest,
)
from redline.compress.scheme import Calibration, Compressed, Scheme
from redline.errors import RefusedError
from redline.graph.cost import flops_by_node
from redline.graph.model import Model
from redline.graph.serialize import graph_hash, to_bytes
from redline.measure.record import Kept, Tried
from redline.quality import Judge, opened

_RANGES = ("mse", "minmax")  # what is tried when those of the method lose too much


class OutOfTimeError(RefusedError):
    """The share of the budget for making graphs is spent."""


@dataclass(frozen=True)
class Variant:
    """A graph of lower precision that may compete: its name, its method, its file, its hash."""

    name: str
    method: str
    path: Path
    graph_hash: str


@dataclass(frozen=True)
class Weighed:
    """A graph that was made and written, and what it loses."""

    made: Compressed
    variant: Variant
    tried: Tried
    holds: bool


@dataclass(frozen=True)
class Workshop:
    """What making the graphs of one model shares; `say` raises OutOfTimeError when it is late."""

    model: Model
    folder: Path
    calibration: Calibration | None
    judge: Judge
    say: Callable[[str], None]

    def weigh(self, name: str, made: Compressed) -> Weighed:
        """Write the graph, and see what it loses in ONNX Runtime."""
        path = self.folder / f"graph-{name}.onnx"
        path.write_bytes(to_bytes(unpacked_late(made.graph)))
        session = opened(path, self.model.signature)
        try:
            drop = self.judge.drop(session)
        finally:
            session.close()
        about = (path.stat().st_size, drop, self.judge.max_drop, self.judge.how)
        tried = _with_layers(Tried(name, *about), made)
        variant = Variant(name, made.scheme.method, path, graph_hash(onnx_ir.load(path)))
        return Weighed(made, variant, tried, self.judge.allows(drop))


def lower(shop: Workshop, name: str) -> tuple[list[Weighed], str]:
    """Every graph that was made of one precision until some hold, and why not more were made.

    Raises:
        RedlineError: not even the first could be made or judged.

    Example:
        >>> rows, stopped = lower(shop, "int8")
        >>> [row.variant.name for row in rows if row.holds]
        ['int8-keep3']
    """
    shop.say(f"compressing to {name}")
    assert shop.model.graph is not None, "whoever asks has looked"
    rows = [shop.weigh(name, compress(shop.model.graph, Scheme(name), shop.calibration))]
    if rows[0].holds or shop.calibration is None or name not in CALIBRATED:
        return rows, ""
    try:
        _other_ranges(shop, name, rows)
        if not any(row.holds for row in rows):
            _in_float(shop, rows)
    except OutOfTimeError:
        return rows, "; no time was left to try more layers in float, give a larger budget"
    return rows, ""


def _other_ranges(shop: Workshop, name: str, rows: list[Weighed]) -> None:
    """Other ways to find the ranges of activations, which cost no time when run."""
    assert shop.model.graph is not None
    for ranges in _RANGES:
        shop.say(f"{name} with {ranges} ranges")
        made = compress(shop.model.graph, Scheme(name, {"ranges": ranges}), shop.calibration)
        rows.append(shop.weigh(f"{name}-{ranges}", made))
        if rows[-1].holds:
            return


def _in_float(shop: Workshop, rows: list[Weighed]) -> None:
    """Layers back in float: as few as hold by error, and those that cost less work, if they hold.

    Sets of one order are nested, so that what they lose falls as they grow, and a larger bound
    never keeps more in float.
    """
    graph, held = shop.model.graph, shop.calibration
    assert graph is not None
    assert held is not None
    place = min(range(len(rows)), key=lambda number: rows[number].tried.drop)
    shop.say("running the calibration data in float64")
    batches = held.batches[:SAMPLES]
    cases = [Case(f"calibration batch {n}", batch) for n, batch in enumerate(batches)]
    reference = make_reference(shop.model, cases)
    base = sensitivities(graph, rows[place].made, batches, reference.expected, shop.say)
    rows[place] = replace(rows[place], tried=_with_layers(rows[place].tried, base))
    known: dict[frozenset[str], bool] = {}

    def holds(order: list[str], count: int, suffix: str = "") -> bool:
        names = frozenset(order[:count])
        if names not in known:
            name = f"{rows[place].variant.name}-keep{count}{suffix}"
            shop.say(f"{name}: {count} layers in float")
            rows.append(shop.weigh(name, keeping(graph, base, names)))
            known[names] = rows[-1].holds
        return known[names]

    first = by_error(base)
    count = smallest(len(first) - 1, lambda count: holds(first, count))
    if count is None:
        return
    work = flops_by_node(onnx_ir.serde.deserialize_model(named(plain_proto(graph))),
                         shop.model.signature)  # fmt: skip
    second = by_error_per_work(base, work)
    bound = sum(work.get(name, 0.0) for name in first[:count])
    fitting = [n for n in range(1, len(second))
               if sum(work.get(name, 0.0) for name in second[:n]) < bound]  # fmt: skip
    if fitting and holds(second, fitting[-1], "-cheap"):
        between(0, fitting[-1], lambda count: holds(second, count, "-cheap"))


def _with_layers(tried: Tried, made: Compressed) -> Tried:
    layers = tuple(
        Kept(one.node, one.operator, one.precision, one.reason, one.sensitivity)
        for one in made.layers
    )
    return replace(tried, layers=layers)
