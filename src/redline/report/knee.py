"""The knee: what each lower precision loses against the time it takes, as coordinates."""

from __future__ import annotations

import math
from typing import Any

from redline.measure.record import Study, Tried

WIDTH, HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 130, 16, 44
_DRAWN = 4.0  # bounds: what loses more stands at the lower edge


def knee(study: Study) -> dict[str, Any] | None:
    """The plot; None where nothing was timed.

    Times are of ONNX Runtime on one graph next to fp32's, so that graphs that were not let into the
    race can be compared with those that were. fp32 loses nothing in one times its own time.

    Example:
        >>> knee(Study("Net", "module", {}, "minimize latency", "", ()))
    """
    timed = [(pace, one) for one in study.compressed if (pace := over_fp32(one)) is not None]
    if not timed:
        return None
    bound = max(one.max_drop for _, one in timed)
    shown = [one.drop for _, one in timed if math.isfinite(one.drop)]
    worst = max([bound * 1.5, *shown]) or 0.01
    worst = min(worst, _DRAWN * bound) if bound else worst
    best = min([0.0, *shown])
    most = 1.1 * max(1.0, *(pace for pace, _ in timed))
    height = (HEIGHT - _TOP - _BOTTOM) / ((worst - best) * 1.1)

    def across(pace: float) -> str:
        return f"{_LEFT + (WIDTH - _LEFT - _RIGHT) * pace / most:.1f}"

    def down(drop: float) -> str:
        return f"{_TOP + 8 + (min(drop, worst) - best) * height:.1f}"

    winner = next((record.precision for record in study.records if record.winner), "")
    points = [_point("fp32", 1.0, 0.0, True, winner)]
    for pace, one in timed:
        points.append(_point(one.name, pace, one.drop, one.drop <= one.max_drop + 1e-9, winner))
    points.sort(key=lambda point: point["pace"])
    for point in points:
        point |= {"x": across(point["pace"]), "y": down(point["drop"])}
    _label(points)
    steps = [worst * part / 4 for part in range(5)]
    paces = [most * part / 4 for part in range(1, 5)]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": _LEFT,
        "right": WIDTH - _RIGHT,
        "top": _TOP,
        "bottom": HEIGHT - _BOTTOM,
        "points": points,
        "path": " ".join(f"{point['x']},{point['y']}" for point in points),
        "bound": down(bound),
        "bound_text": f"{bound:g} may be lost",
        "rows": [{"y": down(step), "text": f"{step:.3g}"} for step in steps],
        "columns": [{"x": across(pace), "text": f"{pace:.2f}×"} for pace in paces],
    }


def _label(points: list[dict[str, Any]]) -> None:
    """Each name above its point, higher where another name stands there already."""
    placed: list[tuple[float, float]] = []
    for point in points:
        x, y = float(point["x"]), float(point["y"]) - 9
        while any(abs(x - a) < 8 * len(point["name"]) and abs(y - b) < 13 for a, b in placed):
            y -= 13
        placed.append((x, y))
        point["label"] = f"{y:.1f}"


def over_fp32(tried: Tried) -> float | None:
    """Its time over fp32's, both of a few calls in ONNX Runtime side by side."""
    if not tried.seconds or not tried.fp32_seconds:
        return None
    return tried.seconds / tried.fp32_seconds


def _point(name: str, pace: float, drop: float, holds: bool, winner: str) -> dict[str, Any]:
    return {
        "name": name,
        "pace": pace,
        "drop": drop,
        "holds": holds,
        "winner": name == winner,
        "tip": f"{name}: {pace:.2f} × fp32's time, "
        + (f"loses {drop:.4g}" if math.isfinite(drop) else "mostly noise"),
    }
