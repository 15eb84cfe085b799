"""The same door for gRPC: an interceptor that decides each call before its method is looked for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from redline.serve.messages import ServeError

Authorize = Callable[[str, Sequence[tuple[str, Any]]], None]


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Give it to grpc.aio.server(interceptors=[...]).

    Args:
        authorize: called with the method and the call's metadata; raises ServeError to refuse.
    """

    def __init__(self, authorize: Authorize) -> None:
        self._authorize = authorize

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        """The handler of the call, or one that says why there is none."""
        details = handler_call_details
        try:
            self._authorize(details.method, details.invocation_metadata or ())
        except ServeError as error:
            return _refusal(error)
        return await continuation(details)


def _refusal(error: ServeError) -> Any:
    """A handler that fits any kind of call: requests are not read, the status is the answer."""
    code = grpc.StatusCode[error.status.value[1]]

    async def refuse(_: Any, context: Any) -> None:
        await context.abort(code, error.what)

    return grpc.stream_stream_rpc_method_handler(refuse)
