"""The short way of an inference over HTTP: from its bytes to the queue and back by plain calls.

What ASGI costs (a scope, a task, four events, two writes) is more than a small network does. A
request that needs nothing special is read, checked and queued as its last byte comes, and is
answered when its batch ends. Every other one, and whatever is refused before its body is read,
takes the usual way through the ASGI application: nothing is refused here that is not refused there.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from redline.serve.limits import LimitedProtocol
from redline.serve.messages import Response, ServeError, Status
from redline.serve.plane import Pending
from redline.serve.rest import Rest
from redline.serve.rest_body import Answer, told_error, too_slow
from redline.serve.rest_tensors import Wanted, compose, parse_request
from redline.serve.served import Served

_log = logging.getLogger("redline.serve")
_MOST = 4 << 20  # bytes of a body; larger ones gain nothing here
_JOIN = 1 << 16
_LONGEST = 300  # bytes of a path; names have 128
_URL = re.compile(rb"/v2/models/([A-Za-z0-9_][A-Za-z0-9._-]*)(?:/versions/([0-9]+))?/infer")
_SPECIAL = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"})
_STATUS = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
} | {499: b"HTTP/1.1 499 Client Closed Request\r\n"}

Headers = Sequence[tuple[bytes, bytes]]
Admit = Callable[[Headers, int], None]  # headers, local port; raises ServeError


@functools.lru_cache(1024)
def _target(url: bytes) -> tuple[str, str] | None:
    found = _URL.fullmatch(url)
    return (found[1].decode(), (found[2] or b"").decode()) if found else None


class Direct:
    """Decides who goes the short way.

    Args:
        admit: the check that the ASGI application makes before anything else; None for none.
    """

    def __init__(self, rest: Rest, admit: Admit | None = None) -> None:
        self.rest = rest
        self.admit = admit

    def take(self, protocol: DirectProtocol) -> _Exchange | None:
        """An exchange for the request whose headers have just been read, or None."""
        parser = protocol.parser
        target = _target(protocol.url) if len(protocol.url) <= _LONGEST else None
        if (
            target is None
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or protocol.busy()
            or self.rest.middleware
        ):
            return None
        given = dict(protocol.headers)
        length, coding = given.get(b"content-length", b""), given.get(b"accept-encoding", b"")
        most = min(_MOST, self.rest.limits.body)
        if not length.isdigit() or int(length) > most or _SPECIAL & set(given):
            return None
        if coding and coding.split(b";")[0].strip().lower() in (b"gzip", b"deflate"):
            return None
        try:
            if self.admit is not None:
                self.admit(protocol.headers, protocol.server[1] or 0 if protocol.server else 0)
            served = self.rest.plane.repository.find(*target)
        except ServeError:
            return None
        return _Exchange(self.rest, protocol, served, target, given)


class _Exchange:
    """One request and its answer, in the place of uvicorn's RequestResponseCycle.

    Its protocol fills `body`, says with `more_body` and `disconnected` what is, and then calls
    `message_event.set()`, which is this object's own `set`.
    """

    def __init__(
        self, rest: Rest, protocol: DirectProtocol, served: Served, target: tuple[str, str],
        given: dict[bytes, bytes],
    ) -> None:  # fmt: skip
        self.body = bytearray()
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive = protocol.parser.should_keep_alive()
        self.message_event = self
        self._arrived = time.perf_counter()
        self._rest, self._protocol, self._served = rest, protocol, served
        self._target, self._given = target, given
        self._length = int(given[b"content-length"])
        self._lease = rest.shared.lease()
        self._wanted: Wanted | None = None
        self._pending: Pending | None = None
        self._late: asyncio.TimerHandle | None = None
        self._begun = False

    def set(self) -> None:
        """Something has come: a piece of the body, its end, or the end of the connection."""
        if self.disconnected:
            self._forget()
        elif self._begun:
            return
        elif self.more_body:
            self._protocol.flow.resume_reading()
            if self._late is None and len(self.body) < self._length:
                seconds = self._rest.limits.read_seconds
                self._late = self._protocol.loop.call_later(seconds, self._too_slow)
        else:
            self._begun = True
            self._begin()

    def _begin(self) -> None:
        if self._late is not None:
            self._late.cancel()
        served, given = self._served, self._given
        try:
            request, self._wanted = parse_request(
                *self._target, memoryview(self.body), given.get(b"inference-header-content-length"),
                self._rest.limits, served.inputs[0] if len(served.inputs) == 1 else None,
                self._lease,
            )  # fmt: skip
        except Exception as error:
            self._tell(error)
            return
        request.arrived = self._arrived
        if b"traceparent" in given:
            request.traceparent = given[b"traceparent"].decode("latin-1")
        self._pending = self._rest.plane.begin(request, self._tell)

    def _tell(self, outcome: Response | Exception) -> None:
        """Write the answer."""
        try:
            if isinstance(outcome, Exception):
                raise outcome
            assert self._wanted is not None
            answer = compose(outcome, self._wanted, self._served.max_batch > 0, self._lease)
        except ServeError as error:
            answer = told_error(error)
        except Exception:
            _log.exception("a request failed")
            answer = told_error(ServeError(Status.INTERNAL, "internal error"))
        finally:
            self._lease.close()
        if not self.disconnected:
            self._write(answer)

    def _write(self, answer: Answer) -> None:
        size = sum(map(len, answer.parts))
        head = [_STATUS[answer.status]]
        for name, value in answer.headers:
            head += (name, b": ", value, b"\r\n")
            if name == b"connection":
                self.keep_alive = False
        if not self.keep_alive and (b"connection", b"close") not in answer.headers:
            head.append(b"connection: close\r\n")
        head.append(b"content-length: %d\r\n\r\n" % size)
        transport = self._protocol.transport
        if size <= _JOIN:
            transport.write(b"".join([*head, *answer.parts]))
        else:
            transport.writelines([b"".join(head), *answer.parts])
        self.response_complete = True
        if not self.keep_alive:
            transport.close()
        self._protocol.on_response_complete()

    def _too_slow(self) -> None:
        self._begun = True
        self._tell(too_slow(self._rest.limits))

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
        if self._pending is not None:
            self._rest.plane.cancel(self._pending)
        elif not self._begun:
            self._lease.close()


class DirectProtocol(LimitedProtocol):
    """HTTP/1.1 with the short way; `direct_protocol` makes one for a server."""

    direct: Direct

    def busy(self) -> bool:
        """Whether an answer is still owed on this connection, or its peer does not read."""
        cycle: Any = self.cycle
        return bool(
            (cycle is not None and not cycle.response_complete)
            or self.pipeline
            or self.flow.write_paused
            or self.limit_concurrency is not None
        )

    def begin(self) -> None:
        """Answer by the short way, or by the ASGI application."""
        exchange: Any = self.direct.take(self)
        if exchange is None:
            super().begin()
        else:
            self.cycle = exchange


def direct_protocol(direct: Direct) -> type[DirectProtocol]:
    """The protocol of one server, for uvicorn.Config(http=...)."""
    return type("DirectProtocol", (DirectProtocol,), {"direct": direct})
