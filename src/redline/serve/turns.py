"""Fairness between models: where batches may not all run at once, who had least goes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Wake = Callable[[], None]


class Turns:
    """At most `limit` batches at once; 0 leaves it to the system, whose threads share the cores.

    Each model has the engine time that it has used. A model that was idle starts at the least of
    those that were not: it goes first, but cannot save up time.

    Example:
        >>> turns = Turns(1)
        >>> turns.take("a", lambda: None), turns.take("b", lambda: None)
        (True, False)
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running: dict[Any, int] = {}
        self._used: dict[Any, float] = {}
        self._waiting: dict[Any, Wake] = {}

    def take(self, who: Any, wake: Wake) -> bool:
        """Whether `who` may start a batch now; if not, `wake` is called when it is its turn."""
        if not self._limit:
            return True
        if who not in self._used:
            self._used[who] = min(self._used.values(), default=0.0)
        busy = sum(self._running.values())
        ahead = [other for other in self._waiting if other is not who]
        least = min((self._used[other] for other in ahead), default=float("inf"))
        if busy >= self._limit or (self._used[who] > least and busy + len(ahead) >= self._limit):
            self._waiting[who] = wake
            return False
        self._waiting.pop(who, None)
        self._running[who] = self._running.get(who, 0) + 1
        return True

    def give(self, who: Any, seconds: float) -> None:
        """A batch of `who` has ended; whoever had least among those that wait is woken."""
        if not self._limit:
            return
        self._used[who] = self._used.get(who, 0.0) + seconds
        left = self._running.get(who, 0) - 1
        if left > 0:
            self._running[who] = left
        else:
            self._running.pop(who, None)
        self._wake_next()
        if who not in self._running and who not in self._waiting and len(self._used) > 1:
            # It comes back at the least of those that are still there.
            others = [self._used[o] for o in (*self._running, *self._waiting)]
            if others:
                self._used[who] = max(self._used[who], min(others))

    def forget(self, who: Any) -> None:
        """`who` is gone."""
        self._running.pop(who, None)
        self._used.pop(who, None)
        self._waiting.pop(who, None)
        self._wake_next()

    def _wake_next(self) -> None:
        if self._waiting and sum(self._running.values()) < self._limit:
            who = min(self._waiting, key=lambda other: self._used[other])
            self._waiting[who]()
