"""Programs as users of Triton write them, against whatever server is there.

python triton_programs.py NAME HTTP_ADDRESS GRPC_ADDRESS

The model "simple" adds and subtracts two int32 inputs of [1, 16]; each program ends with an
exception unless every answer is right, and prints PASS.
"""

from __future__ import annotations

import asyncio
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient
import tritonclient.http.aio as httpaio
import tritonclient.utils.shared_memory as shm

A = np.arange(16, dtype=np.int32)[None]
B = np.ones((1, 16), np.int32)


def inputs(client: Any, **how: Any) -> list[Any]:
    found = [client.InferInput("INPUT0", [1, 16], "INT32"),
             client.InferInput("INPUT1", [1, 16], "INT32")]  # fmt: skip
    for one, data in zip(found, (A, B), strict=True):
        one.set_data_from_numpy(data, **how)
    return found


def check(result: Any, names: tuple[str, ...] = ("OUTPUT0", "OUTPUT1")) -> None:
    right = {"OUTPUT0": A + B, "OUTPUT1": A - B}
    for name in names:
        assert np.array_equal(result.as_numpy(name), right[name]), name


def http(web: str, rpc: str) -> None:
    """Binary, JSON, one output, compressed, and many at once."""
    with httpclient.InferenceServerClient(web, concurrency=4) as client:
        check(client.infer("simple", inputs(httpclient)))
        check(client.infer("simple", inputs(httpclient, binary_data=False)))
        wanted = [httpclient.InferRequestedOutput("OUTPUT1", binary_data=False)]
        check(client.infer("simple", inputs(httpclient), outputs=wanted), ("OUTPUT1",))
        for coding in ("gzip", "deflate"):
            check(client.infer(
                "simple", inputs(httpclient), request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            ))  # fmt: skip
        sent = [client.async_infer("simple", inputs(httpclient)) for _ in range(16)]
        for one in sent:
            check(one.get_result())
        reused = inputs(httpclient)
        for _ in range(3):
            check(client.infer("simple", reused, request_id="7"))


def grpc(web: str, rpc: str) -> None:
    """Plain, compressed, by callback, and with a time limit."""
    with grpcclient.InferenceServerClient(rpc) as client:
        check(client.infer("simple", inputs(grpcclient), client_timeout=30))
        check(client.infer("simple", inputs(grpcclient), compression_algorithm="gzip"))
        answers: queue.Queue[Any] = queue.Queue()
        for _ in range(16):
            client.async_infer(
                "simple", inputs(grpcclient), lambda result, error: answers.put((result, error))
            )
        for _ in range(16):
            result, error = answers.get(timeout=30)
            assert error is None, error
            check(result)


def stream(web: str, rpc: str) -> None:
    """Answers come in the order of the requests."""
    answers: queue.Queue[Any] = queue.Queue()
    with grpcclient.InferenceServerClient(rpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(20):
            client.async_stream_infer("simple", inputs(grpcclient), request_id=str(number))
        for number in range(20):
            result, error = answers.get(timeout=30)
            assert error is None, error
            assert result.get_response().id == str(number)
            check(result)
        client.stop_stream()


def http_aio(web: str, rpc: str) -> None:
    async def main() -> None:
        async with httpaio.InferenceServerClient(web) as client:
            many = [client.infer("simple", inputs(httpclient)) for _ in range(16)]
            for result in await asyncio.gather(*many):
                check(result)

    asyncio.run(main())


def grpc_aio(web: str, rpc: str) -> None:
    async def main() -> None:
        async with grpcaio.InferenceServerClient(rpc) as client:
            many = [client.infer("simple", inputs(grpcclient)) for _ in range(16)]
            for result in await asyncio.gather(*many):
                check(result)

            async def asked() -> Any:
                for number in range(8):
                    yield {"model_name": "simple", "inputs": inputs(grpcclient),
                           "request_id": str(number)}  # fmt: skip

            number = 0
            async for result, error in client.stream_infer(asked()):
                assert error is None, error
                assert result.get_response().id == str(number)
                check(result)
                number += 1
            assert number == 8

    asyncio.run(main())


def health(web: str, rpc: str) -> None:
    """Health, metadata, configuration and statistics by both protocols."""
    with (
        httpclient.InferenceServerClient(web) as over_http,
        grpcclient.InferenceServerClient(rpc) as over_grpc,
    ):
        for client in (over_http, over_grpc):
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("simple")
            assert not client.is_model_ready("nothing")
            client.infer("simple", inputs(httpclient if client is over_http else grpcclient))
        assert over_http.get_server_metadata()["extensions"]
        assert over_http.get_model_metadata("simple")["inputs"][0]["datatype"] == "INT32"
        assert over_grpc.get_model_metadata("simple").outputs[1].name == "OUTPUT1"
        assert over_http.get_model_config("simple")["name"] == "simple"
        assert over_grpc.get_model_config("simple").config.name == "simple"
        row = over_http.get_inference_statistics("simple")["model_stats"][0]
        assert row["inference_stats"]["success"]["count"] >= 2


def control(web: str, rpc: str) -> None:
    """Load, unload and load again, by both protocols."""
    with (
        httpclient.InferenceServerClient(web) as over_http,
        grpcclient.InferenceServerClient(rpc) as over_grpc,
    ):
        for client in (over_http, over_grpc):
            client.load_model("simple")
            assert client.is_model_ready("simple")
            client.unload_model("simple")
            assert not client.is_model_ready("simple")
            client.load_model("simple")
            assert client.is_model_ready("simple")
        assert {row["name"] for row in over_http.get_model_repository_index()} == {"simple"}
        assert over_grpc.get_model_repository_index().models[0].name == "simple"


def shared(module: Any, address: str) -> None:
    """Inputs and outputs in shared memory."""
    size = A.nbytes
    into = shm.create_shared_memory_region("in", "/triton_program_in", 2 * size)
    out = shm.create_shared_memory_region("out", "/triton_program_out", 2 * size)
    try:
        shm.set_shared_memory_region(into, [A, B])
        with module.InferenceServerClient(address) as client:
            client.unregister_system_shared_memory()
            client.register_system_shared_memory("in", "/triton_program_in", 2 * size)
            client.register_system_shared_memory("out", "/triton_program_out", 2 * size)
            asked = [module.InferInput(f"INPUT{k}", [1, 16], "INT32") for k in (0, 1)]
            wanted = [module.InferRequestedOutput(f"OUTPUT{k}") for k in (0, 1)]
            for k in (0, 1):
                asked[k].set_shared_memory("in", size, offset=k * size)
                wanted[k].set_shared_memory("out", size, offset=k * size)
            client.infer("simple", asked, outputs=wanted)
            total = shm.get_contents_as_numpy(out, np.int32, [2, 16])
            assert np.array_equal(total, np.concatenate([A + B, A - B]))
            client.unregister_system_shared_memory()
    finally:
        shm.destroy_shared_memory_region(into)
        shm.destroy_shared_memory_region(out)


PROGRAMS = {
    "http": http, "grpc": grpc, "stream": stream, "http_aio": http_aio, "grpc_aio": grpc_aio,
    "health": health, "control": control,
    "http_shm": lambda web, rpc: shared(httpclient, web),
    "grpc_shm": lambda web, rpc: shared(grpcclient, rpc),
}  # fmt: skip


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
    print("PASS")
