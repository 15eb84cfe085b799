"""Claim: the native compiler against the best of ONNX Runtime, OpenVINO and ncnn, side by side.

    python bench/native.py                 # ten networks, about ten minutes on two cores
    python bench/native.py resnet18 mlp    # some

Batch 1, fp32, every core; each candidate in a process of its own with its plain default, all taking
turns in ABBA order in one run. "native" is the fastest of its forms: plain, with Winograd, tuned.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from models import ZOO
from redline import backends, machine
from redline.engine.manifest import Setting
from redline.measure.statistics import ratio
from redline.search.race import Lane, race
from redline.trial import Trial
from zoo import _bench, _traits

PEERS = ("onnxruntime", "openvino", "ncnn")
HEADS = ("network", *PEERS, "native", "over the best peer", "form", "error")


def measure(key: str, seconds: float) -> list[str]:
    """One row of the table."""
    name, factory = ZOO[key]
    module, example = factory()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = _bench(module, example, Path(folder))
        traits = _traits(bench)
        candidates = [backends.get(peer).candidates(traits)[0] for peer in PEERS]
        plain = backends.get("native").candidates(traits)[0]
        convolves = "Conv" in traits.operators
        forms: list[Setting] = [{"winograd": False}, {"winograd": convolves, "tuned": True}]
        forms += [{"winograd": True}] if convolves else []
        candidates += [replace(plain, setting=plain.setting | form) for form in forms]
        trials = {}
        for candidate in candidates:
            trial = trials[candidate.id] = Trial(bench, candidate)
            stack.callback(trial.close)
            trial.prepare(time.monotonic() + 300)
            if trial.record.outcome != "ok":
                print(f"  {name}: {candidate.id}: {trial.record.reason}", file=sys.stderr)
        lanes = [Lane(id, t.turn) for id, t in trials.items() if t.record.outcome == "ok"]
        final = race(lanes, time.monotonic() + seconds, keep=[lane.id for lane in lanes])
        errors = {id: trial.record.error for id, trial in trials.items()}
    return _row(name, final, errors)


def _row(name: str, final: list[Lane], errors: dict[str, float | None]) -> list[str]:
    times = {lane.id.split()[0]: lane.median for lane in final if lane.id[:6] != "native"}
    ours = [lane for lane in final if lane.id.startswith("native")]
    peer = min((lane for lane in final if lane not in ours), key=lambda lane: lane.median)
    cells = [name, *(f"{times[p] * 1e3:.3g}" if p in times else "—" for p in PEERS)]
    if not ours:
        return [*cells, "—", "—", "—", "—"]
    best = min(ours, key=lambda lane: lane.median)
    middle, low, high = ratio(peer.rounds, best.rounds)
    over = f"{middle:.2f}× ({low:.2f} to {high:.2f})"
    error = errors[best.id]
    told = "—" if error is None else f"{error:.1e}"
    return [*cells, f"{best.median * 1e3:.3g}", over, best.id.removeprefix("native "), told]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=list(ZOO), metavar="network")
    parser.add_argument("--race", type=float, default=15.0, help="seconds for each race")
    given = parser.parse_args()
    print(f"{machine.card().cpu}, {machine.card().cores} cores; milliseconds a call")
    print("| " + " | ".join(HEADS) + " |")
    print("|" + "---|" * len(HEADS))
    for key in given.networks:
        print("| " + " | ".join(measure(key, given.race)) + " |", flush=True)


if __name__ == "__main__":
    main()
