"""When requests come: made up by a law, or read from a recording or a server's own log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from redline.errors import InputError

_LONG = 16  # requests of a burst, on average


@dataclass(frozen=True)
class Arrivals:
    """Requests that come at their own times, whatever became of those before.

    Attributes:
        at: seconds from the start, ascending.
        rows: of each request.
    """

    at: np.ndarray
    rows: np.ndarray

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.at) / max(float(self.at[-1]), 1e-9)


def poisson(rate: float, seconds: float, seed: int = 0) -> Arrivals:
    """Independent requests of one row: gaps are exponential with the mean 1 / rate.

    Example:
        >>> len(poisson(1000.0, 2.0).at) in range(1800, 2200)
        True
    """
    count = max(1, round(rate * seconds))
    gaps = np.random.default_rng(seed).exponential(1 / rate, count)
    return Arrivals(np.cumsum(gaps), np.ones(count, np.int64))


def bursty(rate: float, seconds: float, seed: int = 0) -> Arrivals:
    """The same rate in bursts: 16 requests at once on average (geometric), bursts as Poisson."""
    draw = np.random.default_rng(seed)
    bursts = max(1, round(rate * seconds / _LONG))
    starts = np.cumsum(draw.exponential(_LONG / rate, bursts))
    at = np.repeat(starts, draw.geometric(1 / _LONG, bursts))
    return Arrivals(at, np.ones(len(at), np.int64))


def read_arrivals(path: Path, model: str) -> Arrivals:
    """JSON lines {"at": seconds, "rows": n}, or the log of `serve --verbose --log-format json`.

    A log has the time of each answer and how long it took; requests of other models are left out,
    and rows, which a log does not tell, are 1.

    Raises:
        InputError: it cannot be read, a line is neither, or no request is in it.
    """
    found: list[tuple[float, int]] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _row(msgspec.json.decode(line, type=dict[str, Any]), model)
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"line {number} is no arrival: {str(error)[:100]}",
                where=str(path), hint='write {"at": 0.25, "rows": 1}, seconds from the start',
            ) from error  # fmt: skip
        if row is not None:
            found.append(row)
    if not found:
        raise InputError(f"no request of {model!r} in it", where=str(path))
    found.sort()
    at = np.array([at for at, _ in found])
    return Arrivals(at - at[0], np.array([rows for _, rows in found], np.int64))


def _row(told: dict[str, Any], model: str) -> tuple[float, int] | None:
    if "at" in told:
        at, rows = float(told["at"]), int(told.get("rows", 1))
    elif "time" not in told:
        raise ValueError("it has neither 'at' nor 'time'")
    elif told.get("model") != model or "ms" not in told:
        return None  # another record of the log
    else:
        answered = datetime.fromisoformat(str(told["time"])).timestamp()
        at, rows = answered - float(told["ms"]) / 1e3, 1
    if not np.isfinite(at) or rows < 1:
        raise ValueError(f"at is {at}, rows is {rows}")
    return at, rows
