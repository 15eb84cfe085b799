"""Queues the requests of one model and forms batches, driven by events alone: no tick, no poll."""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from redline.serve.checking import Key
from redline.serve.costs import Costs
from redline.serve.instance import Batch, Instance
from redline.serve.messages import ServeError, Status
from redline.serve.opening import Run
from redline.serve.statistics import Statistics
from redline.serve.turns import Turns

_LEAKED = 8  # threads that a model may leave hanging before it is given up


@dataclass(frozen=True)
class Queueing:
    """How one model's queue behaves; times in seconds, 0 for none.

    Attributes:
        max_batch: rows of a batch; 0 runs requests one by one as they are.
        late: what is done with a request that waited too long: "REJECT", or "DELAY" to the end.
        override: a request may shorten its timeout.
        run_timeout: after which a running batch counts as hung.
        inline: batches that are known to take less than this run on the event loop itself, which
            saves two changes of thread; 0 for never.
    """

    max_batch: int = 0
    preferred: tuple[int, ...] = ()
    delay: float = 0.0
    size: int = 1024
    timeout: float = 0.0
    override: bool = True
    late: str = "REJECT"
    levels: int = 0
    default_priority: int = 0
    run_timeout: float = 0.0
    inline: float = 0.0


Done = Callable[["Item"], None]


class Item:
    """A request in the queue or in a batch.

    Attributes:
        done: called as soon as `future` has an outcome that is not a cancellation, in the same
            turn of the loop, where the future's own callbacks would need another.
    """

    __slots__ = (
        "arrays", "batch_rows", "done", "finished", "future", "gathered", "key", "level", "order",
        "queued", "rows", "started", "timer",
    )  # fmt: skip

    def __init__(self, arrays: Sequence[np.ndarray], rows: int, key: Key, level: int) -> None:
        self.arrays = arrays
        self.rows, self.key, self.level = rows, key, level
        self.order = 0
        self.queued = self.started = self.gathered = self.finished = 0.0
        self.batch_rows = 0
        self.timer: asyncio.TimerHandle | None = None
        self.future: asyncio.Future[list[np.ndarray]]
        self.done: Done | None = None


class Batcher:
    """One model's queue and its instances. Everything but the runs is on the event loop.

    A batch leaves when an instance is idle and the queue has a request, unless the model's delay
    lets the oldest wait for more. Only requests of the same shape share a batch; the most urgent
    and oldest one decides which shape that is.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        inputs: int,
        queueing: Queueing,
        *,
        turns: Turns | None = None,
        statistics: Statistics | None = None,
        name: str = "model",
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._q = queueing
        self._inputs = inputs
        self._name = name
        self._runs: dict[Instance, Run] = {}
        self._idle: list[Instance] = []
        self._running: dict[Batch, Instance] = {}
        self._hung: set[Batch] = set()
        self._levels: dict[int, OrderedDict[Item, None]] = {}
        self._order: list[int] = []  # levels that have a queue, the most urgent first
        self._waiting = 0
        self._scheduled = False
        self._wake: asyncio.TimerHandle | None = None
        self._turns = turns or Turns(0)
        self._statistics = statistics or Statistics()
        self._empty: asyncio.Future[None] | None = None
        self._closed = False
        self._costs = Costs(queueing.inline)
        for run in runs:
            self._add_instance(run)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._waiting

    @property
    def running(self) -> int:
        """Batches that run, the hung ones left out."""
        return len(self._running)

    @property
    def alive(self) -> bool:
        """Whether an instance is left that can run."""
        return bool(self._runs) and not self._closed

    def submit(
        self, arrays: Sequence[np.ndarray], rows: int, key: Key, priority: int, timeout: float
    ) -> Item:
        """Queue a request that has been checked; its future gets its outputs or a ServeError.

        Raises:
            ServeError: UNAVAILABLE, the queue is full, closed, or no instance is left;
                INVALID, no such priority.
        """
        if not self.alive:
            raise ServeError(Status.UNAVAILABLE, f"model '{self._name}' has no instance that runs")
        if self._waiting >= self._q.size:
            raise ServeError(
                Status.UNAVAILABLE,
                f"Exceeds maximum queue size: {self._q.size} requests wait for '{self._name}'",
            )
        item = Item(arrays, rows, key, self._level(priority))
        item.future = self._loop.create_future()
        item.queued = time.perf_counter()
        self._enqueue(item)
        if seconds := self._allowed(timeout):
            item.timer = self._loop.call_later(seconds, self._late, item)
        self._schedule()
        return item

    def cancel(self, item: Item) -> None:
        """Nobody waits for it any more: if it is queued it leaves, and its memory goes."""
        if self._remove(item):
            self._settle(item)
            self._check_empty()
        item.future.cancel()
        item.done = None

    async def drained(self) -> None:
        """Wait until nothing is queued or running; hung batches are not waited for."""
        while self._waiting or self._running:
            if self._empty is None:
                self._empty = self._loop.create_future()
            await asyncio.shield(self._empty)

    def close(self) -> list[Instance]:
        """Refuse what is queued, and tell the threads to end; returns them."""
        self._closed = True
        for level in list(self._order):
            for item in list(self._levels[level]):
                self._remove(item)
                self._fail(item, ServeError(Status.UNAVAILABLE, f"model '{self._name}' was closed"))
        if self._wake:
            self._wake.cancel()
        self._turns.forget(self)
        instances = list(self._runs)
        for instance in instances:
            instance.stop()
        self._check_empty()
        return instances

    # The queue

    def _level(self, priority: int) -> int:
        if not self._q.levels:
            return priority if priority > 0 else self._q.default_priority or 1 << 31
        level = priority or self._q.default_priority or self._q.levels
        if not 1 <= level <= self._q.levels:
            raise ServeError(
                Status.INVALID, f"priority is {priority}, '{self._name}' has 1 to {self._q.levels}"
            )
        return level

    def _allowed(self, timeout: float) -> float:
        """A request can only shorten what the model allows."""
        if not timeout or not self._q.override:
            return self._q.timeout
        return min(timeout, self._q.timeout) if self._q.timeout else timeout

    def _enqueue(self, item: Item) -> None:
        level = self._levels.get(item.level)
        if level is None:
            level = self._levels[item.level] = OrderedDict()
            insort(self._order, item.level)
        level[item] = None
        self._waiting += 1

    def _remove(self, item: Item) -> bool:
        level = self._levels.get(item.level)
        if level is None or item not in level:
            return False
        del level[item]
        if not level:
            del self._levels[item.level]
            self._order.remove(item.level)
        self._waiting -= 1
        return True

    def _late(self, item: Item) -> None:
        item.timer = None
        if not self._remove(item):
            return
        if self._q.late == "DELAY":
            item.level = 1 << 62  # behind everything that is in time
            self._enqueue(item)
            return
        self._fail(item, ServeError(Status.UNAVAILABLE, "Request timeout expired"))
        self._check_empty()

    # Dispatch

    def _schedule(self) -> None:
        """Once in this turn of the loop, so that requests that came together go together."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._scheduled = False
        while self._idle and self._waiting and not self._closed:
            head, group, rows = self._candidates()
            if (wait := self._wait(head, rows)) > 0:
                self._wake_in(wait)
                return
            if not self._turns.take(self, self._schedule):
                return
            if self._start(self._choose(group, rows)):
                if self._waiting:  # the loop gets to its sockets between two of these
                    self._schedule()
                return

    def _candidates(self) -> tuple[Item, list[Item], int]:
        """The most urgent request, those that can go with it, and their rows."""
        head = next(iter(self._levels[self._order[0]]))
        limit = self._q.max_batch
        if limit <= 1:
            return head, [head], head.rows
        group: list[Item] = []
        rows = 0
        for level in self._order:
            for item in self._levels[level]:
                if item.key != head.key:
                    continue
                if rows + item.rows > limit:
                    return head, group, rows
                group.append(item)
                rows += item.rows
                if rows == limit:
                    return head, group, rows
        return head, group, rows

    def _wait(self, head: Item, rows: int) -> float:
        """Seconds that the batch may still grow."""
        delay = self._q.delay
        if not delay or rows >= (self._q.preferred[-1] if self._q.preferred else self._q.max_batch):
            return 0.0
        if rows in self._q.preferred:
            return 0.0
        # A timer may fire a little early; what is left then is not worth another.
        left = head.queued + delay - time.perf_counter()
        return left if left > 1e-4 else 0.0

    def _wake_in(self, seconds: float) -> None:
        if self._wake:
            self._wake.cancel()
        self._wake = self._loop.call_later(seconds, self._dispatch)

    def _choose(self, group: list[Item], rows: int) -> list[Item]:
        """Of those that can go, as many as make the largest preferred batch."""
        sizes = [size for size in self._q.preferred if size <= rows]
        if not sizes or rows in self._q.preferred:
            return group
        chosen, total = [], 0
        for item in group:
            if total + item.rows > sizes[-1]:
                break
            chosen.append(item)
            total += item.rows
        return chosen or group[:1]

    def _start(self, items: list[Item]) -> bool:
        """Have a batch run; True if it has already, here."""
        rows = 0
        for item in items:
            self._remove(item)
            rows += item.rows
            if item.timer:
                item.timer.cancel()
                item.timer = None
        instance = self._idle.pop()
        batch = Batch([item.arrays for item in items], items, rows)
        self._running[batch] = instance
        if self._costs.quick(rows):
            instance.execute(batch)
            self._settle_batch(instance, batch, here=True)
            return True
        if self._q.run_timeout:
            batch.timer = self._loop.call_later(self._q.run_timeout, self._hang, batch)
        instance.submit(batch)
        return False

    def _finished(self, instance: Instance, batch: Batch) -> None:
        """A thread is done with a batch."""
        if batch.timer:
            batch.timer.cancel()
        if batch in self._hung:  # it came back after all; its thread has been replaced
            self._hung.discard(batch)
            return
        self._settle_batch(instance, batch, here=False)
        if self._waiting:
            self._dispatch()

    def _settle_batch(self, instance: Instance, batch: Batch, *, here: bool) -> None:
        del self._running[batch]
        self._idle.append(instance)
        self._turns.give(self, batch.finished - batch.started)
        self._costs.add(batch.count, batch.finished - batch.started, here=here)
        self._statistics.ran(batch, batch.count)
        for item, result in zip(batch.items, batch.results, strict=True):
            item.started, item.gathered = batch.started, batch.gathered
            item.finished, item.batch_rows = batch.finished, batch.count
            item.arrays = ()
            if isinstance(result, Exception):
                self._fail(item, result)
            elif not item.future.done():
                item.future.set_result(result)
                self._tell(item)
        self._check_empty()

    def _hang(self, batch: Batch) -> None:
        """Answer for a batch that does not come back, and give its model another thread."""
        instance = self._running.pop(batch)
        self._hung.add(batch)
        run = self._runs.pop(instance)
        instance.stop()
        self._turns.give(self, self._q.run_timeout)
        for item in batch.items:
            what = f"the model '{self._name}' did not answer within {self._q.run_timeout:g} s"
            self._fail(item, ServeError(Status.DEADLINE, what))
        if len(self._hung) < _LEAKED and not self._closed:
            self._add_instance(run)
        elif not self._runs:
            self.close()
        self._check_empty()
        self._schedule()

    def _add_instance(self, run: Run) -> None:
        instance = Instance(run, self._inputs, self._finished, f"redline-{self._name}")
        self._runs[instance] = run
        self._idle.append(instance)

    def _fail(self, item: Item, error: Exception) -> None:
        self._settle(item)
        if not item.future.done():
            item.future.set_exception(error)
            self._tell(item)

    @staticmethod
    def _tell(item: Item) -> None:
        done, item.done = item.done, None  # or the two would keep each other until a collection
        if done is not None:
            done(item)

    @staticmethod
    def _settle(item: Item) -> None:
        item.arrays = ()
        if item.timer:
            item.timer.cancel()
            item.timer = None

    def _check_empty(self) -> None:
        if self._empty is not None and not self._waiting and not self._running:
            self._empty.set_result(None)
            self._empty = None
