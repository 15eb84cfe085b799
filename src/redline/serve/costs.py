"""What batches take: tells which are quick enough to run on the event loop itself."""

from __future__ import annotations


class Costs:
    """What batches of about so many rows took lately, in seconds: quick to rise, slow to fall."""

    def __init__(self) -> None:
        self._recent: dict[int, float] = {}

    def add(self, rows: int, seconds: float) -> None:
        """A batch took so long."""
        size = rows.bit_length()
        before = self._recent.get(size, seconds)
        self._recent[size] = seconds if seconds > 4 * before else 0.9 * before + 0.1 * seconds

    def most(self, rows: int) -> float:
        """What so many rows may take; infinite where no batch of that size has run yet."""
        return self._recent.get(rows.bit_length(), float("inf"))
