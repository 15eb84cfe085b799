"""Reads and writes bodies: limits first, then memory; compression both ways."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from redline.serve.messages import ServeError, Status
from redline.serve.settings import Limits

Part = bytes | memoryview
Headers = list[tuple[bytes, bytes]]
JSON: Headers = [(b"content-type", b"application/json")]
_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_STEPS = np.zeros(256, np.int8)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1
_JOIN = 1 << 16  # bodies up to this are sent as one piece


@dataclass(slots=True)
class Answer:
    """What goes back: a status, the body in pieces, and headers beside content-length."""

    status: int
    parts: Sequence[Part] = ()
    headers: Headers = field(default_factory=list)


class Call:
    """One HTTP request: its method, path, headers, and a body that is read when asked for."""

    __slots__ = ("_receive", "arrived", "headers", "method", "path", "scope")

    def __init__(
        self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], arrived: float
    ) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: bytes = scope.get("raw_path") or scope["path"].encode("latin-1", "replace")
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.arrived = arrived
        self._receive = receive

    async def receive(self) -> Any:
        """The next event of this request from the server."""
        return await self._receive()

    async def body(self, limits: Limits) -> Part:
        """The whole body, decompressed.

        Raises:
            ServeError: TOO_LARGE, too many pieces, too slow, cut off, or wrongly compressed.
        """
        length = self.headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > limits.body):
            raise too_large(limits)
        message = await self._next(limits)
        data: Part = message.get("body", b"")
        if message.get("more_body"):
            data = await self._rest(data, limits)
        if len(data) > limits.body:
            raise too_large(limits)
        coding = self.headers.get(b"content-encoding", b"").strip().lower()
        return data if coding in (b"", b"identity") else decompress(data, coding, limits)

    async def _rest(self, first: Part, limits: Limits) -> Part:
        whole = bytearray(first)
        chunks = 1
        while True:
            message = await self._next(limits)
            whole += message.get("body", b"")
            chunks += 1
            if len(whole) > limits.body:
                raise too_large(limits)
            if chunks > limits.chunks:
                raise ServeError(Status.INVALID, f"the body has more than {limits.chunks} chunks")
            if not message.get("more_body"):
                return memoryview(whole)

    async def _next(self, limits: Limits) -> dict[str, Any]:
        try:
            async with asyncio.timeout(limits.read_seconds):
                message: dict[str, Any] = await self._receive()
        except TimeoutError:
            raise too_slow(limits) from None
        if message["type"] == "http.disconnect":
            raise ServeError(Status.CANCELLED, "the client has gone")
        return message


def too_large(limits: Limits) -> ServeError:
    """The error of a body over the limit."""
    return ServeError(Status.TOO_LARGE, f"the body has more than {limits.body} bytes")


def too_slow(limits: Limits) -> ServeError:
    """The error of a body that did not come."""
    return ServeError(Status.INVALID, f"the body was not there within {limits.read_seconds:g} s")


def decompress(data: Part, coding: bytes, limits: Limits) -> bytes:
    """A gzip or deflate body, of which no more than the limit is ever unpacked.

    Raises:
        ServeError: UNSUPPORTED coding, TOO_LARGE, or INVALID data.
    """
    if coding not in (b"gzip", b"deflate"):
        raise ServeError(Status.UNSUPPORTED, "content-encoding may be gzip or deflate")
    engine = zlib.decompressobj(31 if coding == b"gzip" else 15)
    try:
        plain = engine.decompress(data, limits.body + 1)
    except zlib.error as error:
        raise ServeError(Status.INVALID, f"the body is no valid {coding.decode()}") from error
    if len(plain) > limits.body:
        raise too_large(limits)
    if not engine.eof or engine.unused_data:
        raise ServeError(Status.INVALID, f"the body is no whole {coding.decode()} stream")
    return plain


def compress(answer: Answer, accepted: bytes) -> None:
    """Compress where the client asks for one coding and nothing else.

    A list of codings is what browsers and HTTP libraries send by themselves; compressing tensors
    for them would cost more than it saves.
    """
    coding = accepted.split(b";")[0].strip().lower()
    if coding not in (b"gzip", b"deflate") or b"," in accepted or not answer.parts:
        return
    engine = zlib.compressobj(1, wbits=31 if coding == b"gzip" else 15)
    pieces = [engine.compress(part) for part in answer.parts]
    answer.parts = [*pieces, engine.flush()]
    answer.headers = [*answer.headers, (b"content-encoding", coding)]


async def send_answer(send: Callable[[Any], Awaitable[None]], answer: Answer) -> None:
    """Send it; a large body goes in its pieces, without being joined."""
    size = sum(map(len, answer.parts))
    headers = [*answer.headers, (b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    if size <= _JOIN:
        await send({"type": "http.response.body", "body": b"".join(answer.parts)})
        return
    for part in answer.parts:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def told(value: Any, status: int = 200) -> Answer:
    """A JSON answer."""
    return Answer(status, [msgspec.json.encode(value)], JSON)


def told_error(error: ServeError) -> Answer:
    """{"error": what} with the status of the error; a full server says when to come back."""
    answer = told({"error": error.what}, error.status.value[0])
    if error.status is Status.UNAVAILABLE:
        answer.headers = [*JSON, (b"retry-after", b"1")]
    elif error.status in (Status.TOO_LARGE, Status.CANCELLED):
        answer.headers = [*JSON, (b"connection", b"close")]  # the rest of the body is not read
    return answer


def check_depth(data: Part, limits: Limits) -> None:
    """Refuse JSON with more brackets within brackets than the limit, before it is parsed.

    Raises:
        ServeError: INVALID.
    """
    raw = bytes(data)
    if raw.count(b"[") + raw.count(b"{") <= limits.json_depth:
        return
    bare = _TEXTS.sub(b"", raw)
    depth = 0
    for start in range(0, len(bare), 1 << 20):
        steps = _STEPS[np.frombuffer(bare[start : start + (1 << 20)], np.uint8)]
        levels = np.cumsum(steps, dtype=np.int32) + depth
        if int(levels.max()) > limits.json_depth:
            raise ServeError(Status.INVALID, f"JSON is nested deeper than {limits.json_depth}")
        depth = int(levels[-1])


def decode_json(data: Part, decoder: msgspec.json.Decoder[Any], limits: Limits) -> Any:
    """Typed JSON.

    Raises:
        ServeError: INVALID, with what msgspec says about it.
    """
    check_depth(data, limits)
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ServeError(Status.INVALID, f"failed to parse the request JSON: {error}") from error
