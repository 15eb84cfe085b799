"""The same door for gRPC: an interceptor that decides each call before its handler is looked up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc  # type: ignore[import-untyped, unused-ignore]

from redline.serve.messages import ServeError, Status
from redline.serve.routes import Gate, classify_rpc
from redline.serve.security import Access, keys_in


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc, unused-ignore]
    """Give it to grpc.aio.server(interceptors=[...]).

    Args:
        refused: told of each refusal, for the metrics.
    """

    def __init__(self, access: Access, refused: Callable[[Status], None] | None = None) -> None:
        self.access = access
        self.refused = refused

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The handler of the call, or one that says why there is none."""
        try:
            gate = classify_rpc(handler_call_details.method)
            if gate is None:
                raise ServeError(Status.UNSUPPORTED, "no such method")
            if gate is not Gate.OPEN:
                self.access.check(gate, keys_in(_pairs(handler_call_details.invocation_metadata)))
        except ServeError as error:
            if self.refused is not None:
                self.refused(error.status)
            return _refusal(error)
        return await continuation(handler_call_details)


def _pairs(metadata: Any) -> list[tuple[bytes, bytes]]:
    return [
        (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for name, value in metadata or ()
        if name in ("authorization", "x-api-key")
    ]


def _refusal(error: ServeError) -> Any:
    """A handler for any kind of call: requests are not read, the status is the answer."""
    code = getattr(grpc.StatusCode, error.status.value[1])

    async def refuse(requests: Any, context: Any) -> Any:
        await context.abort(code, error.what)
        yield b""  # never reached: it makes this a stream, which fits every call

    return grpc.stream_stream_rpc_method_handler(refuse)
