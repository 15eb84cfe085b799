"""The methods of inference.GRPCInferenceService on the data plane; one async function for each."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import grpc
from google.protobuf import json_format  # type: ignore[import-untyped]

from redline.serve.grpc_tensors import TensorLimits, from_response, to_request
from redline.serve.messages import Response, ServeError, Status
from redline.serve.names import check_name, check_version
from redline.serve.plane import Plane
from redline.serve.proto import message
from redline.serve.shared_memory import SharedMemory

_LOG = logging.getLogger("redline.serve")
CODES = {status: grpc.StatusCode[status.value[1]] for status in Status}
_NO_CUDA = "CUDA shared memory is not supported by this server"
StreamResponse = message("ModelStreamInferResponse")


class ServerSettings(Protocol):
    """What the trace and log RPCs read and change; an empty mapping only reads."""

    def trace(self, model: str, changes: Mapping[str, list[str]]) -> Mapping[str, list[str]]: ...

    def log(self, changes: Mapping[str, Any]) -> Mapping[str, Any]: ...


class Service:
    """The handlers. `method(name)` is the one of an RPC: request -> response message.

    Args:
        control: whether RPCs that change what is served are there.
        stream_requests: how many requests of one stream may run at once.
    """

    def __init__(
        self,
        plane: Plane,
        shared: SharedMemory,
        limits: TensorLimits,
        settings: ServerSettings | None,
        *,
        control: bool,
        stream_requests: int,
    ) -> None:
        self.plane = plane
        self.shared = shared
        self.limits = limits
        self.settings = settings
        self.control = control
        self.stream_requests = stream_requests

    # Inference

    async def infer(self, wire: Any, deadline: float | None, traceparent: str = "") -> Any:
        """Answer one ModelInferRequest; `deadline` is the seconds that the call has left.

        wire: the message, or the error of bytes that are none.

        Raises:
            ServeError: why it is not answered.
        """
        arrived = time.perf_counter()
        if isinstance(wire, ServeError):
            raise wire
        with self.shared.lease() as lease:
            request, wanted = to_request(wire, lease, self.limits)
            request.arrived, request.traceparent = arrived, traceparent
            if deadline is not None:
                request.timeout = min(request.timeout or deadline, max(deadline, 1e-6))
            response: Response = await self.plane.infer(request)
            batched = any(how.classes for how in wanted.values()) and (
                self.plane.repository.find(request.model, request.version).max_batch > 0
            )
            return from_response(response, wanted, lease, batched)

    async def stream(
        self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Answer a stream: its requests run side by side, the answers keep their order."""
        said = dict(context.invocation_metadata() or ())
        fail = said.get("triton_grpc_error") == "true"
        running: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
        room = asyncio.Semaphore(self.stream_requests)
        tasks: set[asyncio.Task[Any]] = set()

        async def read() -> None:
            trace = str(said.get("traceparent", ""))
            try:
                async for wire in requests:
                    await room.acquire()
                    task = asyncio.create_task(self._answer(wire, context.time_remaining(), trace))
                    tasks.add(task)
                    running.put_nowait(task)
            finally:
                running.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await running.get()) is not None:
                answer, error = await task
                tasks.discard(task)
                room.release()
                if error is not None and fail:
                    await context.abort(CODES[error.status], error.what)
                await context.write(answer)
            await reader
        finally:
            for left in (reader, *tasks):
                left.cancel()

    async def _answer(
        self, wire: Any, deadline: float | None, trace: str
    ) -> tuple[Any, ServeError | None]:
        try:
            answer = await self.infer(wire, deadline, trace)
        except ServeError as caught:
            error = caught
        except Exception:
            _LOG.exception("a streamed request failed")
            error = ServeError(Status.INTERNAL, "internal error")
        else:
            answer.parameters["triton_final_response"].bool_param = True
            return StreamResponse(infer_response=answer), None
        told = StreamResponse(error_message=error.what)
        if not isinstance(wire, ServeError):
            told.infer_response.id = wire.id
            told.infer_response.model_name = wire.model_name
        return told, error

    # Health and metadata

    async def server_live(self, wire: Any) -> dict[str, Any]:
        return {"live": self.plane.live()}

    async def server_ready(self, wire: Any) -> dict[str, Any]:
        return {"ready": self.plane.ready()}

    async def model_ready(self, wire: Any) -> dict[str, Any]:
        _check(wire)
        return {"ready": self.plane.model_ready(wire.name, wire.version)}

    async def server_metadata(self, wire: Any) -> dict[str, Any]:
        return self.plane.server_metadata()

    async def model_metadata(self, wire: Any) -> dict[str, Any]:
        _check(wire)
        return self.plane.metadata(wire.name, wire.version)

    async def model_config(self, wire: Any) -> dict[str, Any]:
        _check(wire)
        return {"config": self.plane.config(wire.name, wire.version)}

    async def model_statistics(self, wire: Any) -> dict[str, Any]:
        if wire.name:
            _check(wire)
        return self.plane.statistics(wire.name, wire.version)

    # The repository

    async def repository_index(self, wire: Any) -> dict[str, Any]:
        return {"models": self.plane.index(wire.ready)}

    async def repository_model_load(self, wire: Any) -> dict[str, Any]:
        self._check_control()
        check_name(wire.model_name)
        config, files = None, {}
        for key, value in wire.parameters.items():
            kind = value.WhichOneof("parameter_choice")
            if key == "config" and kind == "string_param":
                config = value.string_param
            elif key.startswith("file:") and kind == "bytes_param":
                files[key] = value.bytes_param
            else:
                raise ServeError(
                    Status.INVALID,
                    f"failed to load: parameter {key[:100]!r} is not 'config' (a string) or "
                    "'file:version/name' (bytes)",
                )
        await self.plane.load(wire.model_name, config, files or None)
        return {}

    async def repository_model_unload(self, wire: Any) -> dict[str, Any]:
        self._check_control()
        check_name(wire.model_name)
        dependents = False
        for key, value in wire.parameters.items():
            if key != "unload_dependents" or value.WhichOneof("parameter_choice") != "bool_param":
                raise ServeError(
                    Status.INVALID, f"parameter {key[:100]!r} is not 'unload_dependents', a bool"
                )
            dependents = value.bool_param
        await self.plane.unload(wire.model_name, dependents)
        return {}

    # Shared memory

    async def system_shared_memory_status(self, wire: Any) -> dict[str, Any]:
        self._check_control()
        return {"regions": {found["name"]: found for found in self.shared.status(wire.name)}}

    async def system_shared_memory_register(self, wire: Any) -> dict[str, Any]:
        self._check_control()
        self.shared.register(wire.name, wire.key, wire.offset, wire.byte_size)
        return {}

    async def system_shared_memory_unregister(self, wire: Any) -> dict[str, Any]:
        self._check_control()
        self.shared.unregister(wire.name)
        return {}

    async def cuda_shared_memory_register(self, wire: Any) -> dict[str, Any]:
        raise ServeError(Status.UNSUPPORTED, _NO_CUDA)

    async def cuda_shared_memory_status(self, wire: Any) -> dict[str, Any]:
        if wire.name:
            raise ServeError(Status.UNSUPPORTED, _NO_CUDA)
        return {}

    async def cuda_shared_memory_unregister(self, wire: Any) -> dict[str, Any]:
        # Clients ask for it before they begin, whatever they use; there is nothing to forget.
        return {}

    # Settings

    async def trace_setting(self, wire: Any) -> dict[str, Any]:
        settings = self._settings()
        if wire.model_name:
            check_name(wire.model_name)
        changes = {key: list(value.value) for key, value in wire.settings.items()}
        found = settings.trace(wire.model_name, changes)
        return {"settings": {key: {"value": list(value)} for key, value in found.items()}}

    async def log_settings(self, wire: Any) -> dict[str, Any]:
        settings = self._settings()
        changes = {}
        for key, value in wire.settings.items():
            kind = value.WhichOneof("parameter_choice")
            if kind is None:
                raise ServeError(Status.INVALID, f"log setting {key[:100]!r} has no value")
            changes[key] = getattr(value, kind)
        kinds = {bool: "bool_param", int: "uint32_param", str: "string_param"}
        found = settings.log(changes)
        return {"settings": {key: {kinds[type(v)]: v} for key, v in found.items()}}

    def _settings(self) -> ServerSettings:
        self._check_control()
        if self.settings is None:
            raise ServeError(Status.UNSUPPORTED, "this server has no settings to change")
        return self.settings

    def _check_control(self) -> None:
        if not self.control:
            raise ServeError(Status.FORBIDDEN, "the control plane of this server is off")


def _check(wire: Any) -> None:
    check_name(wire.name)
    check_version(wire.version)


def to_message(found: dict[str, Any], kind: Any) -> Any:
    """A response message out of Triton's JSON; a field that only REST has is left out."""
    return json_format.ParseDict(found, kind(), ignore_unknown_fields=True)
