"""compare(): any mix of engines, ONNX files and models, timed in one interleaved run."""

from __future__ import annotations

import inspect
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from redline import backends, knobs, machine
from redline.backends.base import Candidate
from redline.backends.worker import pack_module
from redline.capture.capture import capture
from redline.capture.factory import load_factory
from redline.engine.file import open_file
from redline.engine.manifest import Part, Setting
from redline.errors import InputError, RedlineError
from redline.graph.model import Model
from redline.graph.serialize import to_bytes
from redline.measure import accuracy
from redline.measure.child import Child
from redline.measure.record import Record, Study
from redline.measure.statistics import ratio, summarize
from redline.progress import Progress
from redline.report.report import Report
from redline.search.goal import quantity
from redline.search.race import Lane, race
from redline.signature import Signature
from redline.trial import outcome_of


@dataclass
class _Target:
    """One contestant: a child that has it open, and what to show for it."""

    name: str
    backend: str
    child: Child
    signature: Signature
    example: tuple[np.ndarray, ...]
    size: int | None = None

    def turn(self, seconds: float) -> list[float]:
        return self.child.call(  # type: ignore[no-any-return]
            "redline.measure.work:time_block", seconds=seconds, timeout=600, watch=False
        )


def compare(
    targets: Sequence[Any],
    example_inputs: Any = None,
    *,
    budget: float | str | None = None,
    trust: bool = False,
    progress: str | bool = "auto",
) -> Report:
    """Time several things side by side; the outputs of all are held against those of the first.

    Args:
        targets: engine files, ONNX files, "module:factory" texts or torch modules, in any mix.
        example_inputs: as for optimize(); None takes those stored in the first engine file, or
            random ones for an ONNX file.
        budget: seconds, or text such as "30s".
        trust: run machine code in engine files that no trusted key signed.

    Returns:
        A report with one record for each target; `error` is against the first one's outputs.

    Raises:
        InputError: a target that cannot be read, or that takes other inputs than the first.

    Example:
        >>> print(redline.compare(["model.redline", "net.onnx"]))
    """
    if not targets:
        raise InputError("nothing to compare", hint="name engines, ONNX files or module:factory")
    start = time.monotonic()
    seconds = quantity(budget or knobs.text("REDLINE_BUDGET"), "time", "budget")
    opened: list[_Target] = []
    with (
        tempfile.TemporaryDirectory(prefix="redline-") as folder,
        Progress(seconds, progress) as say,
    ):
        try:
            for number, target in enumerate(targets):
                say(f"opening {target}")
                home = Path(folder) / str(number)
                home.mkdir()
                opened.append(_open(target, example_inputs, opened[:1], home, trust))
                _same_inputs(opened)
            records = _time(opened, start + seconds, say)
        finally:
            for target in opened:
                target.child.close()
    return Report(
        Study(
            model=" | ".join(target.name for target in opened),
            origin="comparison",
            machine=msgspec.to_builtins(machine.card()),
            goal="compare latency",
            verdict="measured",
            records=tuple(records),
            reference=f"the outputs of {opened[0].name}",
            seconds=time.monotonic() - start,
            budget=seconds,
            inputs=tuple(
                f"{spec.name}: {spec.dtype}{list(array.shape)}"
                for spec, array in zip(opened[0].signature.inputs, opened[0].example, strict=True)
            ),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    )


def _open(target: Any, example: Any, first: Sequence[_Target], home: Path, trust: bool) -> _Target:
    path = Path(target) if isinstance(target, str | Path) else None
    if path is not None and path.suffix == ".redline":
        return _open_engine(path, trust)
    if path is not None and path.suffix != ".onnx" and ":" in str(target) and not path.exists():
        target = load_factory(str(target))
    if example is None and first:
        example = _inherited(first[0], target)
    model = capture(target, example, trust=trust)
    if model.module is None:
        return _open_graph(model, home)
    return _open_module(model)


def _inherited(first: _Target, target: Any) -> Any:
    """The first target's inputs: by name where forward has these names, else by position."""
    names = [spec.name for spec in first.signature.inputs]
    forward = getattr(target, "forward", None)
    if forward is not None and set(names) <= set(inspect.signature(forward).parameters):
        return dict(zip(names, first.example, strict=True))
    return tuple(first.example)


def _open_engine(path: Path, trust: bool) -> _Target:
    with open_file(path) as file:
        signature = file.manifest.signature
        example = tuple(file.check_arrays()[0])
    child = Child()
    backend = child.call("redline.measure.work:open_engine", path=str(path.resolve()), trust=trust)
    return _Target(str(path), backend, child, signature, example, path.stat().st_size)


def _open_graph(model: Model, home: Path) -> _Target:
    graph = home / "graph.onnx"
    assert model.graph is not None, "an ONNX file has a graph"
    graph.write_bytes(to_bytes(model.graph))
    setting: Setting = {"threads": machine.usable_cores(), "level": "all"}
    child = Child()
    child.call(
        "redline.measure.work:open_runner",
        part=msgspec.to_builtins(Part("onnxruntime", setting, uses_graph=True)),
        folder=str(home),
        graph=str(graph),
        signature=msgspec.to_builtins(model.signature),
    )
    size = graph.stat().st_size
    return _Target(f"{model.name}.onnx", "onnxruntime", child, model.signature, model.example, size)


def _open_module(model: Model) -> _Target:
    child = Child()
    child.call(
        "redline.backends.worker:open_module",
        entry=backends.BACKENDS["eager"],
        candidate=msgspec.to_builtins(Candidate("eager")),
        signature=msgspec.to_builtins(model.signature),
        module=pack_module(model.module),
    )
    return _Target(model.name, "eager", child, model.signature, model.example)


def _same_inputs(opened: Sequence[_Target]) -> None:
    first, last = opened[0], opened[-1]
    got = [
        (spec.dtype, array.shape)
        for spec, array in zip(last.signature.inputs, last.example, strict=True)
    ]
    wanted = [
        (spec.dtype, array.shape)
        for spec, array in zip(first.signature.inputs, first.example, strict=True)
    ]
    if got != wanted:
        raise InputError(
            f"{last.name} takes {got}, but {first.name} takes {wanted}",
            hint="compare things that take the same inputs, or give --input",
        )


def _time(opened: Sequence[_Target], deadline: float, say: Any) -> list[Record]:
    inputs = list(opened[0].example)
    records: list[Record] = []
    lanes: list[Lane] = []
    expected: list[np.ndarray] | None = None
    for number, target in enumerate(opened):
        name = (
            target.name
            if [one.name for one in opened].count(target.name) == 1
            else f"{target.name} #{number + 1}"
        )
        record = Record(name, target.backend, "ok", size=target.size)
        try:
            outputs = target.child.call("redline.measure.work:run", inputs=inputs)
            expected = outputs if expected is None else expected
            target.child.call("redline.measure.work:prepare", inputs=inputs)
            peak = target.child.call("redline.measure.work:peak_memory")
            record = replace(record, error=accuracy.error(outputs, expected), peak_memory=peak)
            lanes.append(Lane(name, target.turn))
        except RedlineError as error:
            record = replace(record, outcome=outcome_of(error), reason=error.what, hint=error.hint)
        records.append(record)
    finalists = race(lanes, deadline, keep=[lane.id for lane in lanes], tick=say)
    return [_timed(record, lanes, finalists) for record in records]


def _timed(record: Record, lanes: Sequence[Lane], finalists: Sequence[Lane]) -> Record:
    lane = next((lane for lane in lanes if lane.id == record.id), None)
    if lane is None:
        return record
    if lane.failure:
        return replace(record, outcome=outcome_of(lane.failure), reason=lane.failure.what)
    timing = summarize(lane.blocks)
    best = finalists[0]
    return replace(
        record,
        timing=timing,
        throughput=1 / timing.median,
        ratio=ratio(lane.rounds, best.rounds),
        winner=lane is best,
    )
