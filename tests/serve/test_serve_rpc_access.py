"""gRPC: every RPC is open, keyed or control, and everything else does not exist."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from ops_samples import QuietPlane  # type: ignore[import-not-found]

from redline.serve.keys import Keys
from redline.serve.operator import Operator, Options
from redline.serve.routes import Gate, classify_rpc
from redline.serve.rpc_access import AccessInterceptor
from redline.serve.security import Access

USER, ADMIN = "user-key-0123456789", "admin-key-0123456789"
SERVICE = "inference.GRPCInferenceService"
NAMES = {
    "ServerLive": Gate.OPEN, "ServerReady": Gate.OPEN, "ServerMetadata": Gate.DATA,
    "ModelReady": Gate.DATA, "ModelMetadata": Gate.DATA, "ModelConfig": Gate.DATA,
    "ModelStatistics": Gate.DATA, "ModelInfer": Gate.DATA, "ModelStreamInfer": Gate.DATA,
    "RepositoryIndex": Gate.DATA, "RepositoryModelLoad": Gate.CONTROL,
    "RepositoryModelUnload": Gate.CONTROL, "TraceSetting": Gate.CONTROL,
    "LogSettings": Gate.CONTROL, "SystemSharedMemoryStatus": Gate.CONTROL,
    "SystemSharedMemoryRegister": Gate.CONTROL, "SystemSharedMemoryUnregister": Gate.CONTROL,
    "CudaSharedMemoryStatus": Gate.CONTROL, "CudaSharedMemoryRegister": Gate.CONTROL,
    "CudaSharedMemoryUnregister": Gate.CONTROL, "Forgotten": None,
}  # fmt: skip


class Everything(grpc.GenericRpcHandler):
    """Answers any method, so that only the interceptor can refuse."""

    def service(self, details: Any) -> Any:
        async def unary(request: bytes, context: Any) -> bytes:
            return b"reached"

        async def stream(requests: Any, context: Any) -> Any:
            yield b"reached"

        if details.method.endswith("StreamInfer"):
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)


async def code(channel: Any, name: str, key: str) -> str:
    metadata = [("x-api-key", key)] if key else []
    path = f"/{SERVICE}/{name}"
    try:
        if "Stream" in name:
            return str([part async for part in channel.stream_stream(path)([], metadata=metadata)])
        return str(await channel.unary_unary(path)(b"", metadata=metadata))
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)


async def table(operator: Operator, key: str) -> dict[str, str]:
    server = grpc.aio.server(interceptors=[AccessInterceptor(operator.authorize)])
    server.add_generic_rpc_handlers([Everything()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return {name: await code(channel, name, key) for name in NAMES}
    finally:
        await server.stop(0)


REACHED = {"b'reached'", "[b'reached']"}
CASES = [
    (True, "", {Gate.DATA: "UNAUTHENTICATED", Gate.CONTROL: "UNAUTHENTICATED"}),
    (True, "wrong-key-0123456789", {Gate.DATA: "UNAUTHENTICATED", Gate.CONTROL: "UNAUTHENTICATED"}),
    (True, USER, {Gate.CONTROL: "PERMISSION_DENIED"}),
    (True, ADMIN, {}),
    (False, "", {Gate.CONTROL: "PERMISSION_DENIED"}),
]


@pytest.mark.parametrize(("keyed", "key", "refusals"), CASES)
def test_every_rpc(keyed: bool, key: str, refusals: dict[Gate, str]) -> None:
    access = Access(Keys.of([USER]), Keys.of([ADMIN])) if keyed else Access()
    operator = Operator(QuietPlane(), Options(), host="127.0.0.1")
    operator.access = access
    told = asyncio.run(table(operator, key))
    for name, gate in NAMES.items():
        expected = "UNIMPLEMENTED" if gate is None else refusals.get(gate, "")
        assert told[name] == expected if expected else told[name] in REACHED, name
    assert sum(operator.metrics.refused.values()) == sum(
        said not in REACHED for said in told.values()
    )


def test_the_table_of_rpcs_is_the_whole_service() -> None:
    service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    for method in service.methods:
        assert classify_rpc(f"/{SERVICE}/{method.name}") is not None, method.name
