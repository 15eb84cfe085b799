"""What lower precisions cost and bring: rows for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from redline.measure.record import Study, Tried
from redline.report import units
from redline.report.knee import over_fp32


@dataclass(frozen=True)
class Level:
    """One precision: its size, what it loses, whether it may compete, its fastest candidate.

    Attributes:
        pace: its time over fp32's in ONNX Runtime; fastest: its best in the race.
        bars: (node, sensitivity, width in percent, precision), the most sensitive first.
        kept: (node, operator, why) of what stayed in float.
    """

    name: str
    size: str
    drop: str
    allowed: str
    verdict: str
    fastest: str
    why: str
    layers: str
    bars: tuple[tuple[str, str, str, str], ...]
    pace: str
    kept: tuple[tuple[str, str, str], ...]


def levels(study: Study) -> list[Level]:
    """A row for every graph of lower precision that was made."""
    return [_level(study, tried) for tried in study.compressed]


def _level(study: Study, tried: Tried) -> Level:
    holds = tried.drop <= tried.max_drop + 1e-9
    timed = [r for r in study.records if r.precision == tried.name and r.timing]
    best = min(timed, key=lambda r: r.timing.median if r.timing else 0.0, default=None)
    kept = [layer for layer in tried.layers if layer.precision == "fp32"]
    words = f"{len(tried.layers) - len(kept)} of {len(tried.layers)} operators"
    if kept:
        shown = ", ".join(layer.node for layer in kept[:4])
        more = f" and {len(kept) - 4} more" if len(kept) > 4 else ""
        words += f"; in float: {shown}{more}"
    return Level(
        tried.name,
        units.size(tried.size),
        f"{tried.drop:.4g}" if math.isfinite(tried.drop) else "all",  # more noise than signal
        f"{tried.max_drop:g}",
        "may compete" if holds else "loses too much",
        units.seconds(best.timing.median) if best and best.timing else units.UNKNOWN,
        _why(study, tried, holds),
        words,
        _bars(tried),
        units.ratio(over_fp32(tried)),
        tuple((layer.node, layer.operator, layer.reason) for layer in kept),
    )


def _why(study: Study, tried: Tried, holds: bool) -> str:
    """Why it is not the winner, where it is not."""
    best = next((record for record in study.records if record.winner), None)
    rows = [r for r in study.records if r.precision == tried.name]
    if not holds or best is None or best.precision == tried.name:
        return ""
    ranked: Sequence[str] = [r.reason for r in sorted(
        rows, key=lambda r: r.timing.median if r.timing else float("inf")
    ) if r.reason]  # fmt: skip
    return ranked[0] if ranked else "no backend here runs it"


def _bars(tried: Tried) -> tuple[tuple[str, str, str, str], ...]:
    known = [layer for layer in tried.layers if layer.sensitivity is not None]
    known.sort(key=lambda layer: -(layer.sensitivity or 0.0))
    most = max((layer.sensitivity or 0.0 for layer in known), default=0.0) or 1.0
    return tuple(
        (
            layer.node,
            f"{layer.sensitivity:.2g}",
            f"{100 * (layer.sensitivity or 0.0) / most:.1f}",
            layer.precision,
        )
        for layer in known[:40]
    )
