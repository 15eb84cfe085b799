"""The report as one HTML document: template, style and script from page/, and nothing from outside."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import msgspec

from redline.measure.record import Record, Study
from redline.report import card, chain, figures, units
from redline.report.card import Card
from redline.report.figures import Roofline, Row
from redline.report.terminal import allowed

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


@dataclass(frozen=True)
class _Column:
    """A column of the table: the text, a smaller line below it, and the number it sorts by."""

    key: str
    label: str
    title: str
    text: Callable[[Row], str] = lambda row: row.record.id
    sort: Callable[[Row], float | None] = lambda row: None
    small: Callable[[Row], str] = lambda row: ""


_COLUMNS = (
    _Column(
        "latency",
        "latency",
        "median seconds for one call, with its 95 % interval",
        lambda row: units.seconds(row.record.timing.median if row.record.timing else None),
        lambda row: row.record.timing.median if row.record.timing else None,
        lambda row: units.interval(row.record.timing),
    ),
    _Column(
        "eager",
        "× eager",
        "eager's latency over this one",
        lambda row: units.ratio(row.over_eager),
        lambda row: row.over_eager,
    ),
    _Column(
        "other",
        "× best other",
        "latency of the fastest candidate of another backend over this one",
        lambda row: units.ratio(row.over_other),
        lambda row: row.over_other,
    ),
    _Column(
        "throughput",
        "items",
        "items a second",
        lambda row: units.rate(row.record.throughput),
        lambda row: row.record.throughput,
    ),
    _Column(
        "build",
        "build",
        "wall time of the build",
        lambda row: units.seconds(row.record.build_seconds),
        lambda row: row.record.build_seconds,
    ),
    _Column(
        "memory",
        "memory",
        "peak resident memory of the process that ran it",
        lambda row: units.size(row.record.peak_memory),
        lambda row: row.record.peak_memory,
    ),
    _Column(
        "size",
        "size",
        "bytes in the engine file",
        lambda row: units.size(row.record.size),
        lambda row: row.record.size,
    ),
    _Column(
        "error",
        "error",
        "max|y - ref| / rms(ref) against the reference, and what was allowed",
        lambda row: units.error(row.record.error),
        lambda row: row.record.error,
        lambda row: f"of {allowed(row.record)}" if row.record.tolerance is not None else "",
    ),
    _Column(
        "accuracy",
        "accuracy",
        "the metric that was given",
        lambda row: units.percent(row.record.accuracy),
        lambda row: row.record.accuracy,
    ),
)


def render(study: Study) -> str:
    """The document as text. Everything from the study is escaped; the content policy allows no
    script or style but the two inside, by their hashes, and no request at all.

    Example:
        >>> render(Study("Net", "module", {}, "minimize latency", "", ()))[:15]
        '<!doctype html>'
    """
    machine = card.read(study.machine)
    timed, rest = figures.rows(study)
    roof = figures.roofline(study, machine)
    colours = _colours(study)
    chart = _chart(timed, colours)
    style, script = _asset("report.css"), _asset("report.js")
    columns = [column for column in _COLUMNS if _tells(column, timed)]
    data = chart | {"shapes": SHAPES, "roof": _roof_data(roof)}
    return _template().render(
        study=study,
        machine=machine,
        winner=figures.winner(study),
        headline=figures.headline(study),
        provenance=figures.provenance(study),
        tiles=_tiles(study, roof),
        bars=_bars(timed, colours),
        chart=chart,
        legend=[(name, colours[name]) for name in dict.fromkeys(row.record.backend for row in timed)],
        shapes=SHAPES,
        columns=[_Column("id", "candidate", "backend and setting"), *columns],
        table=[_table_row(row, columns) for row in timed],
        rest=[_rest_row(row) for row in rest],
        roof=_roof_words(roof),
        operators=_operators(study),
        chain=chain.links(study),
        facts=_facts(study, machine),
        again=_again(study),
        style=jinja2.filters.Markup(style),
        script=jinja2.filters.Markup(script) if timed else "",
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=jinja2.filters.Markup(_embed(data)),
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_asset("report.html"))


@cache
def _asset(name: str) -> str:
    return resources.files("redline.report").joinpath("page", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embed(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = msgspec.json.encode(data).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _colours(study: Study) -> dict[str, int]:
    """Backend -> index of its colour and shape: the known ones always have the same."""
    names = dict.fromkeys(record.backend for record in study.records)
    known = {name: _COLOURS.index(name) for name in names if name in _COLOURS}
    free = [index for index in range(len(SHAPES)) if index not in known.values()] or [len(SHAPES) - 1]
    others = [name for name in names if name not in known]
    return known | {name: free[place % len(free)] for place, name in enumerate(others)}


def _tiles(study: Study, roof: Roofline | None) -> list[dict[str, str]]:
    best = figures.winner(study)
    if best is None or best.timing is None:
        return []
    row = next(row for row in figures.rows(study)[0] if row.record is best)
    spread = figures.gain_interval(study)
    tiles = [
        ("latency", units.seconds(best.timing.median), f"{units.interval(best.timing)}, 95 % interval"),
        ("against eager", units.ratio(row.over_eager), f"{spread[0]:.2f}–{spread[1]:.2f}, 95 % interval" if spread else ""),
        ("against the best other", units.ratio(row.over_other), row.why.rpartition(" is ")[2]),
        ("of this machine’s limit", units.percent(roof.share if roof else None), roof.bound + "-bound" if roof else ""),
        ("engine size", units.size(best.size), f"{units.count(study.parameters)} parameters" if study.parameters else ""),
        ("error", units.error(best.error), f"{allowed(best)} allowed" if best.tolerance is not None else ""),
    ]
    return [
        {"label": label, "value": value, "small": small}
        for label, value, small in tiles
        if value != units.UNKNOWN
    ]


def _bars(timed: Sequence[Row], colours: dict[str, int]) -> list[dict[str, Any]]:
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


def _chart(timed: Sequence[Row], colours: dict[str, int]) -> dict[str, Any]:
    """Points of the scatter plot, and the axes that at least one of them has a value on."""
    points = [_point(row, colours) for row in timed if row.record.timing and row.record.timing.low > 0]
    axes = [
        {"key": axis.key, "label": axis.label, "unit": axis.unit, "more": axis.more}
        for axis in _AXES
        if any(point[axis.key] is not None for point in points)
    ]
    return {"points": points, "axes": axes}


def _point(row: Row, colours: dict[str, int]) -> dict[str, Any]:
    record, timing = row.record, row.record.timing
    assert timing is not None
    lines = [
        record.id,
        f"{units.seconds(timing.median)} ({units.interval(timing)})",
        f"{units.ratio(row.over_eager)} eager" if row.over_eager else "",
        f"size {units.size(record.size)}" if record.size is not None else "",
        f"error {units.error(record.error)}" if record.error is not None else "",
        f"memory {units.size(record.peak_memory)}" if record.peak_memory is not None else "",
        f"build {units.seconds(record.build_seconds)}" if record.build_seconds is not None else "",
        f"accuracy {units.percent(record.accuracy)}" if record.accuracy is not None else "",
    ]
    return {
        "id": record.id,
        "winner": record.winner,
        "colour": colours[record.backend],
        "latency": timing.median,
        "low": timing.low,
        "high": timing.high,
        "tip": "\n".join(line for line in lines if line),
        **{axis.key: _finite(axis.value(record)) for axis in _AXES},
    }


def _tells(column: _Column, timed: Sequence[Row]) -> bool:
    return any(column.sort(row) is not None for row in timed)


def _table_row(row: Row, columns: Sequence[_Column]) -> dict[str, Any]:
    record = row.record
    badges = [
        "from cache" if record.from_cache else "",
        "" if record.packaged else "not packaged",
        "" if record.precision == "fp32" else record.precision,
    ]
    cells = [
        {
            "label": column.label,
            "text": column.text(row),
            "small": column.small(row),
            "sort": "" if (number := _finite(column.sort(row))) is None else repr(float(number)),
        }
        for column in columns
    ]
    return {
        "id": record.id,
        "winner": record.winner,
        "badges": [badge for badge in badges if badge],
        "why": row.why,
        "cells": cells,
    }


def _rest_row(row: Row) -> dict[str, str]:
    record = row.record
    mild = record.outcome in ("missing", "refused", "skipped", "ok")
    return {
        "id": record.id,
        "outcome": record.outcome,
        "tone": "mild" if mild else "bad",
        "why": row.why if row.why != record.outcome else "",
        "hint": record.hint,
    }


def _roof_data(roof: Roofline | None) -> dict[str, Any] | None:
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


def _roof_words(roof: Roofline | None) -> dict[str, str] | None:
    return {"words": figures.bound_line(roof), "remark": roof.remark} if roof else None


def _operators(study: Study) -> list[dict[str, Any]]:
    if not study.operators:
        return []
    return [
        {
            "id": record.id,
            "words": f"{sum(study.operators.values())} → {sum(record.operators.values())} operators",
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


def _facts(study: Study, machine: Card) -> list[dict[str, Any]]:
    accuracy = [
        ("reference", study.reference),
        ("eager float32’s own error", units.error(study.yardstick) if study.yardstick is not None else ""),
    ]
    model = [
        ("came from", study.origin),
        ("parameters", units.count(study.parameters) if study.parameters else ""),
        ("arithmetic", units.flops(study.flops) if study.flops else ""),
        ("least memory traffic", units.size(study.bytes) if study.bytes else ""),
        ("operators", units.count(sum(study.operators.values())) if study.operators else ""),
        *accuracy,
    ]
    groups = [("Model", model), ("Machine", machine.rows), ("Versions", list(study.versions.items()))]
    told = [(title, [row for row in rows if row[1]]) for title, rows in groups]
    return [{"title": title, "rows": rows} for title, rows in told if rows]


def _again(study: Study) -> str:
    """The call that repeats the study, as far as a study knows it."""
    if study.origin == "comparison":
        return "redline bench " + study.model.replace(" | ", " ")
    budget = f', budget="{study.budget:g}s"' if study.budget else ""
    goal = f"  # goal: {study.goal}" if study.goal else ""
    return (
        f"engine = redline.optimize(model, example{budget}, use_cache=False){goal}\n"
        "print(engine.report)"
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
