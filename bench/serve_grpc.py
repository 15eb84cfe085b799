"""Claim: what a ModelInfer costs over the bare call of the session (docs/serving-grpc.md).

    python bench/serve_grpc.py

The front alone: its plane calls the session on the spot. The server has a process of its own.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import grpc
import numpy as np
import onnx
import onnxruntime
import uvloop
from onnx import TensorProto, helper, numpy_helper

from redline.serve.messages import Request, Response
from redline.serve.proto import SERVICE, message

CALLS, ROUNDS, SECONDS = 300, 15, 5.0
X = np.random.default_rng(0).standard_normal((1, 784), dtype=np.float32)


def session() -> onnxruntime.InferenceSession:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name)
        for name, shape in (("w1", (784, 256)), ("w2", (256, 10)))
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])]
        for name, size in (("x", 784), ("y", 10))
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "mlp", *ends, weights),
        opset_imports=[helper.make_opsetid("", 20)], ir_version=10,
    )  # fmt: skip
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


class Direct:
    """A plane that has one model and no queue."""

    def __init__(self) -> None:
        self.session = session()
        self.extensions: list[str] = []

    async def infer(self, request: Request) -> Response:
        return Response("mlp", "1", {"y": self.session.run(None, request.inputs)[0]})

    def ready(self) -> bool:
        return True

    def live(self) -> bool:
        return True


async def serve() -> None:
    from redline.serve.grpc_front import GrpcFront, GrpcOptions

    front = GrpcFront(Direct(), GrpcOptions(port=0))
    await front.start()
    print(front.port, flush=True)
    await asyncio.Event().wait()


def question():
    wire = message("ModelInferRequest")(model_name="mlp")
    wire.inputs.add(name="x", datatype="FP32", shape=X.shape)
    wire.raw_input_contents.append(X.tobytes())
    return wire


def microseconds(call) -> list[float]:
    found = []
    for _ in range(ROUNDS * CALLS):
        start = time.perf_counter()
        call()
        found.append((time.perf_counter() - start) * 1e6)
    return found


async def throughput(address: str, clients: int) -> tuple[float, np.ndarray]:
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=message("ModelInferRequest").SerializeToString,
            response_deserializer=message("ModelInferResponse").FromString,
        )

        async def client() -> None:
            wire = question()
            while (start := time.perf_counter()) < end:
                await call(wire)
                times.append((time.perf_counter() - start) * 1e6)

        await asyncio.gather(*(client() for _ in range(clients)))
    return len(times) / SECONDS, np.percentile(times, [50, 99])


def main() -> None:
    command = [sys.executable, __file__, "--serve"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = f"127.0.0.1:{int(server.stdout.readline())}"
        bare = session()
        print("| call | p50 µs | p99 µs | calls a second |\n|---|---|---|---|")
        direct = np.percentile(microseconds(lambda: bare.run(None, {"x": X})), [50, 99])
        print(f"| the session, directly | {direct[0]:.0f} | {direct[1]:.0f} | |")
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=message("ModelInferRequest").SerializeToString,
                response_deserializer=message("ModelInferResponse").FromString,
            )
            wire = question()
            one = np.percentile(microseconds(lambda: call(wire)), [50, 99])
        print(f"| ModelInfer, 1 synchronous client | {one[0]:.0f} | {one[1]:.0f} | |")
        for clients in (1, 8, 64):
            rate, (middle, high) = asyncio.run(throughput(address, clients))
            print(f"| ModelInfer, {clients} asyncio | {middle:.0f} | {high:.0f} | {rate:.0f} |")
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    uvloop.run(serve()) if "--serve" in sys.argv else main()
