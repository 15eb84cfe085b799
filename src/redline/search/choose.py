"""Who wins: the best by the goal, and on a tie the simplest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redline.measure.record import Record
from redline.measure.statistics import ratio
from redline.search.goal import Goal

_SAME = 0.01  # memory and size are read, not sampled: closer than this is a tie


@dataclass(frozen=True)
class Entry:
    """A record on its way to the choice: its rank of simplicity, and its rounds in the final."""

    record: Record
    rank: int
    rounds: tuple[float, ...] = ()


def choose(entries: Sequence[Entry], goal: Goal) -> Entry | None:
    """The winner among the verified and timed, or None when there is none.

    Those that meet every constraint come first; if none does, those that miss by least. Among them
    a candidate beats a simpler one only when the whole interval of their ratio says so; the
    simplest of those that none beats so is taken. To tie with the best alone is not enough: where
    that one wavers, a candidate can tie with it and be far behind a third.
    """
    able = [entry for entry in entries if entry.record.outcome == "ok" and entry.record.timing]
    if not able:
        return None
    misses = {id(entry): max(goal.misses(entry.record).values(), default=1.0) for entry in able}
    least = min(misses.values())
    able = [entry for entry in able if misses[id(entry)] <= least * (1 + 1e-9)]
    best = min(able, key=lambda entry: (goal.cost(entry.record), entry.rank))
    tied = [entry for entry in able if not any(_clearly(one, entry, goal) for one in able)]
    return min(tied or [best], key=lambda entry: entry.rank)


def compare_rounds(one: Entry, other: Entry) -> tuple[float, float, float] | None:
    """Ratio of two entries' latencies with its interval, if both were in the same final."""
    if len(one.rounds) != len(other.rounds) or not one.rounds:
        return None
    return ratio(one.rounds, other.rounds)


def explain_losses(entries: Sequence[Entry], winner: Entry, goal: Goal) -> Mapping[str, str]:
    """Record id -> why it did not win, for every timed entry but the winner."""
    reasons = {}
    for entry in entries:
        if entry.record.outcome == "ok" and entry is not winner:
            reasons[entry.record.id] = _why_not(entry, winner, goal)
    return reasons


def _clearly(best: Entry, other: Entry, goal: Goal) -> bool:
    """Whether `best` beats `other` beyond doubt."""
    if goal.minimize in ("memory", "size"):
        return goal.cost(best.record) < goal.cost(other.record) * (1 - _SAME)
    between = compare_rounds(best, other)
    if between is not None:
        return between[2] < 1
    ours, theirs = best.record.timing, other.record.timing
    if ours is None or theirs is None:
        return False
    if best.rounds and not other.rounds and ours.blocks and theirs.blocks:
        # It left the race that `best` finished, by its best turn, and its few turns prove no tie.
        return min(ours.blocks) < min(theirs.blocks)
    return ours.high < theirs.low


def _why_not(entry: Entry, winner: Entry, goal: Goal) -> str:
    misses = goal.misses(entry.record)
    if misses and not goal.misses(winner.record):
        return goal.verdict(entry.record).removesuffix("; this is the nearest candidate")
    if goal.minimize in ("memory", "size"):
        ours, theirs = goal.cost(entry.record), goal.cost(winner.record)
        return f"{goal.minimize} {ours / 1e6:.1f} MB against {theirs / 1e6:.1f} MB"
    between = compare_rounds(entry, winner)
    if between is None:
        times = goal.cost(entry.record) / goal.cost(winner.record)
        return f"{times:.2f}× the winner's time; left before the final"
    middle, low, high = between
    if low > 1:
        return f"{middle:.2f}× the winner's time ({low:.2f} to {high:.2f})"
    return f"a tie ({low:.2f} to {high:.2f}× the winner's time); the simpler one wins"
