"""What one HTTP connection may cost, enforced while its bytes arrive and before they are kept.

uvicorn's httptools protocol has no limit on headers, chunks or slow peers of its own.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_END = b"\r\n\r\n"
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds.

    Attributes:
        head: request line and headers together.
        headers: how many headers.
        chunks: how many chunks a chunked body may have.
        head_seconds: from the first byte of a request to the end of its headers.
        idle_body_seconds: between two pieces of a body.
        write_seconds: how long a response may wait for a peer that does not read.
    """

    head: int = 32 << 10
    headers: int = 100
    chunks: int = 65_536
    head_seconds: float = 10.0
    idle_body_seconds: float = 30.0
    write_seconds: float = 60.0


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol that closes a connection which goes over a limit."""

    limits = Limits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head = self._headers = self._chunks = 0
        self._tail = b""
        self._in_body = self._refused = False
        self._slow: asyncio.TimerHandle | None = None
        self._write: asyncio.TimerHandle | None = None
        self._heard = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heard = self.loop.time()
        # One timer a connection that looks now and then: cheaper than one for each request.
        self._slow = self.loop.call_later(self._pause(), self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._slow, self._write):
            if timer is not None:
                timer.cancel()
        self._slow = self._write = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_body or self._head == 0:
            self._heard = self.loop.time()
        if not self._in_body:
            room = max(0, self.limits.head - self._head)
            self._head += len(data)
            if self._head > self.limits.head and _END not in self._tail + data[:room]:
                self.refuse(431, f"the headers are larger than {self.limits.head} bytes")
                return
            self._tail = (self._tail + data[-3:])[-3:]
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._headers = self._chunks = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers += 1
        if self._headers > self.limits.headers:
            self.refuse(431, f"got more than {self.limits.headers} headers")
        elif not self._refused:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_body, self._heard = True, self.loop.time()
        if not self._refused:
            self.begin()

    def begin(self) -> None:
        """The headers are there and within the limits: have the request answered."""
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > self.limits.chunks:
            self.refuse(400, f"the body came in more than {self.limits.chunks} chunks")

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._head, self._tail = False, 0, b""
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, msg)

    def refuse(self, status: int, what: str) -> None:
        """Answer in the protocol's JSON when no answer has begun, and close."""
        if self._refused:
            return
        self._refused = True
        cycle = self.cycle
        waiting = cycle is not None and not cycle.response_complete
        # An answer that is still owed on this connection is another request's: this error must not
        # be taken for it.
        may_answer = not waiting or (
            self._in_body and not self.pipeline and not cycle.response_started
        )
        if waiting:
            cycle.disconnected = True  # its handler hears of it as of a peer that left
            cycle.message_event.set()
        if may_answer:
            body = b'{"error":"%s"}' % what.encode("ascii", "replace")
            self.transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%s" % (status, _REASONS[status], len(body), body)
            )
        self.transport.close()
        self._arm_write()

    # Slow peers

    def _pause(self) -> float:
        return min(self.limits.head_seconds, self.limits.idle_body_seconds) / 2

    def _look(self) -> None:
        self._slow = None
        if self.transport.is_closing():
            return
        waited = self.loop.time() - self._heard
        paused = self.flow.read_paused  # then it is we who do not read
        if self._in_body:
            if not paused and waited > self.limits.idle_body_seconds:
                self.refuse(408, "the body took too long")
                return
        elif (self._head or self.cycle is None) and waited > self.limits.head_seconds:
            self.refuse(408, "the headers took too long")
            return
        self._slow = self.loop.call_later(self._pause(), self._look)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._arm_write()

    def resume_writing(self) -> None:
        if self._write is not None:
            self._write.cancel()
            self._write = None
        super().resume_writing()

    def _arm_write(self) -> None:
        if self._write is None:
            self._write = self.loop.call_later(self.limits.write_seconds, self._too_slow)

    def _too_slow(self) -> None:
        self._write = None
        self.transport.abort()


def limited(limits: Limits) -> type[LimitedProtocol]:
    """The protocol with these limits, for uvicorn.Config(http=...)."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})
