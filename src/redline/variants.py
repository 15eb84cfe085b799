"""Variants: the graph in lower precisions, each within what may be lost, or refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import onnx_ir

from redline.compress.calibrate import collect
from redline.compress.methods import CALIBRATED, METHODS, compress
from redline.compress.mixed import keeping, plan, sensitivities
from redline.compress.scheme import Calibration, Compressed, Scheme
from redline.errors import InputError, RedlineError, RefusedError, UnknownNameError
from redline.graph.model import Model
from redline.graph.serialize import graph_hash, to_bytes
from redline.measure.record import Kept, Record, Tried
from redline.quality import Evaluate, Judge, judge, opened
from redline.search.goal import Goal

_SHARE = 0.4  # of what is left of the budget: after it no further graph is made
_GPU = ("fp8", "fp4")
_PACE = 0.15  # seconds for the calls that compare a graph's time with fp32's
PRECISIONS = ("fp32", *METHODS, *_GPU)


@dataclass(frozen=True)
class Variant:
    """A graph of lower precision that may compete: its name, its file, its hash."""

    name: str
    path: Path
    graph_hash: str


@dataclass(frozen=True)
class Variants:
    """What may compete, what was tried on the way, and what could not be made."""

    ready: tuple[Variant, ...] = ()
    tried: tuple[Tried, ...] = ()
    refused: tuple[Record, ...] = ()
    judge: Judge | None = None
    cancelled: bool = False  # by Ctrl-C


class OutOfTimeError(RefusedError):
    """The share of the budget for making graphs is spent."""


def check(precisions: Sequence[str]) -> tuple[str, ...]:
    """The lower precisions that were asked for.

    Raises:
        UnknownNameError: a precision that does not exist.
        InputError: none is given.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise UnknownNameError("precision", precision, PRECISIONS)
    if not precisions:
        raise InputError("no precision is given", hint=f"known: {', '.join(PRECISIONS)}")
    return tuple(dict.fromkeys(p for p in precisions if p != "fp32"))


def share(start: float, budget: float) -> float:
    """When making graphs ends, as a time.monotonic(): capturing has had its part of the budget.

    Args:
        start: a time.monotonic(); budget: seconds from it.
    """
    now = time.monotonic()
    return now + _SHARE * max(0.0, start + budget - now)


def make_variants(
    model: Model, folder: Path, precisions: Sequence[str], calibration: Any,
    evaluate: Evaluate | None, goal: Goal, cases: Sequence[Any], say: Callable[[str], None],
    deadline: float = float("inf"),
) -> Variants:  # fmt: skip
    """Compress the graph to every precision asked for, and hold each to the accuracy.

    A variant that loses too much gets layers back in float, the most sensitive ones first, until it
    does not; where half of the layers are not enough, the precision is refused with what it lost.

    A graph on which `evaluate` fails is refused with what it raised. Ctrl-C ends the making; what
    is ready by then is returned.

    Args:
        deadline: a time.monotonic() after which nothing new begins.

    Raises:
        InputError: the calibration data do not fit, or `evaluate` fails on the model itself.
    """
    wanted = check(precisions)
    held = None if calibration is None else collect(calibration, model.signature)
    if not wanted:
        return Variants()
    if model.graph is None:
        reason = "the model has no ONNX graph, and only graphs are compressed"
        return Variants(refused=tuple(_refused(name, reason) for name in wanted))
    graph = folder / "graph.onnx"
    inputs = [case.inputs for case in cases]
    jury = judge(
        goal.max_drop, evaluate, model.module, graph, model.signature, held, inputs
    )  # fmt: skip
    found = Variants(judge=jury)
    for name in wanted:
        try:
            found = _one(found, model, folder, name, held, _until(deadline, say))
        except RedlineError as error:
            refused = _refused(name, error.what, error.hint)
            found = replace(found, refused=(*found.refused, refused))
        except KeyboardInterrupt:
            refused = _refused(name, "stopped by Ctrl-C before it was ready")
            return replace(found, refused=(*found.refused, refused), cancelled=True)
    return found


def scored(records: Sequence[Record], found: Variants) -> list[Record]:
    """The records with the accuracy of their graph, where the caller gave a metric.

    It was measured once for each graph; the winner's was measured on its own backend.
    """
    jury = found.judge
    if jury is None or jury.wanted is None:
        return list(records)
    known = {"fp32": jury.wanted} | {tried.name: jury.wanted - tried.drop for tried in found.tried}
    return [
        replace(record, accuracy=known[record.precision])
        if record.accuracy is None and record.timing and record.precision in known
        else record
        for record in records
    ]


def _until(deadline: float, say: Callable[[str], None]) -> Callable[[str], None]:
    """The same voice, which raises OutOfTimeError once it is too late to begin what it says."""

    def checked(text: str) -> None:
        if time.monotonic() > deadline:
            raise OutOfTimeError("no time was left to make it", hint="give a larger budget")
        say(text)

    return checked


def _refused(name: str, reason: str, hint: str = "") -> Record:
    return Record(name, name, "refused", precision=name, reason=reason, hint=hint)


def _one(
    found: Variants, model: Model, folder: Path, name: str, held: Calibration | None,
    say: Callable[[str], None],
) -> Variants:  # fmt: skip
    """One precision: as it is, then with more and more layers in float."""
    if name in _GPU:
        from redline.compress.gpu_floats import refusal

        reason = refusal(name) or f"{name} is for modules: redline.compress.low_float() makes one"
        return replace(found, refused=(*found.refused, _refused(name, reason)))
    assert model.graph is not None
    say(f"compressing to {name}")
    made = compress(model.graph, Scheme(name), held)
    variant, tried = _tried(found, model, folder, name, made)
    jury = found.judge
    assert jury is not None
    rows, ready = [tried], [variant] if jury.allows(tried.drop) else []
    stopped = ""
    if not ready and held is not None and name in CALIBRATED:
        try:
            made = sensitivities(model.graph, made, held, say)
            rows[0] = _with_layers(tried, made)
            for names in plan(made):
                say(f"{name} with {len(names)} layers in float")
                mixed = keeping(model.graph, made, names)
                variant, tried = _tried(found, model, folder, f"{name}-keep{len(names)}", mixed)
                rows.append(tried)
                if jury.allows(tried.drop):
                    ready.append(variant)
                    break
        except OutOfTimeError:
            stopped = "; no time was left to try more layers in float, give a larger budget"
    refused = found.refused
    if not ready:
        least = min(row.drop for row in rows)
        reason = f"it loses {least:.4g}, and {jury.max_drop:g} may be lost ({jury.how}){stopped}"
        refused = (*refused, _refused(name, reason, "fp32 stays; try quantisation-aware training"))
    return replace(
        found, ready=(*found.ready, *ready), tried=(*found.tried, *rows), refused=refused
    )


def _tried(
    found: Variants, model: Model, folder: Path, name: str, made: Compressed
) -> tuple[Variant, Tried]:
    """Write the graph, and see what it loses in ONNX Runtime."""
    path = folder / f"graph-{name}.onnx"
    path.write_bytes(to_bytes(made.graph))
    assert found.judge is not None
    session = opened(path, model.signature)
    try:
        drop = found.judge.drop(session)
    finally:
        session.close()
    pace, plain = _paces(path, folder / "graph.onnx", model)
    about = (path.stat().st_size, drop, found.judge.max_drop, found.judge.how)
    tried = _with_layers(Tried(name, *about, seconds=pace, fp32_seconds=plain), made)
    return Variant(name, path, graph_hash(onnx_ir.load(path))), tried


def _paces(graph: Path, plain: Path, model: Model) -> tuple[float, float]:
    """Median seconds of a call of both graphs, on one thread each: a pool that still spins for one
    would take the core of the other.
    """
    sessions = [opened(path, model.signature, threads=1) for path in (graph, plain)]
    samples: tuple[list[float], list[float]] = ([], [])
    try:
        for session in sessions:
            session.run(list(model.example))
        end = time.perf_counter() + _PACE
        while len(samples[0]) < 3 or (time.perf_counter() < end and len(samples[0]) < 300):
            for session, times in zip(sessions, samples, strict=True):
                start = time.perf_counter()
                session.run(list(model.example))
                times.append(time.perf_counter() - start)
    finally:
        for session in sessions:
            session.close()
    return median(samples[0]), median(samples[1])


def _with_layers(tried: Tried, made: Compressed) -> Tried:
    layers = tuple(
        Kept(one.node, one.operator, one.precision, one.reason, one.sensitivity)
        for one in made.layers
    )
    return replace(tried, layers=layers)
