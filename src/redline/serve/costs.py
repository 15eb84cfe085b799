"""What batches take: tells which are quick enough to run on the event loop itself."""

from __future__ import annotations

_ODD = 10.0  # times the limit: a delay of the machine, not of the engine, may be as long
_TRY = 32  # batches that ran in a thread, after which one is tried on the loop again


class Costs:
    """What batches of about so many rows took lately, in seconds: quick to rise, slow to fall.

    A single long run of up to ten times the limit is forgiven: the machine had other work. And a
    time that was taken in a thread has its wait for the interpreter in it, which on a busy server
    is longer than a small network: now and then, where one of the last was short enough, such a
    batch is tried on the loop, and what it takes there is believed. Each try that was too long
    makes the next one come half as often.

    Args:
        limit: seconds below which a batch is quick; 0 for never.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._recent: dict[int, float] = {}
        self._odd: set[int] = set()
        self._least: dict[int, float] = {}  # since the last try
        self._asked: dict[int, int] = {}
        self._every: dict[int, int] = {}

    def add(self, rows: int, seconds: float, *, here: bool) -> None:
        """A batch took so long; `here` on the loop, else in a thread."""
        size = rows.bit_length()
        before = self._recent.get(size, seconds)
        if not here:
            self._least[size] = min(seconds, self._least.get(size, seconds))
        elif seconds > _ODD * self.limit:
            self._every[size] = 2 * self._every.get(size, _TRY)
        if seconds <= 4 * before:
            quicker = here and seconds < before
            self._recent[size] = seconds if quicker else 0.9 * before + 0.1 * seconds
            self._odd.discard(size)
        elif size in self._odd or seconds > _ODD * self.limit:
            self._recent[size] = seconds
        else:
            self._odd.add(size)

    def quick(self, rows: int) -> bool:
        """Whether so many rows may run on the loop; False where no such batch has run yet."""
        size = rows.bit_length()
        recent = self._recent.get(size)
        if recent is None or not self.limit:
            return False
        if recent < self.limit:
            return True
        asked = self._asked[size] = self._asked.get(size, 0) + 1
        if asked < self._every.get(size, _TRY):
            return False
        self._asked[size] = 0
        return self._least.pop(size, recent) <= _ODD * self.limit
