"""Adds the gRPC front, shared memory and the OpenAPI description to a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any
from urllib.parse import unquote

import msgspec

from redline.serve.grpc_front import Authorize, GrpcFront, GrpcOptions
from redline.serve.grpc_service import ServerSettings
from redline.serve.grpc_tensors import TensorLimits
from redline.serve.messages import ServeError, Status
from redline.serve.operator import Operator
from redline.serve.plane import Plane
from redline.serve.rest import Answer, Call, Handler, Rest
from redline.serve.rest_body import decode_json, told
from redline.serve.rpc_access import AccessInterceptor
from redline.serve.settings import Settings
from redline.serve.shared_memory import Call as Function
from redline.serve.shared_memory import SharedMemory, routes

_BODY = msgspec.json.Decoder(dict[str, Any])


@dataclass
class Grpc:
    """An extension of redline.serve.server.Server.

    Attributes:
        control: RPCs and routes that change what is served are there.
        shared: regions that clients may register; off unless it says so.
        settings: what trace and log RPCs change.
        authorize: asked about each gRPC call before its method is looked for.
        interceptors: others of the gRPC server.
        credentials: TLS of the gRPC server.
        front: the gRPC front, once the server starts; its `port` is where it listens.

    Example:
        >>> grpc = Grpc(control=True)
        >>> server = Server(settings, [grpc])  # doctest: +SKIP
    """

    control: bool = False
    shared: SharedMemory = field(default_factory=SharedMemory)
    settings: ServerSettings | None = None
    authorize: Authorize | None = None
    interceptors: Sequence[Any] = ()
    credentials: Any = None
    reuse_port: bool = False
    front: GrpcFront | None = None

    def guard(self, operator: Operator) -> None:
        """Ask the operator's keys before every call, and use its TLS and settings."""
        self.interceptors = [AccessInterceptor(operator.authorize)]
        self.credentials = operator.rpc_credentials()
        self.settings = operator
        self.control = operator.control

    def __call__(self, plane: Plane, rest: Rest, settings: Settings) -> Sequence[GrpcFront]:
        """What Server calls before it starts."""
        limits = settings.limits
        options = GrpcOptions(
            host=settings.host,
            port=settings.grpc_port,
            max_message=limits.body,
            control=self.control,
            credentials=self.credentials,
            reuse_port=self.reuse_port,
            tensors=TensorLimits(limits.tensors, limits.elements, limits.rank),
        )
        rest.shared = self.shared
        add_shared_memory(rest, self.shared, control=self.control)
        rest.routes["GET", "/v2/openapi.yaml"] = _openapi
        self.front = GrpcFront(
            plane,
            options,
            shared=self.shared,
            settings=self.settings,
            authorize=self.authorize,
            interceptors=self.interceptors,
        )
        return [self.front]


def add_shared_memory(rest: Rest, shared: SharedMemory, *, control: bool) -> None:
    """Give an HTTP front the routes of shared memory."""
    for kind in ("system", "cuda"):
        base = f"/v2/{kind}sharedmemory"
        table = {
            (method, path.removeprefix(base)): function
            for (method, path), function in routes(shared).items()
            if path.startswith(base)
        }
        rest.prefixes[f"{base}/"] = _handler(base, table, rest, control)


def _handler(
    base: str, table: dict[tuple[str, str], Function], rest: Rest, control: bool
) -> Handler:
    async def handle(call: Call) -> Answer:
        words = call.path.decode("latin-1").removeprefix(base).split("/")
        name = ""
        if len(words) == 4 and words[1] == "region":
            name, words[2] = unquote(words[2]), "{name}"
        path = "/".join(words)
        function = table.get((call.method, path))
        if function is None:
            known = any(path == other for _, other in table)
            return told({"error": "there is nothing at this path"}, 405 if known else 404)
        if not control:
            raise ServeError(Status.FORBIDDEN, "the control plane of this server is off")
        body = await call.body(rest.limits) if call.method == "POST" else b""
        given = decode_json(body, _BODY, rest.limits) if len(body) else {}
        return told(function(name, given))

    return handle


async def _openapi(call: Call) -> Answer:
    text = resources.files("redline.serve").joinpath("openapi.yaml").read_bytes()
    return Answer(200, [text], [(b"content-type", b"application/yaml")])
