"""optimize(): the whole way from a model to an engine, in one function read top to bottom."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from redline import backends, knobs, machine
from redline.backends.base import Candidate
from redline.capture.capture import capture
from redline.capture.cases import make_cases
from redline.capture.reference import make_reference
from redline.contest import Outcome, contest, forget, nothing_left, propose
from redline.crowning import Crowned, crown, fall_back
from redline.drop_in import Engine, Package
from redline.errors import GoalError, RefusedError
from redline.graph.cost import cost
from redline.graph.model import Model, Note
from redline.graph.serialize import to_bytes
from redline.measure import accuracy
from redline.measure.record import Record, Study, Tried
from redline.progress import Progress
from redline.quality import Evaluate
from redline.runtime.session import Session
from redline.search.cache import Cache
from redline.search.goal import Goal, quantity
from redline.side_by_side import compare
from redline.trial import Bench, discard
from redline.variants import check, make_variants, scored, share

__all__ = ["compare", "optimize"]

Dynamic = Mapping[str, Any]


def optimize(
    model: Any,
    example_inputs: Any = None,
    *,
    goal: Goal | None = None,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] = ("fp32",),
    dynamic: Dynamic | None = None,
    calibration: Any = None,
    evaluate: Evaluate | None = None,
    budget: float | str | None = None,
    seed: int = 0,
    use_cache: bool = True,
    eval_mode: bool = False,
    trust: bool = False,
    name: str | None = None,
    progress: str | bool = "auto",
) -> Engine:
    """Find the fastest verified engine for a model on this machine.

    Args:
        model: a torch.nn.Module in eval mode, an ExportedProgram, a Hugging Face model or pipeline,
            or the path of an ONNX or TorchScript file.
        example_inputs: what forward takes: a tensor, a tuple of positionals, a dict of keywords, or
            (tuple, dict). An ONNX file can do without.
        goal: what to look for and within which limits; latency by default.
        backends: names to try (see `redline doctor`); None tries all.
        precisions: numeric precisions to try besides each other: "fp32", "int8" (needs
            `calibration`), "int8-dynamic", "int8-weights", "int4-weights", "fp16", "bf16";
            docs/compress.md says what each does. What loses more than
            Goal(max_drop=...) allows, or 0.01, gets layers back in float, or is refused.
        dynamic: axes that may change: {"batch": (min, opt, max)} for axis 0 of every input, or
            {"input name": {axis: ("dim name", min, opt, max)}}.
        calibration: a loader of inputs like those of real use: tensors, (x, label) or dicts.
        evaluate: accuracy(callable) -> float on your own data, higher is better; with
            Goal(max_drop=...) a candidate that falls below the model by more is refused. Without
            it a lower precision is held to the outputs of fp32 on the calibration data.
        budget: wall-clock promise: seconds, or text such as "90s" or "3m". The best so far is
            always valid, and Ctrl-C returns it.
        seed: of the random inputs that candidates are verified on.
        use_cache: take timings and built parts of an earlier run on this machine.
        eval_mode: put a model that is in training mode into eval mode while it is captured.
        trust: open files that can run code when loaded (.pt2).
        name: what to call the model in reports.
        progress: draw a bar on stderr: "auto" (on a terminal), True or False.

    Returns:
        An engine that is called like the model. It is never slower than eager or torch.compile
        beyond the interval of the measurement: they are candidates too.

    Raises:
        InputError: the model, the inputs, the goal or the budget cannot be used.
        CaptureError: an axis that must be dynamic is not.
        BackendError: no candidate could run an ONNX file.

    Example:
        >>> engine = redline.optimize(model, torch.randn(1, 3, 224, 224), budget="2m")
        >>> engine.save("model.redline")
    """
    start = time.monotonic()
    goal = goal or Goal()
    wall = budget or knobs.text("REDLINE_BUDGET") if budget != 0 else 0
    seconds = quantity(wall, "time", "budget")
    check(precisions)
    folder = Path(tempfile.mkdtemp(prefix="redline-"))
    try:
        with Progress(seconds, progress) as say:
            say("capturing the model")
            how: dict[str, Any] = {"name": name, "trust": trust, "eval_mode": eval_mode}
            captured = capture(model, example_inputs, dynamic=_for_batch(goal, dynamic), **how)
            captured = _with_graph_written(captured, folder)
            propose(captured, backends)  # a name that is wrong is told before the work
            say("running the reference in float64")
            bench = set_up(captured, folder, seed=seed, use_cache=use_cache)
            compressing = (precisions, calibration, evaluate, goal, bench.cases, say)
            lower = make_variants(captured, folder, *compressing, share(start, seconds))
            bench.take(lower)
            candidates, left_out = propose(captured, backends, list(bench.variants))
            choose = partial(crown, bench, goal=goal, evaluate=evaluate, judge=lower.judge)
            hold = partial(contest, bench, candidates, seconds, start, say)
            crowned, outcomes = _settle(bench, candidates, choose, hold)
        crowned = crowned or fall_back(bench, outcomes)
        if crowned is None:
            raise nothing_left([outcome.entry.record for outcome in outcomes] + left_out)
        winner, session, records, package = crowned
        records = [*scored(records, lower), *left_out, *lower.refused]
        study = _write_up(bench, goal, winner, records, lower.tried, start, seconds)
        return _engine(bench, winner, session, study, package)
    finally:
        discard(folder)


def _settle(
    bench: Bench,
    candidates: Sequence[Candidate],
    choose: Callable[[list[Outcome]], Crowned | None],
    hold: Callable[[], list[Outcome]],
) -> tuple[Crowned | None, list[Outcome]]:
    """Hold the contest and choose; once more without the cache, if what it held fails now."""
    outcomes = hold()
    crowned = choose(outcomes)
    if crowned is None and any(outcome.entry.record.from_cache for outcome in outcomes):
        forget(bench, candidates)
        outcomes = hold()
        crowned = choose(outcomes)
    return crowned, outcomes


def _for_batch(goal: Goal, dynamic: Dynamic | None) -> Dynamic | None:
    """Move the opt size of the batch dim to the goal's batch."""
    if goal.batch is None:
        return dynamic
    span = (dynamic or {}).get("batch")
    if not isinstance(span, Sequence) or not span[0] <= goal.batch <= span[-1]:
        raise GoalError(
            f"Goal(batch={goal.batch}) needs a dynamic batch that holds it, got {span}",
            hint=f'give dynamic={{"batch": (1, {goal.batch}, {4 * goal.batch})}}',
        )
    return {**(dynamic or {}), "batch": (span[0], goal.batch, span[-1])}


def set_up(model: Model, folder: Path, *, seed: int = 0, use_cache: bool = True) -> Bench:
    """Run the reference, and put together what every trial shares."""
    cases = make_cases(model.signature, model.example, seed=seed)
    before = time.monotonic()
    reference = make_reference(model, cases)
    spent = time.monotonic() - before
    pairs = zip(reference.baseline, reference.expected, strict=True)
    return Bench(
        model=model,
        cases=cases,
        reference=reference,
        yardstick=max(accuracy.error(eager, expected) for eager, expected in pairs),
        eager_seconds=spent / len(cases),
        folder=folder,
        cache=Cache(knobs.cache_dir())
        if use_cache and knobs.text("REDLINE_CACHE") != "0"
        else None,
    )


def _with_graph_written(model: Model, folder: Path) -> Model:
    """Write the graph where children find it; one over ONNX's 2 GiB is left out, with a note."""
    if model.graph is None:
        return model
    try:
        (folder / "graph.onnx").write_bytes(to_bytes(model.graph))
    except RefusedError as error:
        if model.module is None:
            raise
        note = Note(error.what, error.where, error.hint)
        return replace(model, graph=None, notes=(*model.notes, note))
    return model


def _write_up(
    bench: Bench, goal: Goal, winner: Outcome, records: list[Record],
    compressed: tuple[Tried, ...], start: float, budget: float,
) -> Study:  # fmt: skip
    model = bench.model
    work = cost(model.graph, model.signature) if model.graph is not None else None
    chosen = next(record for record in records if record.winner)
    return Study(
        model=model.name,
        origin=model.origin,
        machine=msgspec.to_builtins(machine.card()),
        goal=str(goal),
        verdict=goal.verdict(chosen) if chosen.timing else "not measured",
        records=tuple(records),
        operators=work.operators if work else {},
        flops=work.flops if work else 0.0,
        bytes=work.bytes if work else 0.0,
        parameters=work.parameters if work else 0,
        yardstick=bench.yardstick,
        reference=bench.reference.how,
        notes=tuple((note.what, note.where, note.hint) for note in _notes(bench)),
        seconds=time.monotonic() - start,
        budget=budget,
        inputs=tuple(
            f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in model.signature.inputs
        ),
        versions=_versions(records),
        compressed=compressed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _notes(bench: Bench) -> tuple[Note, ...]:
    """What capture noted, and whether the timings can be trusted."""
    if not bench.busy:
        return bench.model.notes
    busy = Note(
        f"other processes used {bench.busy:.1f} cores while the candidates were timed, so the "
        "timings say little; they were not kept",
        hint="close what runs beside, and optimize again",
    )
    return (*bench.model.notes, busy)


def _versions(records: Sequence[Record]) -> dict[str, str]:
    names = dict.fromkeys(record.backend for record in records if record.outcome != "missing")
    return {name: backends.get(name).version() for name in names if name in backends.names()}


def _engine(
    bench: Bench, winner: Outcome, session: Session, study: Study, package: Package | None
) -> Engine:
    notices = [note.what for note in _notes(bench)]
    if winner.part is None and package:
        part = package.parts[0][0]
        notices.append(
            f"{winner.entry.record.id} runs inside PyTorch; a saved file holds {part.backend}"
        )
    return Engine(
        session,
        study,
        backend=winner.entry.record.backend,
        package=package,
        module=bench.model.module,
        notices=notices,
    )
