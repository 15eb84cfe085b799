"""The same abuse over gRPC: what clients do wrong there, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import grpc
import numpy as np
import serve_models
from faults import _HOST, NAMES, ROW

from redline.serve.proto import SERVICE, message

_INFER = f"/{SERVICE}/ModelInfer"
_REFUSED = {
    "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "UNAVAILABLE",
    "INTERNAL",  # what gRPC says of bytes that are no message
    "PERMISSION_DENIED",
}  # fmt: skip
_CONTROL = ("RepositoryModelLoad", "RepositoryModelUnload", "LogSettings", "TraceSetting")


def question(draw: random.Random, model: str = "mlp") -> tuple[np.ndarray, Any]:
    """An input and its ModelInferRequest, raw or typed."""
    x = np.array([[draw.uniform(-9, 9) for _ in range(ROW)]], np.float32)
    wire = message("ModelInferRequest")(model_name=model)
    tensor = wire.inputs.add(name="x", datatype="FP32", shape=[1, ROW])
    if draw.random() < 0.5:
        wire.raw_input_contents.append(x.tobytes())
    else:
        tensor.contents.fp32_contents.extend(x.ravel().tolist())
    return x, wire


class RpcAbuser:
    """Sends calls of every kind to one server and counts how they ended; see faults.Abuser."""

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.random = random.Random(seed)
        self.ended: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.kinds = {
            "good": self.good, "cancel": self.cancel, "late": self.late, "garbage": self.garbage,
            "wrong": self.wrong_tensor, "oversize": self.oversize, "name": self.name,
            "stream": self.stream, "control": self.control, "noise": self.noise,
        }  # fmt: skip

    async def run(self, count: int, at_once: int = 16) -> None:
        """So many calls, half of them good."""
        gate = asyncio.Semaphore(at_once)
        address = f"127.0.0.1:{self.port}"

        async def one() -> None:
            kind = self.random.choice(("good",) * len(self.kinds) + tuple(self.kinds))
            async with gate:
                try:
                    told = await asyncio.wait_for(self.kinds[kind](), 60)
                except TimeoutError:
                    told = "hung"
                    self.wrong.append(f"{kind}: no end within 60 s")
                self.ended[kind, told] += 1

        async with grpc.aio.insecure_channel(address) as self.channel:
            self.call = self.channel.unary_unary(_INFER)
            await asyncio.gather(*(one() for _ in range(count)))

    async def good(self) -> str:
        x, wire = question(self.random)
        try:
            told = await self.call(wire.SerializeToString(), timeout=60)
        except grpc.aio.AioRpcError as error:
            self.wrong.append(f"good: lost, {error.code().name} {error.details()}")
            return str(error.code().name)
        self._compare(x, message("ModelInferResponse").FromString(told))
        return "OK"

    def _compare(self, x: np.ndarray, told: Any) -> None:
        y = np.frombuffer(told.raw_output_contents[0], np.float32).reshape(1, 4)
        if not np.allclose(y, serve_models.expected(x), rtol=1e-4, atol=1e-4):
            self.wrong.append(f"another's answer: {y} to {x}")

    async def cancel(self) -> str:
        _, wire = question(self.random)
        call = self.call(wire.SerializeToString())
        await asyncio.sleep(self.random.random() * 0.01)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await call
        return "left"

    async def late(self) -> str:
        """A deadline that has as good as passed."""
        _, wire = question(self.random)
        try:
            await self.call(wire.SerializeToString(), timeout=self.random.random() * 1e-3)
        except grpc.aio.AioRpcError as error:
            if error.code().name not in ("DEADLINE_EXCEEDED", "UNAVAILABLE"):
                self.wrong.append(f"late: {error.code().name} {error.details()}")
            return str(error.code().name)
        return "OK"

    async def refused(self, what: str, path: str, data: bytes, **options: Any) -> str:
        """An error that says why and nothing of this host."""
        try:
            await self.channel.unary_unary(path)(data, timeout=60, **options)
        except grpc.aio.AioRpcError as error:
            name, details = error.code().name, error.details() or ""
            if name not in _REFUSED or not details:
                self.wrong.append(f"{what}: {name} {details!r}")
            if _HOST.search(details.encode()):
                self.wrong.append(f"{what}: tells of the host: {details[:300]}")
            return str(name)
        self.wrong.append(f"{what}: was answered")
        return "OK"

    async def garbage(self) -> str:
        """Bytes that are no message: a field number of 0."""
        data = b"\0" + self.random.randbytes(self.random.randrange(1, 300))
        return await self.refused("garbage", _INFER, data)

    async def wrong_tensor(self) -> str:
        _, wire = question(self.random)
        kind = self.random.randrange(7)
        tensor = wire.inputs[0]
        if kind == 0:
            tensor.datatype = self.random.choice(["FP64", "BYTES", "FP16", "X" * 5000, ""])
        elif kind == 1:
            tensor.shape[:] = self.random.choice([[1, 9], [-1, 8], [1 << 40, 1 << 40], [], [8]])
        elif kind == 2:
            tensor.name = self.random.choice(["", "q", "x" * 10_000])
        elif kind == 3:
            wire.inputs.add(name="x", datatype="FP32", shape=[1, ROW])
        elif kind == 4:
            wire.raw_input_contents.append(b"\0" * 7)
        elif kind == 5:
            wire.outputs.add(name="nothing of this name")
        else:
            wire.parameters["triton_forged"].bool_param = True
        return await self.refused(f"tensor {kind}", _INFER, wire.SerializeToString())

    async def oversize(self) -> str:
        _, wire = question(self.random)
        if self.random.random() < 0.5:
            wire.inputs[0].name = "x" * (2 << 20)
            return await self.refused("message of 2 MB", _INFER, wire.SerializeToString())
        metadata = [("x-large", "a" * 60_000)]
        data = wire.SerializeToString()
        return await self.refused("metadata of 60 kB", _INFER, data, metadata=metadata)

    async def name(self) -> str:
        name = self.random.choice([name for name in NAMES if name != "mlp/"])
        _, wire = question(self.random, name)
        return await self.refused(f"name {name[:40]!r}", _INFER, wire.SerializeToString())

    async def control(self) -> str:
        """The control plane is off."""
        name = self.random.choice(_CONTROL)
        return await self.refused(name, f"/{SERVICE}/{name}", b"")

    async def stream(self) -> str:
        """A stream that asks a few times and ends, or leaves in the middle."""
        asked = [question(self.random) for _ in range(self.random.randrange(1, 6))]
        call = self.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")()
        for _, wire in asked:
            await call.write(wire.SerializeToString())
        if self.random.random() < 0.4:
            call.cancel()
            return "left"
        await call.done_writing()
        got = [message("ModelStreamInferResponse").FromString(told) async for told in call]
        if len(got) != len(asked):
            self.wrong.append(f"stream: {len(got)} answers to {len(asked)}")
        for (x, _), told in zip(asked, got, strict=False):
            if told.error_message:
                self.wrong.append(f"stream: {told.error_message}")
            else:
                self._compare(x, told.infer_response)
        return "OK"

    async def noise(self) -> str:
        """What is no HTTP/2, or only its beginning."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        start = self.random.choice(
            [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n"]
        )
        writer.write(start + self.random.randbytes(self.random.randrange(1, 2000)))
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(reader.read(4096), 0.1)
        writer.close()
        return "done"
