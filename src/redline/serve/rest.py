"""The Open Inference Protocol over HTTP: a bare ASGI app that routes by a table."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from redline.serve.messages import ServeError, Status
from redline.serve.names import check_name
from redline.serve.plane import Plane
from redline.serve.rest_body import (
    Answer,
    Call,
    Part,
    compress,
    decode_json,
    send_answer,
    told,
    told_error,
)
from redline.serve.rest_tensors import compose, parse_request
from redline.serve.settings import Settings
from redline.serve.shared_memory import SharedMemory

_log = logging.getLogger("redline.serve")
_WATCH = 0.02  # seconds after which an unanswered client is looked at: has it gone?
Handler = Callable[[Call], Awaitable[Answer]]
Middleware = Callable[[Call], Answer | None]


class IndexBody(msgspec.Struct):
    """What repository/index may be told."""

    ready: bool = False


class LoadBody(msgspec.Struct):
    """What load and unload may be told."""

    parameters: dict[str, bool | int | float | str | None] = {}


_INDEX = msgspec.json.Decoder(IndexBody)
_LOAD = msgspec.json.Decoder(LoadBody)


class Rest:
    """An ASGI app.

    Attributes:
        middleware: called with each request before it is routed; an Answer ends it there.
        routes: (method, path) -> handler, for what is not part of the protocol.
        prefixes: path that begins so -> handler; it sees every method.
        shared: regions that requests may name; off until an extension turns them on.

    Example:
        >>> app = Rest(plane, settings)  # doctest: +SKIP
        >>> app.routes["GET", "/metrics"] = metrics  # doctest: +SKIP
    """

    def __init__(self, plane: Plane, settings: Settings) -> None:
        self.plane = plane
        self.settings = settings
        self.limits = settings.limits
        self.shared = SharedMemory()
        self.middleware: list[Middleware] = []
        self.routes: dict[tuple[str, str], Handler] = {}
        self.prefixes: dict[str, Handler] = {}

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer one request, whatever happens."""
        if scope["type"] != "http":
            return
        call = Call(scope, receive, time.perf_counter())
        try:
            answer = await self._answer(call)
            accepted = call.headers.get(b"accept-encoding")
            if accepted:
                compress(answer, accepted)
        except ServeError as error:
            answer = told_error(error)
        except Exception:
            _log.exception("a request failed")
            answer = told_error(ServeError(Status.INTERNAL, "internal error"))
        await send_answer(send, answer)

    async def _answer(self, call: Call) -> Answer:
        for look in self.middleware:
            early = look(call)
            if early is not None:
                return early
        words = call.path.split(b"/")
        if len(words) > 1 and words[1] == b"v2":
            found = await self._protocol(call, words[2:])
            if found is not None:
                return found
        return await self._other(call)

    async def _other(self, call: Call) -> Answer:
        path = call.path.decode("latin-1")
        handler = self.routes.get((call.method, path))
        if handler is None:
            handler = next((h for p, h in self.prefixes.items() if path.startswith(p)), None)
        if handler is not None:
            return await handler(call)
        allowed = [method for method, known in self.routes if known == path]
        if allowed:
            return _wrong_method(*allowed)
        return told({"error": "there is nothing at this path"}, 404)

    async def _protocol(self, call: Call, words: list[bytes]) -> Answer | None:
        """What begins with /v2; None for a path that the protocol does not have."""
        if len(words) >= 2 and words[0] == b"models":
            return await self._model(call, words[1:])
        if words and words[0] == b"repository":
            return await self._repository(call, words[1:])
        if not words:
            return _get(call) or told(self.plane.server_metadata())
        if words == [b"health", b"live"]:
            return _get(call) or _health("live", self.plane.live())
        if words == [b"health", b"ready"]:
            return _get(call) or _health("ready", self.plane.ready())
        return None

    async def _model(self, call: Call, words: list[bytes]) -> Answer | None:
        if words == [b"stats"]:
            return _get(call) or told(self.plane.statistics())
        name, version, rest = check_name(_text(words[0])), "", words[1:]
        if len(rest) >= 2 and rest[0] == b"versions":
            version, rest = _text(rest[1]), rest[2:]
            if not version:
                return None
        if rest == [b"infer"]:
            if call.method != "POST":
                return _wrong_method("POST")
            return await self._infer(call, name, version)
        action = rest[0] if len(rest) == 1 else b"" if not rest else None
        if action not in _ACTIONS:
            return None
        return _get(call) or _ACTIONS[action](self.plane, name, version)

    async def _infer(self, call: Call, name: str, version: str) -> Answer:
        served = self.plane.repository.find(name, version)  # before its body is read
        body = await call.body(self.limits)
        header = call.headers.get(b"inference-header-content-length")
        only = served.inputs[0] if len(served.inputs) == 1 else None
        with self.shared.lease() as lease:
            request, wanted = parse_request(name, version, body, header, self.limits, only, lease)
            request.arrived = call.arrived
            trace = call.headers.get(b"traceparent")
            if trace:
                request.traceparent = trace.decode("latin-1")
            del body
            response = await self._watched(call, self.plane.infer(request))
            return compose(response, wanted, served.max_batch > 0, lease)

    async def _watched(self, call: Call, work: Awaitable[Any]) -> Any:
        """Cancel the work when its client goes. Most answers are there before anyone looks."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        watcher: asyncio.Task[None] | None = None
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await call.receive())["type"] != "http.disconnect":
                pass
            gone = True
            task.cancel()

        def begin() -> None:
            nonlocal watcher
            watcher = loop.create_task(watch())

        timer = loop.call_later(_WATCH, begin)
        try:
            return await work
        except asyncio.CancelledError:
            if not gone:
                raise
            task.uncancel()
            raise ServeError(Status.CANCELLED, "the client has gone") from None
        finally:
            timer.cancel()
            if watcher is not None:
                watcher.cancel()

    async def _repository(self, call: Call, words: list[bytes]) -> Answer | None:
        load = len(words) == 3 and words[0] == b"models" and words[2] in (b"load", b"unload")
        if not load and words != [b"index"]:
            return None
        if call.method != "POST":
            return _wrong_method("POST")
        body = await call.body(self.limits)
        if not load:
            index = decode_json(body, _INDEX, self.limits) if len(body) else IndexBody()
            return told(self.plane.index(index.ready))
        told_to: LoadBody = decode_json(body, _LOAD, self.limits) if len(body) else LoadBody()
        name = _text(words[1])
        if words[2] == b"unload":
            await self.plane.unload(name, bool(told_to.parameters.get("unload_dependents")))
        else:
            config, files = _load_parameters(told_to.parameters)
            del body
            await self.plane.load(name, config, files)
        return Answer(200)


def _load_parameters(
    parameters: dict[str, bool | int | float | str | None],
) -> tuple[str | None, dict[str, bytes] | None]:
    config: str | None = None
    files: dict[str, bytes] = {}
    for key, value in parameters.items():
        if not isinstance(value, str):
            raise ServeError(Status.INVALID, f"the parameter {key[:60]!r} is not a text")
        if key == "config":
            config = value
        elif key.startswith("file:"):
            try:
                files[key] = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise ServeError(Status.INVALID, f"{key[:60]!r} is not base64") from error
        else:
            raise ServeError(Status.INVALID, f"the parameter {key[:60]!r} is not known")
    return config, files or None


def _ready(plane: Plane, name: str, version: str) -> Answer:
    ready = plane.model_ready(name, version)
    if not ready:
        plane.repository.find(name, version)  # says what is not there
    return told({"name": name, "ready": ready}, 200 if ready else 503)


_ACTIONS: dict[bytes | None, Callable[[Plane, str, str], Answer]] = {
    b"": lambda plane, name, version: told(plane.metadata(name, version)),
    b"config": lambda plane, name, version: told(plane.config(name, version)),
    b"stats": lambda plane, name, version: told(plane.statistics(name, version)),
    b"ready": _ready,
}


def _health(what: str, good: bool) -> Answer:
    return told({what: good}, 200 if good else 503)


def _get(call: Call) -> Answer | None:
    return None if call.method == "GET" else _wrong_method("GET")


def _wrong_method(*allowed: str) -> Answer:
    answer = told({"error": f"this path takes {' and '.join(allowed)}"}, 405)
    answer.headers = [*answer.headers, (b"allow", ", ".join(allowed).encode())]
    return answer


def _text(word: bytes) -> str:
    """One word of a path; what is escaped in it is decoded once, after the path was taken apart."""
    return (unquote_to_bytes(word) if b"%" in word else word).decode("utf-8", "replace")


__all__ = ["Answer", "Call", "Handler", "Middleware", "Part", "Rest"]
