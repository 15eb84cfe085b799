"""All candidates of one model: propose, try in children, race, remember."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import psutil

from redline import backends, errors, knobs, machine
from redline.backends.base import Candidate, Traits
from redline.engine.manifest import Part
from redline.errors import RefusedError
from redline.graph.cost import operators
from redline.graph.model import Model
from redline.measure.record import Record
from redline.measure.statistics import summarize
from redline.search.choose import Entry
from redline.search.race import Lane, race
from redline.trial import Bench, Trial, read_part

_LOWER = 100  # what a lower precision adds to the rank: on a tie full precision wins
_BUILD_SHARE = 0.7  # of the budget: what building and verifying may take; the rest is the race's
_QUIET = 0.3  # cores that others may use without disturbing the race
_QUIET_WAIT = 8.0  # seconds to wait for that
_LOOK = 0.4  # seconds over which the use of the cores is read
_AT_ONCE = 2  # trials prepared side by side, given the cores; in the race each is alone

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """An entry for the choice, and what the engine needs if it wins."""

    entry: Entry
    candidate: Candidate | None = None
    part: Part | None = None
    folder: str = ""


def propose(
    model: Model, names: Sequence[str] | None, variants: Sequence[str] = ()
) -> tuple[list[Candidate], list[Record]]:
    """The candidates of every backend, and a record for each backend that cannot take part.

    Args:
        variants: names of the graphs of lower precision; backends that run them offer the same
            settings for each.

    Raises:
        UnknownNameError: a backend that does not exist.
    """
    traits = Traits(
        signature=model.signature,
        threads=machine.usable_cores(),
        has_graph=model.graph is not None,
        has_program=model.program is not None,
        has_module=model.module is not None,
        operators=operators(model.graph) if model.graph is not None else {},
    )
    chosen: list[Candidate] = []
    left_out: list[Record] = []
    for name in backends.names() if names is None else names:
        backend = backends.get(name)
        missing = backend.missing()
        if missing:
            left_out.append(
                Record(name, name, "missing", reason=missing.reason, hint=missing.command)
            )
            continue
        try:
            found = backend.candidates(traits)
        except RefusedError as error:
            left_out.append(Record(name, name, "refused", reason=error.what, hint=error.hint))
            continue
        chosen.extend(found)
        told: set[str] = set()
        for variant in variants:
            method = variant.partition("-keep")[0]
            why = backend.lacks(method)
            if not why:
                lower = (replace(one, precision=variant, rank=one.rank + _LOWER) for one in found)
                chosen.extend(lower)
            elif why not in told:
                told.add(why)
                what = f"{name} {method}"
                left_out.append(Record(what, name, "refused", precision=variant, reason=why))
    return chosen, left_out


def contest(
    bench: Bench, candidates: Sequence[Candidate], budget: float, start: float, say: Say
) -> list[Outcome]:
    """Try every candidate within the budget; the cache answers where it can answer for all of them.

    Args:
        budget: seconds from `start`, a time.monotonic().

    Ctrl-C ends the trials; what has been verified by then is still raced, for a moment.
    """
    known = _recall(bench, candidates, budget)
    if known is not None:
        say("from cache")
        return known
    trials = [Trial(bench, candidate) for candidate in candidates]
    try:
        _prepare(bench, trials, start + _BUILD_SHARE * budget, say)
        deadline = start + 0.9 * budget
        try:
            bench.busy = 0.0 if bench.cancelled else _wait_for_quiet(deadline, say)
        except KeyboardInterrupt:
            bench.cancelled = True
        if bench.cancelled:
            deadline = time.monotonic()
        outcomes = _race(trials, deadline, say)
    finally:
        for trial in trials:
            trial.close()
    if not bench.cancelled and not bench.busy:
        _remember(bench, outcomes, budget)
    return outcomes


def _prepare(bench: Bench, trials: Sequence[Trial], deadline: float, say: Say) -> None:
    """Build and verify, two at a time."""
    order = _order(trials)
    at_once = min(_AT_ONCE, machine.usable_cores())
    with ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(trial.prepare, deadline): trial for trial in order}
        try:
            while waiting:
                names = [trial.candidate.id for trial in list(waiting.values())[:at_once]]
                say(f"building and verifying {' and '.join(names)}")
                done, _ = wait(waiting, timeout=0.25, return_when=FIRST_COMPLETED)
                for future in done:
                    waiting.pop(future)
                    future.result()  # prepare() keeps failures to the record; a bug of ours is loud
        except BaseException as error:
            bench.cancelled = True
            for trial in waiting.values():
                trial.kill()
            if not isinstance(error, KeyboardInterrupt):
                raise


def _wait_for_quiet(deadline: float, say: Say) -> float:
    """Wait a while for other processes to leave the cores; returns how many of ours they still use.

    On a busy machine candidates with as many threads as cores look hundreds of times slower than
    they are: a thread that waits for one without a core spins until the scheduler has had its way.
    """
    if knobs.text("REDLINE_QUIET") == "0":
        return 0.0
    until = min(time.monotonic() + _QUIET_WAIT, deadline)
    while True:
        taken = machine.usable_cores() - _free_cores()
        if taken < _QUIET:
            return 0.0
        if time.monotonic() > until:
            return taken
        say("waiting for other processes to leave the cores")


def _free_cores() -> float:
    """Cores that nobody uses, of those that this process may run on."""
    shares: list[float] = psutil.cpu_percent(interval=_LOOK, percpu=True)
    process = psutil.Process()
    ours = process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(len(shares))
    return sum(1 - shares[core] / 100 for core in ours if core < len(shares))


def _order(trials: Sequence[Trial]) -> list[Trial]:
    """The longest build first, beside the short ones; then each backend's first setting in every
    precision, then its second ones: when time runs out, nothing has been left out as a whole.
    """
    before: Counter[tuple[str, str]] = Counter()
    places = []
    for trial in sorted(trials, key=lambda trial: trial.candidate.rank):
        same = (trial.backend.name, trial.candidate.precision)
        places.append((trial.backend.name != "inductor", before[same], trial))
        before[same] += 1
    return [trial for *_, trial in sorted(places, key=lambda place: place[:2])]


def _race(trials: Sequence[Trial], deadline: float, say: Say) -> list[Outcome]:
    by_id = {trial.candidate.id: trial for trial in trials}
    lanes = {
        trial.candidate.id: Lane(trial.candidate.id, trial.turn)
        for trial in trials
        if trial.record.outcome == "ok"
    }
    baseline = next((name for name in lanes if by_id[name].backend.name == "eager"), None)
    finalists: list[Lane] = []
    try:
        finalists = race(
            list(lanes.values()), deadline, keep=[baseline] if baseline else [], tick=say
        )
    except KeyboardInterrupt:
        for trial in trials:
            trial.bench.cancelled = True
    in_final = {lane.id for lane in finalists}
    for name, lane in lanes.items():
        trial = by_id[name]
        if lane.failure:
            trial.fail(lane.failure)
        elif lane.blocks:
            timing = summarize(lane.blocks)
            items = _items(trial.bench.model)
            trial.record = replace(trial.record, timing=timing, throughput=items / timing.median)
    return [
        Outcome(
            Entry(
                trial.record,
                trial.candidate.rank,
                tuple(lanes[name].rounds) if name in in_final else (),
            ),
            trial.candidate,
            trial.part,
            str(trial.folder or ""),
        )
        for name, trial in by_id.items()
    ]


def _items(model: Model) -> int:
    """How many items a call handles: the size of the first axis at its opt, 1 for scalars."""
    shape = model.example[0].shape if model.example else ()
    return max(1, shape[0]) if shape else 1


def _recall(bench: Bench, candidates: Sequence[Candidate], budget: float) -> list[Outcome] | None:
    """What the cache knows, if it knows every candidate from one and the same race."""
    if bench.cache is None:
        return None
    found: list[Outcome] = []
    sessions = set()
    for candidate in candidates:
        row = bench.cache.get(bench.part_key(candidate))
        if row is None:
            return None
        record = replace(msgspec.convert(row["record"], Record), from_cache=True)
        if record.outcome in ("skipped", "timed out") and budget > row["budget"]:
            return None
        folder = bench.cache.part(bench.part_key(candidate))
        if record.outcome == "ok" and record.packaged and folder is None:
            return None
        sessions.add(row["session"])
        part = read_part(folder) if folder else None
        entry = Entry(record, candidate.rank, tuple(row["rounds"]))
        found.append(Outcome(entry, candidate, part, str(folder or "")))
    return found if len(sessions) == 1 else None


def _remember(bench: Bench, outcomes: Sequence[Outcome], budget: float) -> None:
    if bench.cache is None:
        return
    session = uuid.uuid4().hex
    for outcome in outcomes:
        if outcome.candidate is None:
            continue
        value: dict[str, Any] = {
            "session": session,
            "budget": budget,
            "record": outcome.entry.record,
            "rounds": outcome.entry.rounds,
        }
        bench.cache.put(bench.part_key(outcome.candidate), value)


def forget(bench: Bench, candidates: Sequence[Candidate]) -> None:
    """Drop what the cache knows of these candidates: a cached part failed its check."""
    if bench.cache:
        for candidate in candidates:
            bench.cache.drop(bench.part_key(candidate))


def nothing_left(records: Sequence[Record]) -> errors.RedlineError:
    """The error when no candidate survived and there is no module to fall back to."""
    rows = "; ".join(f"{record.id}: {record.outcome} ({record.reason})" for record in records)
    return errors.BackendError(
        f"no candidate could run this model: {rows}",
        hint="see `redline doctor` for backends that can be installed, or give a larger budget",
    )
