"""`--workers N`: the same command in several processes, by the supervisor."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable

from redline.errors import InputError
from redline.serve.operator import Operator, Options
from redline.serve.plane import Plane
from redline.serve.repository import Repository
from redline.serve.settings import Settings
from redline.serve.workers import Supervisor, listeners


def supervise(settings: Settings, options: Options, count: int, say: Callable[[str], None]) -> None:
    """Serve with so many processes until a signal; blocks.

    Raises:
        InputError: options that would reach one worker only, or cannot be used at all.
        RunError: the workers do not start.
    """
    check_many(settings, options)
    sockets = _sockets(settings.host, settings.http_port, count)
    port = sockets[0].getsockname()[1]
    # Never listened on: it keeps the port that the gRPC fronts of all workers share.
    rpc = _sockets(settings.host, settings.grpc_port, 1, bound=True)[0]
    rpc_port = rpc.getsockname()[1]

    def command(listener: int, channel: int) -> list[str]:
        own = [sys.executable, "-m", "redline", *sys.argv[1:]]
        return [*own, "--grpc-port", str(rpc_port), "--worker", f"{listener},{channel}"]

    async def run() -> None:
        supervisor = Supervisor(command, sockets, grace=settings.grace)
        say(f"{count} workers on port {port}, gRPC on port {rpc_port}")
        await supervisor.run()

    with rpc:
        asyncio.run(run())


def _sockets(host: str, port: int, count: int, *, bound: bool = False) -> list[socket.socket]:
    try:
        return listeners(host, port, count, bound=bound)
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}") from None


def check_many(settings: Settings, options: Options) -> None:
    """Whether several processes can serve so.

    Raises:
        InputError: options that would reach one worker only, or cannot be used at all.
    """
    if settings.mode == "explicit" or options.allow_control or options.admin_key_file:
        raise InputError(
            "with several workers, what the control plane changes would reach one of them",
            hint="serve with --mode poll, which all workers follow, or with --workers 1",
        )
    # Reads keys and certificates once here: what is wrong with them is one error, not one a worker.
    Operator(
        Plane(Repository(settings), settings), options,
        host=settings.host, allow_remote=settings.allow_remote,
    ).start_logs()  # fmt: skip


def descriptors(text: str) -> tuple[int, int] | None:
    """What the supervisor told its worker.

    Example:
        >>> descriptors("5,6"), descriptors("")
        ((5, 6), None)
    """
    if not text:
        return None
    listener, _, channel = text.partition(",")
    if not (listener.isdecimal() and channel.isdecimal()):
        raise InputError("--worker is for the supervisor's own use")
    return int(listener), int(channel)
