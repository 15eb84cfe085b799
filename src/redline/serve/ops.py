"""The outermost ASGI application: decides who may pass, then answers what operators ask.

Routes of the protocol are the inner application's; /metrics, the page, log and trace settings are
answered here. A request that is refused never reaches the inner application.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

import msgspec

from redline.serve import exposition, logs, tracing
from redline.serve.messages import ServeError, Status
from redline.serve.metrics import Metrics
from redline.serve.page import FILES, HEADERS, state
from redline.serve.routes import Gate, classify
from redline.serve.security import Access, check_browser, keys_in

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
_SETTINGS_BODY = 64 << 10
_classify = functools.lru_cache(4096)(classify)
_INFER = ("/infer", "/generate", "/generate_stream")


class Served(Protocol):
    """The part of the data plane that is asked here."""

    def live(self) -> bool: ...
    def ready(self) -> bool: ...
    def server_metadata(self) -> dict[str, Any]: ...
    def index(self, ready_only: bool = False) -> list[dict[str, str]]: ...
    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]: ...
    def waiting(self) -> dict[tuple[str, str], int]: ...


class Operations:
    """Wrap the protocol's application.

    Args:
        scrape: gives /metrics; with several workers it asks them all.
        loopback: the server is bound to loopback only; browsers must then call it by such a name.

    Example:
        >>> app = Operations(rest_app, plane, Access())
    """

    def __init__(
        self,
        app: App,
        plane: Served,
        access: Access,
        *,
        metrics: Metrics | None = None,
        log_settings: logs.Settings | None = None,
        trace_settings: tracing.Settings | None = None,
        tracer: tracing.Tracer | None = None,
        scrape: Callable[[], Awaitable[str]] | None = None,
        loopback: bool = True,
    ) -> None:
        self.app = app
        self.plane = plane
        self.access = access
        self.metrics = metrics or Metrics(plane)
        self.log_settings = log_settings or logs.Settings()
        self.trace_settings = trace_settings or tracing.Settings()
        self.tracer = tracer
        self.scrape = scrape
        self.loopback = loopback

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request, or the server's start and end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        try:
            gate = _classify(path)
            if gate is None:
                raise ServeError(Status.NOT_FOUND, "no such route")
            if gate is not Gate.OPEN:
                server = scope.get("server")
                self.admit(gate, scope["headers"], (server[1] or 0) if server else 0)
            if await self._own(path, scope, receive, send):
                return
        except ServeError as error:
            self.metrics.refuse(error.status)
            await refuse(send, error)
            return
        if self.tracer is not None and path.endswith(_INFER):
            await self._traced(self.tracer, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def admit(self, gate: Gate, headers: Sequence[tuple[bytes, bytes]], port: int) -> None:
        """Return when a request with these headers may go on.

        Raises:
            ServeError: why it may not.
        """
        check_browser(headers, loopback=self.loopback)
        self.access.check(gate, keys_in(headers), port)

    async def _own(
        self, path: str, scope: MutableMapping[str, Any], receive: Receive, send: Send
    ) -> bool:
        """Answer what is ours; False for the protocol's routes."""
        method = scope["method"]
        if path in FILES:
            _only(method, "GET", "HEAD")
            kind, body = FILES[path]
            await answer(send, 200, body, kind, HEADERS)
        elif path == "/page/state":
            _only(method, "GET")
            told = state(self.plane, self.metrics)
            await answer(send, 200, msgspec.json.encode(told), b"application/json", HEADERS)
        elif path == "/metrics":
            _only(method, "GET", "HEAD")
            text = await self.scrape() if self.scrape else self.metrics.text()
            await answer(send, 200, text.encode(), exposition.CONTENT_TYPE)
        elif path == "/v2/logging":
            _only(method, "GET", "POST")
            wanted = await _settings(receive) if method == "POST" else {}
            settings = self.log_settings
            told = settings.update(wanted) if wanted else settings.read()
            await answer(send, 200, msgspec.json.encode(told))
        elif path.endswith("/trace/setting"):
            _only(method, "GET", "POST")
            model = path.split("/")[3] if path.startswith("/v2/models/") else ""
            if model and not any(row.get("name") == model for row in self.plane.index()):
                raise ServeError(Status.NOT_FOUND, f"Request for unknown model: {model[:80]!r}")
            wanted = await _settings(receive) if method == "POST" else {}
            trace = self.trace_settings
            told = trace.update(wanted, model) if wanted else trace.read(model)
            await answer(send, 200, msgspec.json.encode(told))
        else:
            return False
        return True

    async def _traced(
        self,
        tracer: tracing.Tracer,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        start = time.perf_counter()
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        parent = next((v.decode("latin-1") for k, v in headers if k == b"traceparent"), "")
        own = tracer.sample(parent, scope["path"].split("/")[3])
        # The data plane traces whatever says that it is sampled, so what we did not choose must
        # not say so.
        kept = [(name, value) for name, value in headers if name != b"traceparent"]
        if own is None:
            await self.app({**scope, "headers": kept}, receive, send)
            return
        told = (b"traceparent", own.header().encode())
        status = 499

        async def send_traced(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), told]}
            await send(message)

        try:
            await self.app({**scope, "headers": [*kept, told]}, receive, send_traced)
        finally:
            tracer.server_span(own, parent, f"{scope['method']} infer", start, status)


def _only(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise ServeError(Status.METHOD, f"got {method}, expected {' or '.join(allowed)}")


async def _settings(receive: Receive) -> dict[str, Any]:
    """A small JSON object.

    Raises:
        ServeError: INVALID or TOO_LARGE.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ServeError(Status.CANCELLED, "the client left")
        body += message.get("body", b"")
        if len(body) > _SETTINGS_BODY:
            raise ServeError(Status.TOO_LARGE, f"settings are larger than {_SETTINGS_BODY} bytes")
        if not message.get("more_body"):
            break
    try:
        found: dict[str, Any] = msgspec.json.decode(bytes(body or b"{}"), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ServeError(
            Status.INVALID, f"settings are a JSON object: {str(error)[:200]}"
        ) from None
    return found


async def answer(
    send: Send,
    status: int,
    body: bytes,
    kind: bytes = b"application/json",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    """A whole response."""
    told = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, error: ServeError) -> None:
    """An error in the protocol's words: {"error": "..."}."""
    extra: tuple[tuple[bytes, bytes], ...] = ()
    if error.status is Status.UNAUTHENTICATED:
        extra = ((b"www-authenticate", b'Bearer realm="redline"'),)
    elif error.status is Status.UNAVAILABLE:
        extra = ((b"retry-after", b"1"),)
    body = msgspec.json.encode({"error": error.what})
    await answer(send, error.status.value[0], body, headers=extra)
