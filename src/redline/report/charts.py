"""What the page draws, as plain data: bars, points and axes, the roof, operators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from redline.measure.record import Record, Study
from redline.report import figures, units
from redline.report.columns import detail, telling
from redline.report.figures import Roofline, Row

# One shape and colour (--k0.. in report.css) for each backend, so that neither says it alone.
SHAPES = (
    "M-5 -5H5V5H-5Z",  # square: eager
    "M0 -6A6 6 0 1 0 0 6A6 6 0 1 0 0 -6Z",  # circle
    "M0 -7L6.5 5H-6.5Z",  # triangle
    "M0 -7L7 0L0 7L-7 0Z",  # diamond
    "M0 7L6.5 -5H-6.5Z",  # triangle down
    "M-2 -6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",  # plus
    "M-5 -3L0 -7L5 -3V4L0 7L-5 4Z",  # hexagon
    "M-7 0L0 -4L7 0L0 4Z",  # flat diamond
)
_COLOURS = ("eager", "onnxruntime", "openvino", "inductor", "ncnn", "tensorrt", "native")


@dataclass(frozen=True)
class _Axis:
    """A quantity that latency can be plotted against."""

    key: str
    label: str
    unit: str
    value: Callable[[Record], float | None]
    more: bool = False


_AXES = (
    _Axis("size", "engine size", "B", lambda record: record.size),
    _Axis("error", "error", "", lambda record: record.error),
    _Axis("memory", "peak memory", "B", lambda record: record.peak_memory),
    _Axis("build", "build time", "s", lambda record: record.build_seconds),
    _Axis("accuracy", "accuracy", "%", lambda record: record.accuracy, more=True),
)


def colours(study: Study) -> dict[str, int]:
    """Backend -> index of its colour and shape: the known ones always have the same."""
    names = dict.fromkeys(record.backend for record in study.records)
    known = {name: _COLOURS.index(name) for name in names if name in _COLOURS}
    free = [index for index in range(len(SHAPES)) if index not in known.values()]
    others = [name for name in names if name not in known]
    return known | {name: free[place % len(free)] for place, name in enumerate(others)}


def bars(timed: Sequence[Row], colours: dict[str, int]) -> list[dict[str, Any]]:
    """One bar a candidate, in percent of the longest."""
    timings = [(row.record, row.record.timing) for row in timed if row.record.timing]
    longest = max((max(timing.high, timing.median) for _, timing in timings), default=0.0) or 1.0
    return [
        {
            "id": record.id,
            "winner": record.winner,
            "colour": colours[record.backend],
            "width": f"{100 * timing.median / longest:.2f}",
            "low": f"{100 * timing.low / longest:.2f}",
            "high": f"{100 * timing.high / longest:.2f}",
            "value": units.seconds(timing.median),
            "interval": units.interval(timing),
        }
        for record, timing in timings
    ]


def chart(timed: Sequence[Row], colours: dict[str, int]) -> dict[str, Any]:
    """Points of the scatter plot, and the axes that at least one of them has a value on."""
    points = [_point(row, colours) for row in timed if _drawable(row)]
    axes = [
        {"key": axis.key, "label": axis.label, "unit": axis.unit, "more": axis.more}
        for axis in _AXES
        if any(point[axis.key] is not None for point in points)
    ]
    return {"points": points, "axes": axes}


def _drawable(row: Row) -> bool:
    return row.record.timing is not None and row.record.timing.low > 0  # the axis is logarithmic


def _point(row: Row, colours: dict[str, int]) -> dict[str, Any]:
    record, timing = row.record, row.record.timing
    assert timing is not None
    return {
        "id": record.id,
        "winner": record.winner,
        "colour": colours[record.backend],
        "latency": timing.median,
        "low": timing.low,
        "high": timing.high,
        "tip": "\n".join([record.id, *_told(row)]),
        **{axis.key: finite(axis.value(record)) for axis in _AXES},
    }


def _told(row: Row) -> Iterator[str]:
    """What the tip of a point says, a line for each number."""
    for column in telling([row]):
        below = detail(column)
        small = f" ({below.text(row)})" if below and below.text(row) else ""
        yield f"{column.title} {column.text(row)}{small}"


def legend(timed: Sequence[Row], colours: dict[str, int]) -> list[tuple[str, int]]:
    """The backends that were timed, each with its colour."""
    names = dict.fromkeys(row.record.backend for row in timed)
    return [(name, colours[name]) for name in names]


def roof_data(roof: Roofline | None) -> dict[str, Any] | None:
    """The machine's roof and where the winner stands below it."""
    if roof is None:
        return None
    return {
        "flops": roof.flops,
        "peak": roof.peak,
        "bandwidth": roof.bandwidth,
        "intensity": roof.intensity,
        "attained": roof.attained,
        "share": f"{units.percent(roof.share)} of the limit",
        "peakText": units.flops(roof.peak, per_second=True),
        "bandwidthText": units.bandwidth(roof.bandwidth),
    }


def operators(study: Study) -> list[dict[str, Any]]:
    """For each candidate whose operators are known: every type, before and after, with bars."""
    before = sum(study.operators.values())
    if not before:
        return []
    return [
        {
            "id": record.id,
            "words": f"{before} → {sum(record.operators.values())} operators",
            "changes": _changes(study, record),
        }
        for record in figures.optimised(study)
    ]


def _changes(study: Study, record: Record) -> list[dict[str, Any]]:
    found = figures.changes(study.operators, record.operators)
    most = max((max(one.before, one.after) for one in found), default=0) or 1
    return [
        {
            "operator": one.operator,
            "before": one.before,
            "after": one.after,
            "before_width": f"{100 * one.before / most:.1f}",
            "after_width": f"{100 * one.after / most:.1f}",
            "kind": "gone" if not one.after else "new" if not one.before else "",
        }
        for one in found
    ]


def finite(value: float | None) -> float | None:
    """The value where it can be drawn or sorted by, else None."""
    return value if value is not None and math.isfinite(value) else None
