"""Keep a change or not: from the rounds of an interleaved race, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redline.measure.statistics import ratio
from redline.search.race import Lane

WORTH = 1.02  # a gain below this is not worth a line of code


@dataclass(frozen=True)
class Verdict:
    """On one change: "kept", "no gain", "slower", "failed", "behind"; its gain as (median, low,
    high), times faster than without it; and the reason in words.
    """

    outcome: str
    gain: tuple[float, float, float] | None
    why: str


def decide(
    now: Lane, rivals: Sequence[Lane], finalists: Sequence[Lane]
) -> tuple[str | None, Mapping[str, Verdict]]:
    """The id of the rival to keep, or None; and a verdict on each.

    A rival is eligible when the whole 95 % interval of its gain is above 1 and its median is at
    least 1.02. Among eligible ones the first in `rivals` (the simplest) that does not clearly lose
    to the quickest is kept.
    """
    ids = {lane.id for lane in finalists}
    gains = {
        lane.id: ratio(now.rounds, lane.rounds)
        for lane in rivals
        if lane.id in ids and not lane.failure and now.rounds and lane.rounds
    }
    able = [lane for lane in rivals if lane.id in gains and _clear(gains[lane.id])]
    best = min(able, key=lambda lane: lane.median, default=None)
    kept = None
    if best is not None:
        kept = next(
            lane for lane in able
            if lane is best or ratio(lane.rounds, best.rounds)[1] <= 1
        )  # fmt: skip
    verdicts = {lane.id: _verdict(lane, now, gains.get(lane.id), kept) for lane in rivals}
    return (kept.id if kept else None), verdicts


def _clear(gain: tuple[float, float, float]) -> bool:
    return gain[1] > 1 and gain[0] >= WORTH


def _verdict(
    lane: Lane, now: Lane, gain: tuple[float, float, float] | None, kept: Lane | None
) -> Verdict:
    if lane.failure is not None:
        return Verdict("failed", None, lane.failure.what)
    if gain is None:
        times = lane.best / now.best
        return Verdict("behind", None, f"{times:.2f}× the time, left before the final")
    words = f"{gain[0]:.2f}× ({gain[1]:.2f} to {gain[2]:.2f})"
    if lane is kept:
        return Verdict("kept", gain, f"{words} faster")
    if _clear(gain):
        return Verdict(
            "behind", gain, f"{words}; {kept.id if kept else 'another'} is as good or better"
        )
    if gain[2] < 1:
        return Verdict("slower", gain, f"{words}: slower")
    return Verdict("no gain", gain, f"{words}: within noise, or below {WORTH - 1:.0%}")
