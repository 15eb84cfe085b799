"""The report as one HTML document: template, style and script from page/, nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from redline.measure.record import Study
from redline.report import card, chain, charts, figures, precision, units
from redline.report.card import Card
from redline.report.columns import Column, allowed, detail, telling
from redline.report.document import content_hash, template
from redline.report.figures import Roofline, Row
from redline.report.knee import knee


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
    colours = charts.colours(study)
    chart = charts.chart(timed, colours)
    style, script = _asset("report.css"), _asset("report.js")
    columns = telling(timed)
    data = chart | {"shapes": charts.SHAPES, "roof": charts.roof_data(roof)}
    return _template().render(
        study=study,
        machine=machine,
        winner=figures.winner(study),
        headline=figures.headline(study),
        provenance=figures.provenance(study),
        tiles=_tiles(study, roof),
        bars=charts.bars(timed, colours),
        chart=chart,
        legend=charts.legend(timed, colours),
        shapes=charts.SHAPES,
        columns=columns,
        table=[_table_row(row, columns) for row in timed],
        rest=[_rest_row(row) for row in rest],
        roof=_roof_words(roof),
        operators=charts.operators(study),
        levels=precision.levels(study),
        knee=knee(study),
        judged=study.compressed[0].how if study.compressed else "",
        pieces=_pieces(study, machine),
        missed=best.missed if (best := figures.winner(study)) else (),
        chain=chain.links(study),
        facts=_facts(study, machine),
        again=_again(study),
        style=Markup(style),
        script=Markup(script) if timed else "",
        style_hash=content_hash(style),
        script_hash=content_hash(script),
        data=Markup(_embed(data)),
    )


@cache
def _template() -> jinja2.Template:
    return template(_asset("report.html"))


@cache
def _asset(name: str) -> str:
    return resources.files("redline.report").joinpath("page", name).read_text(encoding="utf-8")


def _embed(data: dict[str, Any]) -> str:
    """JSON that cannot end the script element it stands in."""
    text = msgspec.json.encode(data).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _tiles(study: Study, roof: Roofline | None) -> list[dict[str, str]]:
    best = figures.winner(study)
    if best is None or best.timing is None:
        return []
    row = next(row for row in figures.rows(study)[0] if row.record is best)
    against_eager = None if best is figures.eager(study) else row.over_eager
    spread = figures.gain_interval(study)
    sure = "95 % interval"
    tiles = (
        ("latency", units.seconds(best.timing.median), f"{units.interval(best.timing)}, {sure}"),
        (
            "against eager",
            units.ratio(against_eager),
            f"{spread[0]:.2f}–{spread[1]:.2f}, {sure}" if spread else "",
        ),
        ("against the best other", units.ratio(row.over_other), row.other.id if row.other else ""),
        (
            "of this machine’s limit" + ("" if best.precision == "fp32" else " in fp32"),
            units.percent(roof.share if roof else None),
            f"{roof.bound}-bound" if roof else "",
        ),
        ("engine size", units.size(best.size), _parameters(study)),
        ("error", units.error(best.error), f"{allowed(best)} allowed" if allowed(best) else ""),
        ("accuracy", units.percent(best.accuracy), ""),
    )
    return [
        {"label": label, "value": value, "small": small}
        for label, value, small in tiles
        if value != units.UNKNOWN
    ]


def _pieces(study: Study, machine: Card) -> list[dict[str, str]]:
    """The winner's groups as rows; `width` is the share of the time, in percent."""
    return [
        {
            "kernel": piece.group.kernel,
            "name": piece.group.name,
            "time": units.seconds(piece.group.seconds),
            "share": units.percent(piece.share),
            "roof": units.percent(piece.roof) if piece.roof else "",
        }
        for piece in figures.pieces(study, machine)
    ]


def _parameters(study: Study) -> str:
    return f"{units.count(study.parameters)} parameters" if study.parameters else ""


def _table_row(row: Row, columns: Sequence[Column]) -> dict[str, Any]:
    record = row.record
    badges = [
        "from cache" if record.from_cache else "",
        "" if record.packaged else "not packaged",
        "" if record.precision == "fp32" else record.precision,
    ]
    return {
        "id": record.id,
        "winner": record.winner,
        "badges": [badge for badge in badges if badge],
        "why": row.why,
        "cells": [_cell(row, column) for column in columns],
    }


def _cell(row: Row, column: Column) -> dict[str, str]:
    below, value = detail(column), charts.finite(column.value(row))
    small = below.text(row) if below else ""
    return {
        "label": column.title,
        "text": column.text(row),
        "small": f"of {small}" if small and column.title == "error" else small,
        "sort": "" if value is None else repr(float(value)),
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


def _roof_words(roof: Roofline | None) -> dict[str, str] | None:
    return {"words": figures.bound_line(roof), "remark": roof.remark} if roof else None


def _facts(study: Study, machine: Card) -> list[dict[str, Any]]:
    """Tables of label and value at the foot of the page; what is not known is left out."""
    own_error = units.error(study.yardstick) if study.yardstick is not None else ""
    model = (
        ("came from", study.origin),
        ("parameters", units.count(study.parameters) if study.parameters else ""),
        ("arithmetic", units.flops(study.flops) if study.flops else ""),
        ("least memory traffic", units.size(study.bytes) if study.bytes else ""),
        ("operators", units.count(sum(study.operators.values())) if study.operators else ""),
        ("reference", study.reference),
        ("eager float32’s own error", own_error),
    )
    versions = tuple(study.versions.items())
    groups = (("Model", model), ("Machine", machine.rows), ("Versions", versions))
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
