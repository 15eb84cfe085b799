"""Claim: Redline's pick is never behind the best single peer, on ten real networks.

    python bench/zoo.py                    # all; half an hour with --budget 150 --race 25
    python bench/zoo.py resnet18 bert      # some
    python bench/zoo.py --json zoo.jsonl   # keep the records

For each network: redline.optimize() chooses without a cache and its engine is saved. Then eager and
the plain default of every backend are built, and all of them and the saved engine, each in a
process of its own, take turns in ABBA order in one run. Times are medians over rounds; a ratio is
the median of per-round ratios with its bootstrap 95 % interval.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

import redline
from models import ZOO
from redline import backends, machine
from redline.api import set_up
from redline.capture.capture import capture
from redline.graph.serialize import to_bytes
from redline.measure.child import Child
from redline.measure.statistics import ratio
from redline.search.race import Lane, race
from redline.trial import Trial

PEERS = ("eager", "inductor", "onnxruntime", "openvino", "ncnn")


@dataclass(frozen=True)
class Row:
    """One network: median seconds of everyone, and the pick's ratios with intervals."""

    name: str
    seconds: dict[str, float]
    refused: dict[str, str]
    pick: str
    best_peer: str
    over_peer: tuple[float, float, float]
    over_eager: tuple[float, float, float]
    optimize_seconds: float


def measure(key: str, budget: float, race_seconds: float) -> Row:
    """Optimize one network and race its engine against the peers."""
    name, factory = ZOO[key]
    module, example = factory()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        engine = redline.optimize(module, example, budget=budget, use_cache=False, name=name)
        path = engine.save(Path(folder) / "pick.redline")
        pick = next(record.id for record in engine.report.records if record.winner)
        spent = engine.report.study.seconds
        engine.close()
        bench = _bench(module, example, Path(folder))
        trials = [Trial(bench, backends.get(peer).candidates(_traits(bench))[0]) for peer in PEERS]
        for trial in trials:
            stack.callback(trial.close)
            trial.prepare(time.monotonic() + budget)
        lanes = [
            Lane(trial.backend.name, trial.turn) for trial in trials if trial.record.outcome == "ok"
        ]
        lanes.append(
            Lane("redline", _engine_turn(path, bench.cases[0].inputs, stack, pick, trials))
        )
        final = race(lanes, time.monotonic() + race_seconds, keep=[lane.id for lane in lanes])
    refused = {
        trial.backend.name: f"{trial.record.outcome}: {trial.record.reason}"
        for trial in trials
        if trial.record.outcome != "ok"
    }
    return _row(name, final, refused, pick, spent)


def _bench(module, example, folder):
    model = capture(module, example)
    (folder / "graph.onnx").write_bytes(to_bytes(model.graph))
    return set_up(model, folder, seed=1, use_cache=False)


def _traits(bench):
    from redline.backends.base import Traits
    from redline.graph.cost import operators

    model = bench.model
    known = operators(model.graph) if model.graph is not None else {}
    graph = model.graph is not None
    return Traits(model.signature, machine.usable_cores(), graph, True, True, operators=known)


def _engine_turn(path, inputs, stack, pick, trials):
    """The saved engine, in a process of its own; an in-framework pick races as its trial."""
    for trial in trials:
        if trial.candidate.id == pick and trial.local:
            twin = Trial(trial.bench, trial.candidate)
            stack.callback(twin.close)
            return twin.turn
    child = stack.enter_context(Child())
    child.call("redline.measure.work:open_engine", path=str(path), trust=True)
    child.call("redline.measure.work:prepare", inputs=list(inputs))
    return lambda seconds: child.call(
        "redline.measure.work:time_block", seconds=seconds, watch=False
    )


def _row(name: str, final: list[Lane], refused: dict[str, str], pick: str, spent: float) -> Row:
    lanes = {lane.id: lane for lane in final}
    ours = lanes["redline"]
    peer = min((lane for lane in final if lane is not ours), key=lambda lane: lane.median)
    return Row(
        name=name,
        seconds={lane.id: lane.median for lane in final},
        refused=refused,
        pick=pick,
        best_peer=peer.id,
        over_peer=ratio(peer.rounds, ours.rounds),
        over_eager=ratio(lanes["eager"].rounds, ours.rounds),
        optimize_seconds=spent,
    )


def markdown(rows: list[Row]) -> str:
    """The table of the docs: milliseconds, and ratios as median (low to high)."""
    heads = ["network", *PEERS, "Redline", "over eager", "over the best peer", "Redline's pick"]
    lines = [" | ".join(heads), "|".join(["---"] + ["---:"] * (len(heads) - 2) + ["---"])]
    for row in rows:
        times = [_ms(row.seconds.get(peer)) for peer in (*PEERS, "redline")]
        best = min(PEERS, key=lambda peer: row.seconds.get(peer, math.inf))
        times[PEERS.index(best)] = f"**{times[PEERS.index(best)]}**"
        cells = [row.name, *times, _ratio(row.over_eager), _ratio(row.over_peer), row.pick]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def _ms(seconds: float | None) -> str:
    return "—" if seconds is None else f"{seconds * 1e3:.3g}"


def _ratio(values: tuple[float, float, float]) -> str:
    middle, low, high = values
    return f"{middle:.2f}× ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(ZOO), metavar="network")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds for each optimize()")
    parser.add_argument("--race", type=float, default=40.0, help="seconds for each final race")
    parser.add_argument("--json", type=Path, help="write one record a line")
    given = parser.parse_args()
    rows = []
    for key in given.networks:
        rows.append(measure(key, given.budget, given.race))
        print(markdown(rows[-1:]), file=sys.stderr)
        for peer, reason in rows[-1].refused.items():
            print(f"  {peer}: {reason}", file=sys.stderr)
        if given.json:
            given.json.write_bytes(b"\n".join(msgspec.json.encode(row) for row in rows) + b"\n")
    card = machine.card()
    print(f"{card.cpu}, {card.cores} cores; torch, backends: see `redline doctor`")
    print(markdown(rows))
    gains = [math.log(row.over_eager[0]) for row in rows]
    print(f"geometric mean over eager: {math.exp(sum(gains) / len(gains)):.2f}×")
    behind = [row.name for row in rows if row.over_peer[2] < 1]
    print(f"behind the best peer beyond the interval: {', '.join(behind) or 'none'}")


if __name__ == "__main__":
    main()
