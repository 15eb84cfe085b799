"""The crowning: choose, open the choice in this process, check it once more, pack it for a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import cast

import msgspec

from redline import backends
from redline.backends.base import LocalBackend
from redline.contest import Outcome
from redline.drop_in import Folder, Package
from redline.engine.manifest import Check, Part
from redline.engine.store import FolderStore
from redline.errors import RedlineError, SelfTestError
from redline.measure import accuracy
from redline.measure.record import Group, Record
from redline.quality import Evaluate, Judge, score
from redline.runtime.runner import Runner, open_part
from redline.runtime.session import Session
from redline.search.choose import choose, compare_rounds, explain_losses
from redline.search.goal import Goal
from redline.trial import Bench

Crowned = tuple[Outcome, Session, list[Record], Package | None]


class _TooMuchError(SelfTestError):
    """A candidate in fp32 loses more of the caller's metric than may be lost."""


def crown(
    bench: Bench,
    outcomes: Sequence[Outcome],
    goal: Goal,
    evaluate: Evaluate | None,
    judge: Judge | None = None,
) -> Crowned | None:
    """Choose, open the choice here, and check it once more; what fails is struck off.

    `judge` says what a candidate of lower precision may lose. Where none keeps the bound and some
    fp32 is else right, that is crowned and says so.
    """
    field = list(outcomes)
    over: list[int] = []  # right, but the metric falls by more than max_drop
    wanted = judge.wanted if judge else None
    if wanted is None and evaluate and bench.model.module:
        wanted = score(evaluate, bench.model.module)
    while best := choose([outcome.entry for outcome in field], goal):
        place = next(i for i, outcome in enumerate(field) if outcome.entry is best)
        try:
            package = _pack(bench, field[place], field)
            session = _open_here(bench, field[place], package)
            _confirm(bench, session, best.record)
            if best.record.precision != "fp32" and judge is not None:
                record = _hold(best.record, session, judge)
            else:
                record = _judge(best.record, session, evaluate, wanted, goal)
            record = _with_groups(record, session, bench)
        except RedlineError as error:
            failed = replace(
                best.record, outcome="wrong result", reason=error.what, hint=error.hint
            )
            field[place] = replace(field[place], entry=replace(best, record=failed))
            if isinstance(error, _TooMuchError):
                over.append(place)
            continue
        field[place] = replace(field[place], entry=replace(best, record=record))
        return field[place], session, _finish_records(field, field[place], goal), package
    if not over:
        return None
    again = [outcomes[n] if n in over else outcome for n, outcome in enumerate(field)]
    crowned = crown(bench, again, replace(goal, max_drop=None), evaluate, judge)
    return crowned and _told(crowned, f"nothing keeps max_drop {goal.max_drop:g}, so fp32 stays")


def _told(crowned: Crowned, why: str) -> Crowned:
    """The same with a reason in the winner's record."""
    winner, session, records, package = crowned
    told = [replace(one, reason=why) if one.winner else one for one in records]
    return winner, session, told, package


def fall_back(bench: Bench, outcomes: Sequence[Outcome]) -> Crowned | None:
    """The model as it is, when Ctrl-C or the budget came before anything had been timed."""
    for outcome in outcomes:
        entry, candidate = outcome.entry, outcome.candidate
        if candidate is None or candidate.backend != "eager" or candidate.setting:
            continue
        reason = "nothing was ready in time; the model runs as it is"
        record = replace(entry.record, winner=True, reason=reason)
        chosen = replace(outcome, entry=replace(entry, record=record))
        package = _pack(bench, chosen, outcomes)
        records = [record if one is outcome else one.entry.record for one in outcomes]
        return chosen, _open_here(bench, chosen, None), records, package
    return None


def _pack(bench: Bench, winner: Outcome, outcomes: Sequence[Outcome]) -> Package | None:
    """The winner's part, the fastest packable one if it has none, and the portable one."""
    precision = winner.entry.record.precision
    graph = bench.graph(precision)
    ranked = [winner, *sorted(outcomes, key=lambda outcome: _median(outcome.entry.record))]
    packable = [
        (one.part, Path(one.folder))
        for one in ranked
        if one.part and one.entry.record.outcome == "ok" and one.entry.record.precision == precision
    ]
    keep = Folder()
    root = keep.path
    parts: list[tuple[Part, Path]] = []
    if packable:
        part, folder = packable[0]
        _copy_tree(folder, root / "0")
        parts.append((part, root / "0"))
    if graph:
        _link_or_copy(graph, root / "graph.onnx")
        portable = _portable(precision)
        if not parts or parts[0][0].backend != portable.backend:
            (root / "1").mkdir()
            parts.append((portable, root / "1"))
    if not parts:
        return None
    fp32 = accuracy.tolerance(bench.yardstick, "fp32")
    latency = winner.entry.record.timing.median if winner.entry.record.timing else 0.0
    specs = bench.model.signature.outputs
    return Package(
        name=bench.model.name,
        parts=parts,
        graph=root / "graph.onnx" if graph else None,
        graph_hash=bench.graph_hash(precision),
        inputs=bench.cases[0].inputs,
        outputs=[
            y.astype(spec.dtype) for y, spec in zip(bench.reference.expected[0], specs, strict=True)
        ],
        check=Check(max(fp32, winner.entry.record.tolerance or 0.0), latency),
        keep=keep,
    )


def _open_here(bench: Bench, winner: Outcome, package: Package | None) -> Session:
    """Open the winner in this process."""
    signature = bench.model.signature
    if winner.part is None or package is None:
        assert winner.candidate is not None
        assert bench.model.module is not None
        backend = cast(LocalBackend, backends.get(winner.candidate.backend))
        runner: Runner = backend.open_module(bench.model.module, winner.candidate, signature)
    else:
        part, folder = package.parts[0]
        runner = open_part(part, FolderStore(folder, graph=package.graph), signature)
    return Session(runner, signature)


def _confirm(bench: Bench, session: Session, record: Record) -> None:
    """What was right in the child must be right here, above all if it came from the cache."""
    outputs = session.run(list(bench.cases[0].inputs))
    got = accuracy.error(outputs, bench.reference.expected[0])
    allowed = record.tolerance if record.tolerance is not None else float("inf")
    if not got <= allowed:
        raise SelfTestError(f"error {got:.2g} in this process, allowed is {allowed:.2g}")


def _judge(
    record: Record,
    session: Session,
    evaluate: Evaluate | None,
    wanted: float | None,
    goal: Goal,
) -> Record:
    """Run the user's own metric on the winner."""
    if evaluate is None:
        return record
    found = score(evaluate, session)
    if wanted is not None and goal.max_drop is not None and wanted - found > goal.max_drop + 1e-9:
        raise _TooMuchError(
            f"accuracy {found:.4f} against {wanted:.4f}: loses {wanted - found:.2g}, "
            f"more than max_drop {goal.max_drop:g}"
        )
    return replace(record, accuracy=found)


def _hold(record: Record, session: Session, judge: Judge) -> Record:
    """A lower precision may lose no more than was allowed, on this backend as well."""
    drop = judge.drop(session)
    if not judge.allows(drop):
        raise SelfTestError(
            f"{record.precision} loses {drop:.4g} here, and {judge.max_drop:g} may be lost "
            f"({judge.how})"
        )
    return record if judge.wanted is None else replace(record, accuracy=judge.wanted - drop)


def _with_groups(record: Record, session: Session, bench: Bench) -> Record:
    """The groups of a compiled engine and their times, for who wants it explained."""
    runner = session.runner
    profile = getattr(runner, "profile", None)
    told = profile(list(bench.cases[0].inputs)) if profile else ()
    groups = msgspec.convert(told, tuple[Group, ...])
    return replace(record, groups=groups, missed=tuple(getattr(runner, "missed", ())))


def _finish_records(outcomes: Sequence[Outcome], winner: Outcome, goal: Goal) -> list[Record]:
    """Mark the winner, and say of everyone else why not."""
    entries = [outcome.entry for outcome in outcomes]
    reasons = explain_losses(entries, winner.entry, goal)
    finished = []
    for entry in entries:
        record = entry.record
        finished.append(
            replace(
                record,
                winner=entry is winner.entry,
                reason=record.reason or reasons.get(record.id, ""),
                ratio=compare_rounds(entry, winner.entry),
            )
        )
    return finished


def _portable(precision: str) -> Part:
    """The part that runs wherever ONNX Runtime does, with as many threads as there are cores."""
    needs = {"onnxruntime": version("onnxruntime")}
    return Part("onnxruntime", {"level": "all"}, precision, uses_graph=True, needs=needs)


def _median(record: Record) -> float:
    return record.timing.median if record.timing else float("inf")


def _copy_tree(source: Path, home: Path) -> None:
    shutil.copytree(source, home, copy_function=_link_or_copy)


def _link_or_copy(source: str | Path, home: str | Path) -> None:
    try:
        os.link(source, home)
    except OSError:
        shutil.copyfile(source, home)
