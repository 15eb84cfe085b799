"""The load tool of bench/serve.py: closed-loop clients, the same for every server.

Requests are bytes that were made before; answers are counted by their status and length and not
read, so that the tool takes as little of the two cores as a Python program can.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np

WARM = 0.7  # seconds that are not counted


@dataclass(frozen=True)
class Load:
    """What clients saw: answers a second, microseconds, and requests that failed."""

    rate: float
    p50: float
    p99: float
    failed: int

    def cell(self) -> str:
        text = f"{self.rate:.0f} ({micro(self.p50)}, {micro(self.p99)})"
        return f"{text}, {self.failed} failed" if self.failed else text


def micro(value: float) -> str:
    return f"{value / 1000:.3g} ms" if value >= 1000 else f"{value:.0f} µs"


class _Client(asyncio.Protocol):
    """One keep-alive connection of HTTP/1.1."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._answer: asyncio.Future[int] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def ask(self, request: bytes) -> asyncio.Future[int]:
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = bytes(self._data[:end]).lower()
        at = head.find(b"content-length:")
        if at < 0:
            if not self._data.endswith(b"0\r\n\r\n"):  # chunked: until its last piece
                return
        elif len(self._data) < end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0]):
            return
        self._data.clear()
        answer, self._answer = self._answer, None
        answer.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)


def http(path: str, body: bytes, headers: str = "content-type: application/json") -> bytes:
    """One request as it goes over the wire."""
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n{headers}"
    return head.encode() + b"\r\n\r\n" + body


async def run_http(port: int, request: bytes, clients: int, seconds: float) -> Load:
    """Closed-loop load over HTTP."""
    loop = asyncio.get_running_loop()

    async def client(record: Callable[[float, bool], bool]) -> None:
        _, protocol = await loop.create_connection(_Client, "127.0.0.1", port)
        going = True
        while going:
            start = time.perf_counter()
            if protocol.transport.is_closing():
                _, protocol = await loop.create_connection(_Client, "127.0.0.1", port)
            status = await protocol.ask(request)
            going = record(start, status == 200)
        protocol.transport.close()

    return await _run(client, clients, seconds)


async def run_grpc(port: int, request: bytes, clients: int, seconds: float) -> Load:
    """Closed-loop load of ModelInfer, one channel for all clients."""
    import grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

        async def client(record: Callable[[float, bool], bool]) -> None:
            going = True
            while going:
                start = time.perf_counter()
                try:
                    await call(request)
                    good = True
                except grpc.aio.AioRpcError:
                    good = False
                going = record(start, good)

        return await _run(client, clients, seconds)


async def _run(
    client: Callable[[Callable[[float, bool], bool]], Awaitable[None]], clients: int, seconds: float
) -> Load:
    begin = time.perf_counter() + WARM
    end = begin + seconds
    times: list[float] = []
    failed = 0

    def record(start: float, good: bool) -> bool:
        nonlocal failed
        now = time.perf_counter()
        if begin <= now < end:
            if good:
                times.append(now - start)
            else:
                failed += 1
        return now < end

    await asyncio.gather(*(client(record) for _ in range(clients)))
    p50, p99 = np.percentile(times, [50, 99]) * 1e6 if times else (float("nan"),) * 2
    return Load(len(times) / seconds, float(p50), float(p99), failed)
