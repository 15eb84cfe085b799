"""The columns of the table of candidates, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from redline.measure.record import Record
from redline.report import units
from redline.report.figures import Row


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        help: what the number is, in a few words.
        value: what it sorts by; None where a row has none.
        text: the value as people read it.
        priority: the lower, the longer it stays on a narrow terminal.
    """

    title: str
    help: str
    value: Callable[[Row], float | None]
    text: Callable[[Row], str]
    priority: int


@dataclass(frozen=True)
class Detail:
    """A second line below another column's number; on a terminal a column of its own."""

    title: str
    below: str
    text: Callable[[Row], str]
    priority: int


COLUMNS = (
    Column(
        "latency",
        "median time of one call",
        lambda row: latency(row.record),
        lambda row: units.seconds(latency(row.record)),
        0,
    ),
    Column(
        "× eager",
        "eager's latency over this one",
        lambda row: row.over_eager,
        lambda row: units.ratio(row.over_eager),
        1,
    ),
    Column(
        "× best other",
        "latency of the fastest candidate of another backend over this one",
        lambda row: row.over_other,
        lambda row: units.ratio(row.over_other),
        4,
    ),
    Column(
        "items",
        "items a second",
        lambda row: row.record.throughput,
        lambda row: units.rate(row.record.throughput),
        7,
    ),
    Column(
        "build",
        "wall time of the build",
        lambda row: row.record.build_seconds,
        lambda row: units.seconds(row.record.build_seconds),
        6,
    ),
    Column(
        "memory",
        "peak resident memory of the process that ran it",
        lambda row: row.record.peak_memory,
        lambda row: units.size(row.record.peak_memory),
        5,
    ),
    Column(
        "size",
        "bytes in the engine file",
        lambda row: row.record.size,
        lambda row: units.size(row.record.size),
        4,
    ),
    Column(
        "error",
        "max|y - ref| / rms(ref) against the reference",
        lambda row: row.record.error,
        lambda row: units.error(row.record.error),
        2,
    ),
    Column(
        "accuracy",
        "the metric that was given",
        lambda row: row.record.accuracy,
        lambda row: units.percent(row.record.accuracy),
        3,
    ),
)

DETAILS = (
    Detail("95 % interval", "latency", lambda row: units.interval(row.record.timing), 3),
    Detail("allowed", "error", lambda row: allowed(row.record), 5),
)


def telling(rows: Sequence[Row]) -> list[Column]:
    """The columns that hold a number for at least one row."""
    return [column for column in COLUMNS if any(column.value(row) is not None for row in rows)]


def detail(column: Column) -> Detail | None:
    """What stands below a column's number, if anything."""
    return next((one for one in DETAILS if one.below == column.title), None)


def latency(record: Record) -> float | None:
    """The median, where there is one."""
    return record.timing.median if record.timing else None


def allowed(record: Record) -> str:
    """The tolerance, with its class where it is not the strict one.

    Example:
        >>> allowed(Record("n", "ncnn", "ok", tolerance=1.3e-3, tolerance_class="winograd-f63"))
        '1.3e-3 winograd-f63'
    """
    if record.tolerance is None:
        return ""
    loose = "" if record.tolerance_class == "fp32" else f" {record.tolerance_class}"
    return units.error(record.tolerance) + loose
