"""Finds batch, delay and instances for a model by replaying arrivals against its batcher.

Open loop: a request is due at its own time, and its latency counts from then, also where the
server was too busy to take it. What the network fronts cost is not in it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from redline.errors import InputError
from redline.serve.arrivals import Arrivals
from redline.serve.batcher import Batcher, Queueing
from redline.serve.messages import ServeError
from redline.serve.opening import Run

_FINAL, _ROUNDS = 3, 3  # settings that are replayed again, and how often each in all
_SAME = 1.05  # p99 that is higher by less is the same
_LATE = 0.01  # of the requests: then the 99th percentile is late
_PATIENCE = 5.0  # seconds that the last answers may take

Inputs = Callable[[int], Sequence[np.ndarray]]  # rows -> one request


@dataclass(frozen=True, order=True)
class Setting:
    """What is looked for, plainest first; delay in seconds.

    Attributes:
        batch: largest batch; 1 runs requests one by one.
    """

    instances: int = 1
    batch: int = 1
    delay: float = 0.0


@dataclass(frozen=True)
class Tried:
    """A setting and what it gave; seconds. `stopped`: given up early, its p99 is at least this.

    Attributes:
        rate: answers a second.
        failed: requests that the queue refused.
    """

    setting: Setting
    p50: float
    p99: float
    rate: float
    failed: int
    stopped: bool


@dataclass(frozen=True)
class Tuned:
    """All that was tried, and the best: None where nothing reaches the goal."""

    goal: float
    tried: tuple[Tried, ...]
    best: Tried | None


def settings_to_try(
    max_batch: int, goal: float, least: int = 1, instances: int = 2
) -> list[Setting]:
    """A grid: batches 1, 4, 16, ... up to the largest, no delay or some below half the goal.

    Args:
        least: rows of the largest request, which must fit a batch.

    Example:
        >>> [s.batch for s in settings_to_try(8, 0.001, instances=1)]
        [1, 4, 4, 8, 8]
    """
    batches = sorted({size for size in (1, 4, 16, 64, 256) if size < max_batch} | {max_batch})
    delays = [0.0, *(delay for delay in (5e-4, 2e-3, 1e-2) if delay <= goal / 2)]
    return [
        Setting(count, batch, delay)
        for count in range(1, instances + 1)
        for batch in batches
        if batch >= least
        for delay in (delays if batch > 1 else [0.0])
    ]


class _Counter:
    """What became of the requests; `stop` is set where the goal is missed for certain."""

    def __init__(self, goal: float, total: int) -> None:
        self.took: list[float] = []
        self.failed = self.late = 0
        self.stop = threading.Event()
        self._goal, self._most = goal, _LATE * total

    def settle(self, due: float, good: bool) -> None:
        seconds = time.perf_counter() - due if good else float("inf")
        self.took.append(seconds)
        self.failed += not good
        self.late += seconds > self._goal
        if self.late > self._most:
            self.stop.set()


async def replay(
    runs: Sequence[Run], inputs: Inputs, queueing: Queueing, arrivals: Arrivals, goal: float,
    setting: Setting,
) -> Tried:  # fmt: skip
    """Replay arrivals once; given up where more than 1 % are late for the goal already.

    A thread of its own calls each request in at its time: the loop's timers are too coarse.
    """
    loop = asyncio.get_running_loop()
    queueing = replace(queueing, max_batch=setting.batch, delay=setting.delay, preferred=())
    batcher = Batcher(runs[: setting.instances], len(inputs(1)), queueing, name="tune")
    requests = {rows: inputs(rows) for rows in {*arrivals.rows.tolist()}}
    counter = _Counter(goal, len(arrivals.at))
    start = time.perf_counter() + 0.05

    def submit(due: float, rows: int) -> None:
        try:
            item = batcher.submit(requests[rows], rows, (), 0, 0.0)
        except ServeError:
            counter.settle(due, False)
            return
        item.future.add_done_callback(
            lambda done: counter.settle(due, not done.cancelled() and done.exception() is None)
        )

    def call_in() -> None:
        for at, rows in zip(arrivals.at.tolist(), arrivals.rows.tolist(), strict=True):
            if counter.stop.wait(max(0.0, start + at - time.perf_counter())):
                return
            loop.call_soon_threadsafe(submit, start + at, rows)

    await asyncio.to_thread(call_in)
    try:
        if not counter.stop.is_set():
            await asyncio.wait_for(batcher.drained(), _PATIENCE + goal)
    except TimeoutError:
        counter.stop.set()
    await asyncio.sleep(0)  # the callbacks of the last answers
    tried = _told(setting, counter, goal, time.perf_counter() - start)
    instances = batcher.close()
    await asyncio.to_thread(lambda: [instance.join(_PATIENCE) for instance in instances])
    return tried


def _told(setting: Setting, counter: _Counter, goal: float, seconds: float) -> Tried:
    took, stopped = counter.took or [float("inf")], counter.stop.is_set()
    p50, p99 = (float(np.percentile(took, part, method="higher")) for part in (50, 99))
    answered = len(counter.took) - counter.failed
    p99 = max(p99, goal) if stopped else p99
    return Tried(setting, p50, p99, answered / seconds, counter.failed, stopped)


async def tune(
    runs: Sequence[Run], inputs: Inputs, queueing: Queueing, arrivals: Arrivals, goal: float,
    settings: Sequence[Setting], tell: Callable[[Tried], None] = lambda tried: None,
) -> Tuned:  # fmt: skip
    """Replay arrivals under each setting, the best three again in turns, and choose.

    The best has the lowest median p99, unless a plainer one, which always takes part in the turns,
    cannot be told from it: within 5 %, or as low in one of its turns as the best in its worst.

    Args:
        runs: as many as the most instances of a setting.
        goal: seconds that 99 of 100 requests may take from the time that they were due.

    Raises:
        InputError: there is nothing to try.
    """
    if not settings:
        raise InputError(
            f"no batch holds a request of {arrivals.rows.max()} rows",
            hint="give arrivals with fewer rows",
        )
    found: dict[Setting, list[Tried]] = {}

    async def again(setting: Setting) -> None:
        tried = await replay(runs, inputs, queueing, arrivals, goal, setting)
        found.setdefault(setting, []).append(tried)
        tell(tried)

    for setting in settings:
        await again(setting)
    good = sorted((s for s in settings if _meets(found[s][0], goal)), key=lambda s: found[s][0].p99)
    finalists = sorted({*good[:_FINAL], *sorted(good)[:1]})
    for _ in range(_ROUNDS - 1):
        for setting in finalists:
            await again(setting)
    middles = {setting: _middle(rows) for setting, rows in found.items()}
    last = [setting for setting in finalists if _meets(middles[setting], goal)]
    best = _plainest(last, found, middles)
    return Tuned(goal, tuple(middles.values()), best)


def _plainest(
    last: Sequence[Setting], found: dict[Setting, list[Tried]], middles: dict[Setting, Tried]
) -> Tried | None:
    """Of the settings that cannot be told from the best, the plainest."""
    if not last:
        return None
    best = min(last, key=lambda setting: middles[setting].p99)
    worst = max(tried.p99 for tried in found[best])
    same = [
        setting for setting in last
        if middles[setting].p99 <= middles[best].p99 * _SAME
        or min(tried.p99 for tried in found[setting]) <= worst
    ]  # fmt: skip
    return middles[min(same)]


def _meets(tried: Tried, goal: float) -> bool:
    return not tried.stopped and not tried.failed and tried.p99 <= goal


def _middle(rows: Sequence[Tried]) -> Tried:
    return sorted(rows, key=lambda tried: tried.p99)[len(rows) // 2]
