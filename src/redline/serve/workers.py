"""Several server processes behind one port: started, watched, restarted, drained.

Every worker listens on a socket of its own with SO_REUSEPORT, which the supervisor makes and keeps
open: the kernel deals out connections, no proxy copies a byte, and connections that wait on the
socket of a worker that died are taken by the next one. A worker and the supervisor talk over a
socket pair, in lines of JSON; nothing is pickled and nothing else listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from redline.errors import RunError
from redline.serve import exposition

_LOG = logging.getLogger("redline.serve")
_LINE = 16 << 20  # bytes of one message: the metrics of many models
_SCRAPE = 2.0  # seconds that a worker has for its metrics
_PATIENCE = 5  # starts in a row that fail before the server gives up
Command = Callable[[int, int], Sequence[str]]


class _Message(msgspec.Struct, omit_defaults=True):
    """`kind`: ready, scrape (give me everybody's), text (give me yours), answer."""

    kind: str
    id: int = 0
    text: str = ""


def listeners(host: str, port: int, count: int, *, bound: bool = False) -> list[socket.socket]:
    """Sockets that share one port, one for each worker; a port of 0 takes any that is free.

    Args:
        bound: leave it to the workers to listen, once they are ready; until then the kernel
            gives such a socket no connection.

    Raises:
        OSError: the port is taken.
    """
    found: list[socket.socket] = []
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        for _ in range(count):
            one = socket.socket(family, socket.SOCK_STREAM)
            found.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind((host, port))
            port = one.getsockname()[1]
        for one in found if not bound else ():
            one.listen(2048)
    except OSError:
        for one in found:
            one.close()
        raise
    return found


class Channel:
    """A worker's end of its line to the supervisor.

    Args:
        fd: the inherited end of the pair.
        text: gives this worker's metrics.
        orphaned: called when the supervisor is gone; the worker should drain and end.
    """

    def __init__(self, fd: int, text: Callable[[], str], orphaned: Callable[[], None]) -> None:
        self._fd = fd
        self._text = text
        self._orphaned = orphaned
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._ids = itertools.count(1)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to listen to the supervisor, and tell it that this worker serves."""
        pair = socket.socket(fileno=self._fd)
        reader, self._writer = await asyncio.open_unix_connection(sock=pair, limit=_LINE)
        self._task = asyncio.create_task(self._read(reader))
        await _send(self._writer, _Message("ready"))

    async def scrape(self) -> str:
        """The metrics of all workers as one text."""
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await _send(self._writer, _Message("scrape", number))
            return await asyncio.wait_for(answer, 2 * _SCRAPE)
        except (TimeoutError, OSError):
            return self._text()
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while message := await _receive(reader):
            if message.kind == "text":
                await _send(self._writer, _Message("answer", message.id, self._text()))
            elif (waiting := self._waiting.get(message.id)) and not waiting.done():
                waiting.set_result(message.text)
        self._orphaned()


async def _send(writer: asyncio.StreamWriter, message: _Message) -> None:
    writer.write(msgspec.json.encode(message) + b"\n")
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> _Message | None:
    try:
        line = await reader.readline()
    except (OSError, ValueError):
        return None
    return msgspec.json.decode(line, type=_Message) if line.endswith(b"\n") else None


@dataclass
class _Worker:
    """One place for a process: its socket outlives the processes that use it."""

    number: int
    listener: socket.socket
    process: asyncio.subprocess.Process | None = None
    writer: asyncio.StreamWriter | None = None
    started: float = 0.0
    ready: bool = False


class Supervisor:
    """Keeps as many workers running as there are sockets, until it is told to stop.

    Args:
        command: (fd of the socket, fd of the channel) -> the worker's command line.
        sockets: see `listeners`.
        grace: seconds that a worker has to drain before it is killed.
        cwd: the folder that workers start in; the supervisor's own by default.

    Example:
        >>> supervisor = Supervisor(command, listeners("127.0.0.1", 8000, 2), grace=30)
        >>> asyncio.run(supervisor.run())
    """

    def __init__(
        self,
        command: Command,
        sockets: Sequence[socket.socket],
        *,
        grace: float = 30.0,
        cwd: str | None = None,
    ) -> None:
        self.command = command
        self.grace = grace
        self.cwd = cwd
        self.restarts = 0
        self.workers = [_Worker(number, one) for number, one in enumerate(sockets)]
        self._stop = asyncio.Event()
        self._answers: dict[tuple[int, int], asyncio.Future[str]] = {}
        self._ids = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a second one ends the workers at once.

        Raises:
            RunError: a worker ended several times in a row before it was ready.
        """
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self.stop)
        try:
            await self.keep()
        finally:
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)

    async def keep(self) -> None:
        """Like run(), without signals: until stop() is called. For a loop of any thread.

        Raises:
            RunError: a worker ended several times in a row before it was ready.
        """
        keepers = [asyncio.create_task(self._keep(worker)) for worker in self.workers]
        try:
            await asyncio.gather(*keepers)
        finally:
            self.stop()
            self.stop()
            await asyncio.gather(*keepers, return_exceptions=True)

    @property
    def ready(self) -> bool:
        """Whether every worker serves."""
        return all(worker.ready and worker.writer is not None for worker in self.workers)

    def stop(self) -> None:
        """Drain the workers; the second call kills them."""
        name = signal.SIGKILL if self._stop.is_set() else signal.SIGTERM
        self._stop.set()
        for worker in self.workers:
            worker.listener.close()  # others on the port get the connections from now on
            self._signal(worker, name)

    async def _keep(self, worker: _Worker) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                code = await self._run(worker)
            finally:
                self._signal(worker, signal.SIGKILL)
            if self._stop.is_set():
                return
            self.restarts += 1
            failures = 0 if worker.ready else failures + 1
            _LOG.error("worker %d ended with code %s and is started again", worker.number, code)
            if failures >= _PATIENCE:
                raise RunError(
                    f"worker {worker.number} ended {failures} times before it was ready "
                    f"(code {code})",
                    hint="start the server with --workers 1 to see why",
                )
            pause = min(5.0, 0.1 * 2**failures) if failures else 0.0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), pause)

    async def _run(self, worker: _Worker) -> int:
        ours, theirs = socket.socketpair()
        fds = (worker.listener.fileno(), theirs.fileno())
        worker.ready, worker.started = False, time.monotonic()
        try:
            worker.process = await asyncio.create_subprocess_exec(
                *self.command(*fds), pass_fds=fds, start_new_session=True, cwd=self.cwd
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        reader, worker.writer = await asyncio.open_unix_connection(sock=ours, limit=_LINE)
        talk = asyncio.create_task(self._talk(worker, reader))
        try:
            if self._stop.is_set():
                self._signal(worker, signal.SIGTERM)
            return await self._end(worker.process)
        finally:
            talk.cancel()
            worker.writer.close()
            worker.writer = None

    async def _end(self, process: asyncio.subprocess.Process) -> int:
        """Its code; once the server stops, no later than the grace allows."""
        ended = asyncio.create_task(process.wait())
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await asyncio.wait([ended], timeout=self.grace + 2.0)
            if not ended.done():
                _LOG.error("worker did not drain within %g s and is killed", self.grace)
                os.killpg(process.pid, signal.SIGKILL)
            return await ended
        finally:
            stopped.cancel()
            ended.cancel()

    def _signal(self, worker: _Worker, name: signal.Signals) -> None:
        process = worker.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(name)

    async def _talk(self, worker: _Worker, reader: asyncio.StreamReader) -> None:
        while message := await _receive(reader):
            if message.kind == "ready":
                worker.ready = True
            elif message.kind == "scrape":
                task = asyncio.create_task(self._scrape(worker, message.id))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                waiting = self._answers.get((worker.number, message.id))
                if waiting is not None and not waiting.done():
                    waiting.set_result(message.text)

    async def text(self) -> str:
        """The metrics of all workers as one text."""
        texts = await asyncio.gather(*(self._text(worker) for worker in self.workers))
        own = exposition.Family("redline_worker_restarts", "counter", "Workers started again.")
        own.add(self.restarts)
        alive = exposition.Family("redline_workers", "gauge", "Workers that serve.")
        alive.add(sum(worker.ready and worker.writer is not None for worker in self.workers))
        return exposition.merge([*filter(None, texts), exposition.text([own, alive])])

    async def _scrape(self, asker: _Worker, number: int) -> None:
        merged = await self.text()
        if asker.writer is not None:
            with contextlib.suppress(OSError):
                await _send(asker.writer, _Message("answer", number, merged))

    async def _text(self, worker: _Worker) -> str:
        """A worker's metrics; "" for one that is gone or does not answer in time."""
        if worker.writer is None or not worker.ready:
            return ""
        key = (worker.number, next(self._ids))
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._answers[key] = answer
        ask: Awaitable[None] = _send(worker.writer, _Message("text", key[1]))
        try:
            await ask
            return await asyncio.wait_for(answer, _SCRAPE)
        except (TimeoutError, OSError):
            return ""
        finally:
            self._answers.pop(key, None)
