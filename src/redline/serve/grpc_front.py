"""The gRPC server: Open Inference Protocol with Triton's extensions, health, reflection, TLS."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from redline.serve.grpc_service import CODES, ServerSettings, Service, to_message
from redline.serve.grpc_tensors import TensorLimits
from redline.serve.messages import ServeError, Status
from redline.serve.plane import Plane
from redline.serve.proto import METHODS, SERVICE, message, new_pool
from redline.serve.shared_memory import SharedMemory

_LOG = logging.getLogger("redline.serve")
# Called with the method ("/inference.GRPCInferenceService/ModelInfer") and the call's metadata
# before anything else is looked at; raises ServeError to refuse.
Authorize = Callable[[str, Sequence[tuple[str, Any]]], None]
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_SERVING, _NOT_SERVING, _UNKNOWN = 1, 2, 3  # HealthCheckResponse.ServingStatus
_SHARED = "system_shared_memory"
_LOOK = 0.5  # seconds between two looks for those who watch the health


@dataclass(frozen=True)
class GrpcOptions:
    """Bytes and seconds.

    Attributes:
        host, port: where it listens; port 0 takes any that is free.
        max_message: largest request and response, also after decompression.
        max_metadata: bytes of a call's metadata.
        max_calls: calls that run at once over all connections; more get RESOURCE_EXHAUSTED.
        max_streams: calls that run at once on one connection.
        stream_requests: requests of one ModelStreamInfer that run at once.
        keepalive, keepalive_timeout: pings after so long without traffic; who does not answer in
            time is cut off.
        min_ping: clients that ping more often while nothing runs are cut off.
        idle: connections without calls are closed after so long.
        credentials: TLS; None is plain text.
        compression: of responses.
        reflection: tell tools such as grpcurl what there is.
        control: RPCs that change what is served, or settings, or register shared memory.
        reuse_port: several processes may listen on the port.
        tensors: limits of one request.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    max_message: int = 64 << 20
    max_metadata: int = 16 << 10
    max_calls: int = 4096
    max_streams: int = 1024
    stream_requests: int = 32
    keepalive: float = 7200.0
    keepalive_timeout: float = 20.0
    min_ping: float = 300.0
    idle: float = 3600.0
    credentials: grpc.ServerCredentials | None = None
    compression: grpc.Compression = grpc.Compression.NoCompression
    reflection: bool = True
    control: bool = False
    reuse_port: bool = False
    tensors: TensorLimits = field(default_factory=TensorLimits)

    def channel(self) -> list[tuple[str, int]]:
        """The same as gRPC's channel arguments."""
        return [
            ("grpc.max_receive_message_length", self.max_message),
            ("grpc.max_send_message_length", self.max_message),
            ("grpc.max_metadata_size", self.max_metadata),
            ("grpc.absolute_max_metadata_size", self.max_metadata),
            ("grpc.max_concurrent_streams", self.max_streams),
            ("grpc.keepalive_time_ms", int(self.keepalive * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.keepalive_timeout * 1000)),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", int(self.min_ping * 1000)),
            ("grpc.max_connection_idle_ms", int(self.idle * 1000)),
            ("grpc.so_reuseport", int(self.reuse_port)),
        ]


class GrpcFront:
    """One listening gRPC server on a plane; start and stop run on the plane's loop.

    Example:
        >>> front = GrpcFront(plane, GrpcOptions(port=0))
        >>> await front.start()  # front.port is where it listens
        >>> await front.stop(grace=5.0)
    """

    def __init__(
        self,
        plane: Plane,
        options: GrpcOptions = GrpcOptions(),
        *,
        shared: SharedMemory | None = None,
        settings: ServerSettings | None = None,
        authorize: Authorize | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        self.options = options
        self.service = Service(
            plane,
            shared or SharedMemory(),
            options.tensors,
            settings,
            control=options.control,
            stream_requests=options.stream_requests,
        )
        self._plane = plane
        self.port = options.port
        gates = [_Gate(authorize)] if authorize else []
        self._interceptors = [*gates, *interceptors]
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen; `port` is then the real one.

        Raises:
            ServeError: UNAVAILABLE, the address cannot be bound.
        """
        options = self.options
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=options.channel(),
            maximum_concurrent_rpcs=options.max_calls,
            compression=options.compression,
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, handlers(self.service)),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(Health(self._plane), server)
        if options.reflection:
            pool = new_pool()
            for known in (health_pb2, reflection_pb2):
                pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
            names = (SERVICE, _HEALTH, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server, pool=pool)
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"{host}:{options.port}"
        try:
            if options.credentials is None:
                port = server.add_insecure_port(address)
            else:
                port = server.add_secure_port(address, options.credentials)
        except RuntimeError:
            raise ServeError(Status.UNAVAILABLE, f"gRPC cannot listen on {address}") from None
        if self.service.shared.enabled and _SHARED not in self._plane.extensions:
            self._plane.extensions.append(_SHARED)
        await server.start()
        self._server, self.port = server, int(port)

    async def stop(self, grace: float) -> None:
        """Take no new calls; running ones have `grace` seconds, then they are cancelled."""
        if self._server is not None:
            await self._server.stop(grace)
            self._server = None
        self.service.shared.close()


def handlers(service: Service) -> dict[str, Any]:
    """gRPC's handler of every method of the service."""
    found = {}
    for name, method in METHODS.items():
        read = reader(method.input_type.name)
        kind = message(method.output_type.name)
        if name == "ModelStreamInfer":
            found[name] = grpc.stream_stream_rpc_method_handler(
                service.stream, read, kind.SerializeToString
            )
            continue
        call = _infer(service) if name == "ModelInfer" else _unary(service, name, kind)
        found[name] = grpc.unary_unary_rpc_method_handler(call, read, kind.SerializeToString)
    return found


def reader(name: str) -> Callable[[bytes], Any]:
    """Reads messages of a type; bytes that are none give the error that is to be told.

    gRPC itself would answer what Python raises, and log a traceback for each.
    """
    kind = message(name)

    def read(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            return ServeError(Status.INVALID, f"the request is no {name}: its bytes do not parse")

    return read


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _infer(service: Service) -> Callable[[Any, Any], Awaitable[Any]]:
    async def call(wire: Any, context: Any) -> Any:
        trace = ""
        for key, value in context.invocation_metadata() or ():
            if key == "traceparent":
                trace = value
        return await _told(context, service.infer(wire, context.time_remaining(), trace))

    return call


def _unary(service: Service, name: str, kind: Any) -> Callable[[Any, Any], Awaitable[Any]]:
    method = getattr(service, _snake(name))

    async def call(wire: Any, context: Any) -> Any:
        async def answer() -> Any:
            if isinstance(wire, ServeError):
                raise wire
            return to_message(await method(wire), kind)

        return await _told(context, answer())

    return call


async def _told(context: Any, work: Awaitable[Any]) -> Any:
    """The work's answer, or the call ended with its error; what is unexpected is only logged."""
    try:
        return await work
    except ServeError as caught:
        error = caught
    except Exception:
        _LOG.exception("a gRPC call failed")
        error = ServeError(Status.INTERNAL, "internal error")
    await context.abort(CODES[error.status], error.what)
    raise AssertionError("abort raises")


class _Gate(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks `authorize` before a method is looked for, so that no service is forgotten."""

    def __init__(self, authorize: Authorize) -> None:
        self._authorize = authorize

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        try:
            self._authorize(details.method, details.invocation_metadata or ())
        except ServeError as caught:
            error = caught
        else:
            return await continuation(details)

        async def refuse(_: Any, context: Any) -> None:
            await context.abort(CODES[error.status], error.what)

        # This shape fits every kind of call: nothing of it is read before it is refused.
        return grpc.stream_stream_rpc_method_handler(refuse)


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The standard health service: "" and the inference service are ready when the plane is."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane

    def status(self, service: str) -> int:
        if service not in ("", SERVICE):
            return _UNKNOWN
        return _SERVING if self._plane.ready() else _NOT_SERVING

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        found = self.status(request.service)
        if found == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return health_pb2.HealthCheckResponse(status=found)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        told = None
        while True:
            found = self.status(request.service)
            if found != told:
                yield health_pb2.HealthCheckResponse(status=found)
                told = found
            await asyncio.sleep(_LOOK)
