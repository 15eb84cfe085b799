"""What the caller wants: one thing to minimize or maximize, under constraints."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from redline.errors import GoalError, UnknownNameError
from redline.measure.record import Record

Objective = Literal["latency", "throughput", "memory", "size"]

_UNITS = {
    "time": {
        "ns": 1e-9,
        "us": 1e-6,
        "µs": 1e-6,
        "ms": 1e-3,
        "s": 1.0,
        "m": 60.0,
        "min": 60.0,
        "h": 3600.0,
    },
    "bytes": {
        "": 1,
        "b": 1,
        "kb": 1e3,
        "mb": 1e6,
        "gb": 1e9,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
    },
}


@dataclass(frozen=True)
class Goal:
    """What optimize() looks for.

    Args:
        minimize: "latency" (seconds a call), "throughput" (items a second, as many as possible),
            "memory" (resident bytes at the peak) or "size" (bytes in the engine file).
        max_latency: seconds, or text such as "5ms".
        max_memory, max_size: bytes, or text such as "40MB" (10**6) or "64MiB" (2**20).
        max_drop: how much the caller's `evaluate` may fall, as a fraction (0.005 is half a point).
        batch: the batch size to decide for; needs a dynamic "batch" dim that holds it.

    Raises:
        GoalError: a constraint that cannot be read, or is not positive.
        UnknownNameError: `minimize` is none of the four.

    Example:
        >>> Goal(minimize="latency", max_size="40MB").max_size
        40000000.0
    """

    minimize: Objective = "latency"
    max_latency: float | str | None = None
    max_memory: float | str | None = None
    max_size: float | str | None = None
    max_drop: float | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if self.minimize not in get_args(Objective):
            raise UnknownNameError("goal", str(self.minimize), get_args(Objective))
        for name, kind in (("max_latency", "time"), ("max_memory", "bytes"), ("max_size", "bytes")):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, quantity(value, kind, name))
        if self.max_drop is not None and not 0 <= self.max_drop < 1:
            raise GoalError(f"max_drop is {self.max_drop}, expected a fraction from 0 to below 1")
        if self.batch is not None and self.batch < 1:
            raise GoalError(f"batch is {self.batch}, expected at least 1")

    def __str__(self) -> str:
        verb = "maximize" if self.minimize == "throughput" else "minimize"
        limits = [f"{name} {_show(name, limit)}" for name, limit in self._limits()]
        if self.max_drop is not None:
            limits.append(f"max_drop {self.max_drop}")
        return ", ".join([f"{verb} {self.minimize}", *limits])

    def cost(self, record: Record) -> float:
        """What is to be small, from a record that has been timed."""
        if self.minimize == "throughput":
            return 1.0 / record.throughput if record.throughput else float("inf")
        value = {
            "latency": record.timing.median if record.timing else None,
            "memory": record.peak_memory,
            "size": record.size,
        }[self.minimize]
        return float("inf") if value is None else float(value)

    def misses(self, record: Record) -> dict[str, float]:
        """Constraint -> measured over allowed, for each one that the record does not meet."""
        measured = {
            "max_latency": record.timing.median if record.timing else None,
            "max_memory": record.peak_memory,
            "max_size": record.size,
        }
        over = {name: (measured[name] or 0.0) / limit for name, limit in self._limits()}
        return {name: factor for name, factor in over.items() if factor > 1}

    def verdict(self, record: Record) -> str:
        """One sentence: the goal is met, or by how much it is missed.

        Example:
            >>> Goal().verdict(Record("eager", "eager", "ok"))
            'met'
        """
        misses = self.misses(record)
        if not misses:
            return "met"
        words = [
            f"{name} {_show(name, limit)} is missed by {(misses[name] - 1) * 100:.0f} %"
            for name, limit in self._limits()
            if name in misses
        ]
        return "not met: " + "; ".join(words) + "; this is the nearest candidate"

    def _limits(self) -> Iterator[tuple[str, float]]:
        for name in ("max_latency", "max_memory", "max_size"):
            if (limit := getattr(self, name)) is not None:
                yield name, limit


def quantity(value: float | str, kind: str, name: str) -> float:
    """Seconds (kind "time") or bytes (kind "bytes") from a number or text.

    Raises:
        GoalError: it cannot be read, or is not positive.

    Example:
        >>> quantity("1.5ms", "time", "max_latency")
        0.0015
    """
    units = _UNITS[kind]
    examples = "'5ms', '90s', '3m'" if kind == "time" else "'40MB', '64MiB'"
    counted = "seconds" if kind == "time" else "bytes"
    hint = f"give a positive number of {counted}, or text like {examples}"
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:e-?\d+)?)\s*([a-zµ]*)\s*", value.lower())
        unit = (match[2] or ("s" if kind == "time" else "")) if match else None
        if match is None or unit not in units or match[1].count(".") > 1:
            raise GoalError(f"{name} is {value!r}, which cannot be read", hint=hint)
        value = float(match[1]) * units[unit]
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value < float("inf")
    ):
        raise GoalError(f"{name} is {value!r}, expected more than zero", hint=hint)
    return float(value)


def _show(name: str, limit: float) -> str:
    return f"{limit * 1e3:g} ms" if name == "max_latency" else f"{limit / 1e6:g} MB"
