"""A data plane without models, and a small ASGI application and server around it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn

from redline.serve.limits import Limits, limited
from redline.serve.ops import App, answer


@dataclass
class Marks:
    """What the data plane measures of a request."""

    arrived: float = 0.0
    queued: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    answered: float = 0.0
    batch_size: int = 1


class QuietPlane:
    """Answers what operators ask; `rows` are its statistics."""

    def __init__(self, rows: list[dict[str, Any]] | None = None) -> None:
        self.rows = rows or []
        self.is_ready = True

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return self.is_ready

    def server_metadata(self) -> dict[str, Any]:
        return {"name": "redline", "version": "0", "extensions": []}

    def index(self, ready_only: bool = False) -> list[dict[str, str]]:
        return [
            {"name": row["name"], "version": row["version"], "state": "READY", "reason": ""}
            for row in self.rows
        ]

    def waiting(self) -> dict[tuple[str, str], int]:
        return {(row["name"], row["version"]): 3 for row in self.rows}

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        return {"model_stats": self.rows}


def statistics(name: str, version: str = "1", success: int = 0) -> dict[str, Any]:
    """One row as the statistics extension writes it."""
    phases = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    stats = {phase: {"count": success, "ns": success * 5_000_000} for phase in phases}
    return {
        "name": name, "version": version, "inference_count": 2 * success,
        "execution_count": success, "inference_stats": stats,
    }  # fmt: skip


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """The length of the body and the path, as JSON; tells lifespan that it is up."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    if scope["path"].endswith("/generate"):  # a large answer, for readers that are slow
        await answer(send, 200, bytes(16 << 20), b"application/octet-stream")
    else:
        await answer(send, 200, b'{"size":%d}' % size)


@contextlib.contextmanager
def serving(app: App, limits: Limits | None = None, **options: Any) -> Iterator[int]:
    """Serve in a thread on loopback; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=limited(limits or Limits()), ws="none", loop="asyncio", log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1, **options,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()


def exchange(port: int, *pieces: bytes, timeout: float = 30.0, pause: float = 0.0) -> bytes:
    """Send pieces over one connection and read until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as peer:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                peer.sendall(piece)
                time.sleep(pause)
        read = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while block := peer.recv(65536):
                read += block
        return bytes(read)
