"""The race: contestants take turns in ABBA order, the slow half leaves, the rest run until sure."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from redline.errors import RedlineError
from redline.measure.statistics import ratio

FINALISTS = 4
_BLOCK = 0.04  # seconds of calls in one turn; a slower model makes one call
# Seconds between turns: threads go on spinning after a call, ONNX Runtime's for 30 ms and OpenMP's
# for 5 (read from the CPU time of an idle process), and would take the next one's core.
_SETTLE = 0.04
_ROUNDS = (5, 24)  # of the final: at least, at most
_GRACE = 2.0  # seconds past the deadline that the least number of rounds may take
_SURE = 0.01  # stop when the half-width of every interval against the leader is below this
_TRIM = 3.0  # after the first round, whoever is this many times behind the leader leaves


@dataclass
class Lane:
    """One contestant: `turn(seconds)` makes calls for that long and returns seconds a call.

    `blocks` holds every turn's samples, `rounds` the medians of the turns since the last cut: the
    n-th of one lane was taken next to the n-th of the others.
    """

    id: str
    turn: Callable[[float], list[float]]
    blocks: list[list[float]] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    failure: RedlineError | None = None

    @property
    def median(self) -> float:
        """Median over the rounds so far, in seconds a call."""
        return float(np.median(self.rounds)) if self.rounds else float("inf")

    @property
    def best(self) -> float:
        """The best turn so far. Noise only ever adds: who is to leave early is judged by this."""
        return min((float(np.median(block)) for block in self.blocks), default=float("inf"))


def race(
    lanes: Sequence[Lane],
    deadline: float,
    *,
    keep: Collection[str] = (),
    tick: Callable[[str], None] = lambda what: None,
) -> list[Lane]:
    """Run the race until the leader is sure or time.monotonic() passes `deadline`.

    Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): every round costs each contestant
    the same, and only the better half goes on. `keep` names those that stay to the end whatever
    their time (the baseline). A contestant whose turn raises gets `failure` and leaves.

    Returns:
        The finalists, the fastest first. Their `rounds` since the start of the final line up.
        Every lane keeps its blocks. At least one round is always run, deadline or not.
    """
    running = list(lanes)
    tick("first round")
    running = _round(running)
    cut = _TRIM * min((lane.best for lane in running), default=0.0)
    running = [lane for lane in running if lane.best <= cut or lane.id in keep]
    while len(_leavable(running, keep)) > FINALISTS and time.monotonic() < deadline:
        tick(f"{len(running)} still in the race")
        running = _round(running)
        running = _better_half(running, keep)
    for lane in running:
        lane.rounds.clear()
    return _final(running, deadline, tick)


def _final(running: list[Lane], deadline: float, tick: Callable[[str], None]) -> list[Lane]:
    least, most = _ROUNDS
    for number in range(most):
        late = time.monotonic() > deadline + (_GRACE if number < least else 0)
        if (number and late) or (number >= least and _sure(running)):
            break
        tick(f"final of {len(running)}, round {number + 1}")
        running = _round(running)
    return sorted(running, key=lambda lane: lane.median)


def _round(lanes: list[Lane]) -> list[Lane]:
    """One turn each forwards, one each backwards: ABBA, so that a drift weighs on all alike."""
    turns: dict[str, list[float]] = {lane.id: [] for lane in lanes}
    for lane in (*lanes, *reversed(lanes)):
        if lane.failure:
            continue
        time.sleep(_SETTLE)
        try:
            block = lane.turn(_BLOCK)
        except RedlineError as error:
            lane.failure = error
            continue
        lane.blocks.append(block)
        turns[lane.id].append(float(np.median(block)))
    alive = [lane for lane in lanes if not lane.failure]
    for lane in alive:
        lane.rounds.extend(turns[lane.id])
    return alive


def _leavable(lanes: list[Lane], keep: Collection[str]) -> list[Lane]:
    return [lane for lane in lanes if lane.id not in keep]


def _better_half(lanes: list[Lane], keep: Collection[str]) -> list[Lane]:
    ranked = sorted(_leavable(lanes, keep), key=lambda lane: lane.best)
    stay = {lane.id for lane in ranked[: max(FINALISTS, len(ranked) // 2)]}
    return [lane for lane in lanes if lane.id in stay or lane.id in keep]


def _sure(lanes: list[Lane]) -> bool:
    """Whether every rival's interval against the leader is narrow, or far from a tie."""
    leader = min(lanes, key=lambda lane: lane.median, default=None)
    for lane in lanes:
        if leader is None or lane is leader:
            continue
        _, low, high = ratio(lane.rounds, leader.rounds)
        if (high - low) / 2 > _SURE and low < 1 + 2 * _SURE:
            return False
    return True
