"""What follows from a study by arithmetic alone: places, speed-ups, roofline, operators."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from redline.measure.record import Group, Record, Study
from redline.report import units
from redline.report.card import Card

_SHORT_CALL = 100e-6  # seconds; below this, starting threads and calling in are most of the time


@dataclass(frozen=True)
class Row:
    """A record with what only shows beside the others.

    Attributes:
        over_eager: eager's latency over this one; above 1 is faster than eager.
        other: the fastest candidate of another backend.
        over_other: its latency over this one.
        why: for the winner what it won by, for the rest the reason; one sentence.
    """

    record: Record
    over_eager: float | None
    other: Record | None
    over_other: float | None
    why: str


@dataclass(frozen=True)
class Roofline:
    """How fast this machine could run the graph at best (Williams et al., CACM 52(4), 2009).

    Attributes:
        compute, memory: seconds to do the arithmetic at the measured peak, and to read and write
            the least bytes at the measured bandwidth.
        intensity: FLOP a byte.
        attained: FLOP a second of the winner, None without one.
        share: limit over the winner's latency.
    """

    flops: float
    bytes: float
    peak: float
    bandwidth: float
    compute: float
    memory: float
    intensity: float
    attained: float | None
    share: float | None
    remark: str

    @property
    def limit(self) -> float:
        """Seconds a call cannot go below, by this model of the machine."""
        return max(self.compute, self.memory)

    @property
    def bound(self) -> Literal["compute", "memory"]:
        """Which of the two limits holds."""
        return "compute" if self.compute >= self.memory else "memory"


@dataclass(frozen=True)
class Change:
    """One operator type and how many of it there are before and after graph optimisation."""

    operator: str
    before: int
    after: int


def winner(study: Study) -> Record | None:
    """The record that was chosen, if any."""
    return next((record for record in study.records if record.winner), None)


def eager(study: Study) -> Record | None:
    """Plain eager, the baseline of the speed-ups: the one with the fewest settings."""
    timed = [record for record in study.records if record.backend == "eager" and _raced(record)]
    return min(timed, key=lambda record: len(record.setting), default=None)


def rows(study: Study) -> tuple[list[Row], list[Row]]:
    """The timed by latency, and the others: tried and failed first, never tried last."""
    timed = sorted(filter(_raced, study.records), key=_latency)
    rest = [record for record in study.records if not _raced(record)]
    rest.sort(key=lambda record: record.outcome in ("missing", "refused", "skipped"))
    placed = [_row(record, study, timed) for record in timed]
    return placed, [_row(record, study, []) for record in rest]


def speedup(slower: Record, faster: Record) -> float | None:
    """How many times faster the second is; from the interleaved race where both were in it.

    Example:
        >>> from redline.measure.record import Timing
        >>> one = Record("a", "a", "ok", timing=Timing(2.0, 2.0, 2.0, 2.0, ()))
        >>> speedup(one, Record("b", "b", "ok", timing=Timing(1.0, 1.0, 1.0, 1.0, ())))
        2.0
    """
    above, below = _ratio(slower), _ratio(faster)
    if above and below:
        return above / below
    if slower.timing and faster.timing and faster.timing.median > 0:
        return slower.timing.median / faster.timing.median
    return None


def roofline(study: Study, card: Card) -> Roofline | None:
    """The machine's limit for this graph; None where the work or the machine is not known."""
    if not (study.flops and study.bytes and card.peak and card.bandwidth):
        return None
    compute, memory = study.flops / card.peak, study.bytes / card.bandwidth
    best = winner(study)
    latency = best.timing.median if best and best.timing else None
    share = max(compute, memory) / latency if latency else None
    return Roofline(
        flops=study.flops,
        bytes=study.bytes,
        peak=card.peak,
        bandwidth=card.bandwidth,
        compute=compute,
        memory=memory,
        intensity=study.flops / study.bytes,
        attained=study.flops / latency if latency else None,
        share=share,
        remark=_remark(study, card, compute < memory, share, latency),
    )


_INT8 = 2  # products of whole numbers in an instruction, for one of floats (decision 0023)


@dataclass(frozen=True)
class Piece:
    """A group of the winner's as it is shown.

    Attributes:
        share: of the time of all groups; roof: its limit's time over its own, None if not known.
    """

    group: Group
    share: float
    roof: float | None


def pieces(study: Study, card: Card) -> list[Piece]:
    """The winner's groups, in the order they run; empty where it has none or was not measured."""
    best = winner(study)
    timed = [group for group in best.groups if group.seconds] if best else []
    total = sum(group.seconds or 0.0 for group in timed)
    found = []
    for group in timed:
        assert group.seconds is not None
        limit = None
        if card.peak and card.bandwidth:
            # What fits the last cache need not come from memory, so only arithmetic bounds it.
            memory = group.bytes / card.bandwidth if group.bytes > (card.last_cache or 0) else 0.0
            peak = card.peak * (_INT8 if group.kernel.startswith("int8 ") else 1)
            limit = max(group.flops / peak, memory) / group.seconds
        found.append(Piece(group, group.seconds / total, limit))
    return found


def changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[Change]:
    """Every operator type, those that changed most first.

    Example:
        >>> changes({"Conv": 20, "Relu": 17}, {"Conv": 20})[0]
        Change(operator='Relu', before=17, after=0)
    """
    names = dict.fromkeys([*before, *after])
    both = [Change(name, before.get(name, 0), after.get(name, 0)) for name in names]
    return sorted(both, key=lambda one: (-abs(one.after - one.before), -one.before, one.operator))


def optimised(study: Study) -> list[Record]:
    """Records whose operators are known, the winner first, one for each backend and outcome."""
    seen: set[tuple[str, tuple[tuple[str, int], ...]]] = set()
    found = []
    ordered = sorted(study.records, key=lambda record: (not record.winner, _latency(record)))
    for record in ordered:
        key = (record.backend, tuple(sorted(record.operators.items())))
        if record.operators and key not in seen:
            seen.add(key)
            found.append(record)
    return found


def headline(study: Study) -> str:
    """The outcome in one sentence.

    Example:
        >>> headline(Study("Net", "module", {}, "minimize latency", "", ()))
        'No candidate could run this model.'
    """
    best = winner(study)
    if best is None:
        raced = any(map(_raced, study.records))
        return "No winner was chosen." if raced else "No candidate could run this model."
    if best.timing is None:
        return f"{best.id} was chosen; it was not timed."
    text = f"{best.id}: {units.seconds(best.timing.median)} a call"
    base = eager(study)
    if base is None or base is best:
        return f"{text}; nothing else was faster." if base is best else f"{text}."
    spread = gain_interval(study)
    low_high = f" ({spread[0]:.2f} to {spread[1]:.2f})" if spread else ""
    return f"{text}, {units.ratio(speedup(base, best))} as fast as eager{low_high}."


def gain_interval(study: Study) -> tuple[float, float] | None:
    """Low and high of the winner's speed-up over eager, if both were in the interleaved final."""
    base, best = eager(study), winner(study)
    if base is None or best is None or base is best or not base.ratio or not best.ratio:
        return None
    return base.ratio[1], base.ratio[2]


def bound_line(roof: Roofline) -> str:
    """The roofline in words."""
    work = f"{units.flops(roof.flops)} and at least {units.size(roof.bytes)} of memory traffic"
    limit = f"{units.seconds(roof.limit)} at best, bound by {roof.bound}"
    if roof.share is None:
        return f"{work}: {limit}."
    return f"{work}: {limit}. The winner is at {units.percent(roof.share)} of this limit."


def operator_line(study: Study, record: Record) -> str:
    """Operators before and after, with the largest changes.

    Example:
        >>> after = Record("ort", "ort", "ok", operators={"FusedConv": 20})
        >>> operator_line(Study("n", "onnx", {}, "", "", (), {"Conv": 20, "Relu": 17}), after)
        '37 → 20 operators: Conv 20 → 0, FusedConv 0 → 20, Relu 17 → 0'
    """
    before, after = sum(study.operators.values()), sum(record.operators.values())
    moved = [one for one in changes(study.operators, record.operators) if one.before != one.after]
    words = [f"{one.operator} {one.before} → {one.after}" for one in moved[:5]]
    more = f", and {len(moved) - 5} more" if len(moved) > 5 else ""
    head = f"{before} → {after} operators" if before else f"{after} operators"
    return head + (": " + ", ".join(words) + more if words and before else "")


def provenance(study: Study) -> str:
    """How long it took and whether the numbers are fresh."""
    cached = sum(record.from_cache for record in study.records)
    took = units.seconds(study.seconds) if study.seconds else ""
    took += f" of {units.seconds(study.budget)}" if took and study.budget else ""
    if not cached:
        return took
    whole = cached == sum(record.outcome not in ("missing", "refused") for record in study.records)
    from_cache = "from cache" if whole else f"{cached} from cache"
    return f"{took}, {from_cache}" if took else from_cache


def _row(record: Record, study: Study, timed: Sequence[Record]) -> Row:
    base = eager(study)
    each = study.origin == "comparison"  # there every row stands for itself
    others = (one for one in timed if one.backend != record.backend or (each and one is not record))
    other = next(others, None)
    return Row(
        record=record,
        over_eager=speedup(base, record) if base and _raced(record) else None,
        other=other,
        over_other=speedup(other, record) if other else None,
        why=_why(record, other),
    )


def _why(record: Record, other: Record | None) -> str:
    if record.reason:
        return record.reason
    if record.winner:
        return f"the best of another backend is {other.id}" if other else "nothing else was timed"
    return "" if record.outcome == "ok" else record.outcome


def _remark(
    study: Study, card: Card, by_memory: bool, share: float | None, latency: float | None
) -> str:
    """What the reader should know before taking the share at its word."""
    best = winner(study)
    if share is not None and share > 1:
        if best is not None and best.precision != "fp32":
            return f"Above 100 %: this is the limit of fp32, and the winner is {best.precision}."
        if by_memory and card.last_cache and study.bytes < card.last_cache:
            return (
                f"Above 100 %: all {units.size(study.bytes)} stay in the last cache "
                f"({units.size(card.last_cache)}), which is faster than the memory measured here."
            )
        return (
            "Above 100 %: the kernels do less work than the graph counts (Winograd), "
            "or ran at a higher clock."
        )
    if latency is not None and latency < _SHORT_CALL and share is not None and share < 0.3:
        wake = f"; waking a thread takes {units.seconds(card.wake)}" if card.wake else ""
        return f"A call this short is mostly overhead, not arithmetic{wake}."
    return ""


def _raced(record: Record) -> bool:
    return record.outcome == "ok" and record.timing is not None


def _latency(record: Record) -> float:
    return record.timing.median if record.timing else math.inf


def _ratio(record: Record) -> float | None:
    return record.ratio[0] if record.ratio else None
