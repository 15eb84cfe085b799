"""Runs a server: one process, one event loop, the HTTP front and others, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import uvicorn

from redline.errors import InputError
from redline.serve.direct import Direct, direct_protocol
from redline.serve.limits import LimitedProtocol
from redline.serve.operator import Operator, Options
from redline.serve.plane import Plane
from redline.serve.repository import Repository
from redline.serve.rest import Rest
from redline.serve.routes import Gate
from redline.serve.settings import Settings
from redline.serve.workers import Channel

_log = logging.getLogger("redline.serve")
_BACKLOG = 2048


class Front(Protocol):
    """Another way in, on the same event loop."""

    async def start(self) -> None:
        """Listen; raises a RedlineError where it cannot."""
        ...

    async def stop(self, grace: float) -> None:
        """Take nothing new and finish what runs, within so many seconds."""
        ...


# Adds routes and middleware to the HTTP front, hooks to the plane, or fronts of its own.
Extension = Callable[[Plane, Rest, Settings], Sequence[Front]]


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handlers: ours drain first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """A server that is started and stopped from Python.

    Attributes:
        plane, rest: what it is made of.
        operator: keys, metrics, logs and the page; None where the server was given no Options,
            and then everybody who reaches it may do everything.
        http_port: where it listens, once started.

    Example:
        >>> server = Server(Settings(models=Path("models")))  # doctest: +SKIP
        >>> await server.start()  # doctest: +SKIP
        >>> await server.stop()  # doctest: +SKIP
    """

    def __init__(
        self,
        settings: Settings,
        extensions: Sequence[Extension] = (),
        operating: Options | None = None,
        worker: tuple[int, int] | None = None,
    ) -> None:
        self.settings = settings
        self.plane = Plane(Repository(settings), settings)
        self.rest = Rest(self.plane, settings)
        self.operator: Operator | None = None
        if operating is not None:
            self.operator = Operator(
                self.plane, operating, host=settings.host, allow_remote=settings.allow_remote
            )
            self.plane.hooks += self.operator.hooks
            self.plane.cache = self.operator.cache
            for extend in extensions:
                guard = getattr(extend, "guard", None)  # a way in of its own asks for the same keys
                if guard is not None:
                    guard(self.operator)
        self._worker = worker
        self._channel: Channel | None = None
        self.http_port = settings.http_port
        self.uvicorn_options: dict[str, object] = {}
        self._extensions = extensions
        self._fronts: list[Front] = []
        self._http: _Uvicorn | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen, then load the models: health/live answers while they load, ready is false.

        One of several workers loads first and listens then.

        Raises:
            InputError: the address cannot be had.
            ServeError: a model cannot be loaded.
        """
        for extend in self._extensions:
            self._fronts += extend(self.plane, self.rest, self.settings)
        listeners = self._listeners()
        self.http_port = listeners[0].getsockname()[1]
        options: dict[str, object] = {
            "loop": "none",
            "lifespan": "off",
            "ws": "none",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "date_header": False,
            "proxy_headers": False,
            "http": LimitedProtocol,
            "timeout_graceful_shutdown": max(1, round(self.settings.grace)),
        }
        app: Any = self.rest
        admit = None
        if self.operator is not None:
            app = self.operator.app(self.rest)
            admit = partial(app.admit, Gate.DATA)
            options |= self.operator.uvicorn()
        if self.operator is None or self.operator.tracer is None:  # a trace has a span of all of it
            options["http"] = direct_protocol(Direct(self.rest, admit))
        config = uvicorn.Config(app, **(options | self.uvicorn_options))  # type: ignore[arg-type]
        self._http = _Uvicorn(config)
        try:
            if self._worker is not None:  # its port is shared: who cannot answer must not accept
                await self.plane.start()
            self._task = asyncio.create_task(self._http.serve(listeners))
            for front in self._fronts:
                await front.start()
            if self._worker is None:
                await self.plane.start()
            if self._worker is not None and self.operator is not None:
                self._channel = Channel(self._worker[1], self.operator.metrics.text, _end_self)
                app.scrape = self._channel.scrape
                await self._channel.start()
        except BaseException:
            await self.stop(1.0)
            raise

    def _listeners(self) -> list[socket.socket]:
        if self._worker is not None:
            return [socket.socket(fileno=self._worker[0])]
        found = [listen(self.settings.host, self.settings.http_port)]
        if self.operator is not None and self.operator.options.admin_port:
            found.append(listen("127.0.0.1", self.operator.options.admin_port))
        return found

    async def stop(self, grace: float | None = None) -> None:
        """Not ready at once; answer what was accepted; then close everything."""
        grace = self.settings.grace if grace is None else grace
        end = time.monotonic() + grace
        self.plane.begin_drain()
        if self._http is not None:
            self._http.should_exit = True
        fronts = [front.stop(grace) for front in self._fronts]
        if self._task is not None:
            # It has its own time limit, after which it cancels; a little more for its tick.
            fronts.append(asyncio.wait_for(self._task, grace + 2.0))
        for result in await asyncio.gather(*fronts, return_exceptions=True):
            if isinstance(result, BaseException):
                _log.warning("a front did not end in time: %s", type(result).__name__)
        await self.plane.drain(max(0.1, end - time.monotonic()))
        if self._channel is not None:
            await self._channel.close()
        if self.operator is not None:
            await asyncio.to_thread(self.operator.close)

    async def run(self, started: Callable[[Server], None]) -> None:
        """Start, call `started`, serve until SIGTERM or SIGINT, and end in order.

        A second signal ends the process at once.
        """
        loop = asyncio.get_running_loop()
        ending = asyncio.Event()

        def on_signal(number: int) -> None:
            if ending.is_set():
                os._exit(128 + number)
            _log.warning("%s: ending, what was accepted is answered", signal.Signals(number).name)
            ending.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        begin = asyncio.create_task(self.start())
        end = asyncio.create_task(ending.wait())
        await asyncio.wait({begin, end}, return_when=asyncio.FIRST_COMPLETED)
        if begin.done():
            begin.result()
            gc.collect()
            gc.freeze()  # what is loaded stays: no collection looks at it again
            started(self)
            assert self._task is not None
            await asyncio.wait({end, self._task}, return_when=asyncio.FIRST_COMPLETED)
        else:
            begin.cancel()
            await asyncio.gather(begin, return_exceptions=True)
        end.cancel()
        await self.stop()


def _end_self() -> None:
    """The supervisor is gone: drain as if it had said so."""
    os.kill(os.getpid(), signal.SIGTERM)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host.strip("[]"), port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise InputError(
            f"cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}",
            hint="choose another port with --http-port, or 0 for any that is free",
        ) from error
    listener.setblocking(False)
    return listener


def run(
    settings: Settings,
    started: Callable[[Server], None],
    extensions: Sequence[Extension] = (),
    operating: Options | None = None,
    worker: tuple[int, int] | None = None,
) -> None:
    """Serve until a signal; blocks.

    Args:
        worker: file descriptors of the socket and the channel that a supervisor gave.
    """
    import uvloop

    async def main() -> None:
        server = Server(settings, extensions, operating or Options(), worker)
        assert server.operator is not None
        server.operator.start_logs()
        await server.run(started)

    uvloop.run(main())
    # Threads of engines that hang must not keep the process.
    logging.shutdown()
