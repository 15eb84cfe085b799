"""One thread that runs batches of one engine, and the buffers that batches are gathered in."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from redline.errors import RedlineError
from redline.serve.dtypes import BYTES
from redline.serve.messages import ServeError, Status
from redline.serve.names import scrub
from redline.serve.opening import Run

ALIGNMENT = 64
Rows = Sequence[Sequence[np.ndarray]]  # requests, each with its inputs in order
Result = list[np.ndarray] | Exception


class Slab:
    """Aligned memory for one input of a batch; it grows to the largest batch and is used again.

    Example:
        >>> slab = Slab()
        >>> slab.gather([np.ones((1, 2)), np.zeros((2, 2))]).shape
        (3, 2)
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)

    def gather(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The arrays below each other: the one copy on a request's way."""
        first = arrays[0]
        if first.dtype == BYTES:
            return np.concatenate(arrays)
        rows = sum(array.shape[0] for array in arrays)
        batch = self._take((rows, *first.shape[1:]), first.dtype)
        np.concatenate(arrays, out=batch)
        return batch

    def align(self, array: np.ndarray) -> np.ndarray:
        """The array itself where an engine may read it in place, else a copy in the slab."""
        flags = array.flags
        if array.dtype == BYTES or (flags.aligned and flags.c_contiguous):
            return array
        batch = self._take(array.shape, array.dtype)
        np.copyto(batch, array)
        return batch

    def holds(self, array: np.ndarray) -> bool:
        """Whether an array may lie in this memory."""
        return bool(self._memory.nbytes) and np.may_share_memory(self._memory, array)

    def _take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        size = dtype.itemsize
        for axis in shape:
            size *= axis
        if self._memory.nbytes < size:
            raw = np.empty(size + ALIGNMENT, np.uint8)
            start = -raw.ctypes.data % ALIGNMENT
            self._memory = raw[start : start + size]
        return self._memory[:size].view(dtype).reshape(shape)


class Batch:
    """What an instance gets to run, and what it wrote about it. Only one thread has it at a time.

    Attributes:
        rows: inputs of each request.
        items: the requests, which only the event loop touches; `count` is their rows.
        results: for each request its outputs, or why it has none.
        started, gathered, finished: time.perf_counter() in seconds.
    """

    __slots__ = ("count", "finished", "gathered", "items", "results", "rows", "started", "timer")

    def __init__(self, rows: Rows, items: Sequence[Any], count: int) -> None:
        self.rows = rows
        self.items = items
        self.count = count
        self.timer: asyncio.TimerHandle | None = None
        self.results: list[Result] = []
        self.started = self.gathered = self.finished = 0.0


Done = Callable[["Instance", Batch], None]


class Instance:
    """A thread with its own slabs, fed by the event loop and answering to it: one hop each way."""

    def __init__(self, run: Run, inputs: int, done: Done, name: str) -> None:
        self._run = run
        self._done = done
        self._slabs = [Slab() for _ in range(inputs)]
        self._jobs: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        """Have a batch run; `done` is called on the event loop afterwards."""
        self._jobs.put(batch)

    def stop(self) -> None:
        """Let the thread end after what it was given."""
        self._jobs.put(None)

    def join(self, seconds: float) -> bool:
        """Whether the thread has ended within that time."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (batch := self._jobs.get()) is not None:
            self.execute(batch)
            try:
                self._loop.call_soon_threadsafe(self._done, self, batch)
            except RuntimeError:  # the loop is closed, nobody waits
                return
            del batch  # the next may be long in coming; this one's memory goes now

    def execute(self, batch: Batch) -> None:
        """Run a batch here and now; only while the instance has nothing else to run."""
        batch.started = batch.gathered = time.perf_counter()
        try:
            batch.results = self._results(batch)
        except BaseException as error:  # whatever happens, there must be an answer
            batch.results = [internal(error)] * len(batch.rows)
        batch.finished = time.perf_counter()

    def _results(self, batch: Batch) -> list[Result]:
        rows = batch.rows
        if len(rows) == 1:
            arrays = [slab.align(a) for slab, a in zip(self._slabs, rows[0], strict=True)]
            batch.gathered = time.perf_counter()
            return [self._call(arrays)]
        columns = zip(*rows, strict=True)
        arrays = [slab.gather(column) for slab, column in zip(self._slabs, columns, strict=True)]
        batch.gathered = time.perf_counter()
        whole = self._call(arrays)
        if isinstance(whole, EngineError):
            # One request's values (an index out of a table) must not fail the others.
            return [self._alone(row) for row in rows]
        if isinstance(whole, Exception):
            return [whole] * len(rows)  # its process died or hung: not to be tried again
        return cut(whole, [row[0].shape[0] for row in rows])

    def _alone(self, row: Sequence[np.ndarray]) -> Result:
        return self._call([slab.align(array) for slab, array in zip(self._slabs, row, strict=True)])

    def _call(self, arrays: list[np.ndarray]) -> Result:
        try:
            outputs = self._run(arrays)
        except ServeError as error:
            return error
        except Exception as error:
            return internal(error)
        # An engine may hand its input through; the slab is written again by the next batch.
        return [out.copy() if self._in_slab(out) else out for out in outputs]

    def _in_slab(self, array: np.ndarray) -> bool:
        return any(slab.holds(array) for slab in self._slabs)


class EngineError(ServeError):
    """The engine refused a batch, as against being gone."""


def cut(outputs: Sequence[np.ndarray], counts: Sequence[int]) -> list[Result]:
    """Each request's rows of a batch's outputs, as views."""
    total = sum(counts)
    for output in outputs:
        if not output.ndim or output.shape[0] != total:
            error = ServeError(
                Status.INTERNAL,
                f"the engine answered {list(output.shape)} to a batch of {total} rows",
            )
            return [error] * len(counts)
    found: list[Result] = []
    at = 0
    for count in counts:
        found.append([output[at : at + count] for output in outputs])
        at += count
    return found


def internal(error: BaseException) -> EngineError:
    """An engine's failure as clients may see it: no path of this host."""
    what = error.what if isinstance(error, RedlineError) else type(error).__name__
    return EngineError(Status.INTERNAL, f"the engine failed: {scrub(what)}")
