"""Variants: the graph in lower precisions, each within what may be lost, or refused."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from redline import machine
from redline.compress.calibrate import collect
from redline.compress.methods import METHODS
from redline.compress.scheme import Calibration
from redline.errors import InputError, RedlineError, UnknownNameError
from redline.graph.model import Model
from redline.lowering import OutOfTimeError, Variant, Workshop, lower
from redline.measure import work
from redline.measure.record import Record, Tried
from redline.measure.statistics import ratio
from redline.quality import Evaluate, Judge, judge, opened
from redline.search.goal import Goal
from redline.search.race import Lane, race

_SHARE = 0.4  # of what is left of the budget: after it no further graph is made
_GPU = ("fp8", "fp4")
_COPIES = 4  # times the bytes of all graphs: what their sessions may take together
_RIVALS = 2  # graphs of one precision that go on to the race of all backends
PRECISIONS = ("fp32", *METHODS, *_GPU)


@dataclass(frozen=True)
class Variants:
    """What may compete, what was tried on the way, and what could not be made."""

    ready: tuple[Variant, ...] = ()
    tried: tuple[Tried, ...] = ()
    refused: tuple[Record, ...] = ()
    judge: Judge | None = None
    cancelled: bool = False  # by Ctrl-C


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

    A variant that loses too much gets other ranges, then layers back in float until it does not;
    where nothing short of all is enough, the precision is refused with what it lost. Of several
    graphs of one precision that hold, those that ran fastest side by side are ready.

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
    try:
        say("timing the graphs of lower precision beside fp32's")
        return _paced(found, model, folder)
    except KeyboardInterrupt:
        return replace(found, cancelled=True)


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
    """One precision: as it is, then with other ranges, then with layers in float."""
    if name in _GPU:
        from redline.compress.gpu_floats import refusal

        reason = refusal(name) or f"{name} is for modules: redline.compress.low_float() makes one"
        return replace(found, refused=(*found.refused, _refused(name, reason)))
    jury = found.judge
    assert jury is not None
    rows, stopped = lower(Workshop(model, folder, held, jury, say), name)
    ready = [row.variant for row in rows if row.holds]
    refused = found.refused
    if not ready:
        least = min(row.tried.drop for row in rows)
        lost = f"{least:.4g}" if math.isfinite(least) else "more than half of every output to noise"
        reason = f"it loses {lost}, and {jury.max_drop:g} may be lost ({jury.how}){stopped}"
        refused = (*refused, _refused(name, reason, "fp32 stays; try quantisation-aware training"))
    tried = (*found.tried, *(row.tried for row in rows))
    return replace(found, ready=(*found.ready, *ready), tried=tried, refused=refused)


def _paced(found: Variants, model: Model, folder: Path) -> Variants:
    """Every graph timed beside fp32's, in one race in ONNX Runtime; of those of one precision that
    hold, only such as may be the fastest stay.

    One thread each: a pool that still spins for one session would take the core of the next.
    """
    size = sum(tried.size for tried in found.tried) + (folder / "graph.onnx").stat().st_size
    if not found.tried or size * _COPIES > machine.memory_available():
        return found
    names = ["fp32", *(tried.name for tried in found.tried)]
    paths = [folder / "graph.onnx", *(folder / f"graph-{name}.onnx" for name in names[1:])]
    with ExitStack() as stack:
        lanes = []
        for name, path in zip(names, paths, strict=True):
            session = stack.enter_context(closing(opened(path, model.signature, threads=1)))
            state: dict[str, Any] = {"runner": session}
            work.prepare(state, inputs=list(model.example))
            lanes.append(Lane(name, partial(_turn, state)))
        race(lanes, time.monotonic(), keep=names)  # two seconds, and five rounds at most
    pace = {lane.id: lane.rounds for lane in lanes if lane.rounds}
    if "fp32" not in pace:
        return found
    tried = tuple(
        replace(one, seconds=median(pace[one.name]), fp32_seconds=median(pace["fp32"]))
        if one.name in pace else one
        for one in found.tried
    )  # fmt: skip
    return replace(found, tried=tried, ready=tuple(_fastest(found.ready, pace)))


def _turn(state: dict[str, Any], seconds: float) -> list[float]:
    return work.time_block(state, seconds=seconds)


def _fastest(ready: Sequence[Variant], pace: Mapping[str, Sequence[float]]) -> Iterator[Variant]:
    """Of each precision the fastest graph, and those that tie with it, _RIVALS at most."""
    for name in dict.fromkeys(one.method for one in ready):
        rivals = [one for one in ready if one.method == name]
        rivals.sort(key=lambda one: median(pace.get(one.name, [math.inf])))
        best = pace.get(rivals[0].name)
        tied = [one for one in rivals[1:] if best and one.name in pace
                and ratio(pace[one.name], best)[1] <= 1]  # fmt: skip
        yield from [rivals[0], *tied][:_RIVALS]
