"""Clients that cancel, vanish, lie or read slowly: the others get their own answers."""

import asyncio
import gc
import json
import random

import numpy as np
import psutil
import pytest
from serve_models import expected

HEAD = (
    "POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n"
    "Inference-Header-Content-Length: {size}\r\n\r\n"
)


def message(value, rows=1, model="mlp"):
    x = np.full((rows, 8), value, np.float32)
    told = {
        "inputs": [
            {"name": "x", "shape": [rows, 8], "datatype": "FP32",
             "parameters": {"binary_data_size": x.nbytes}}
        ],
        "parameters": {"binary_data_output": True},
    }  # fmt: skip
    text = json.dumps(told).encode()
    head = HEAD.format(model=model, length=len(text) + x.nbytes, size=len(text))
    return head.encode() + text + x.tobytes()


async def read_answer(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if b": " in line)
    body = await reader.readexactly(int(fields[b"content-length"]))
    size = int(fields.get(b"inference-header-content-length", len(body)))
    return int(head.split()[1]), body[size:], body[:size]


async def good(port, value, rows):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for k in range(3):  # on one connection
            writer.write(message(value + k, rows))
            status, data, text = await asyncio.wait_for(read_answer(reader), 60)
            assert status == 200, text
            y = np.frombuffer(data, np.float32).reshape(rows, 4)
            want = expected(np.full((rows, 8), value + k, np.float32))
            np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)
    finally:
        writer.close()
        await writer.wait_closed()


async def bad(port, draw):
    """One of many ways to misbehave."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    whole = message(1.0)
    kind = draw.randrange(6)
    try:
        if kind == 0:  # gone in the middle of the body
            writer.write(whole[: draw.randrange(1, len(whole))])
            await writer.drain()
        elif kind == 1:  # gone before the answer
            writer.write(whole)
            await writer.drain()
        elif kind == 2:  # bytes that were changed on the way
            raw = bytearray(whole)
            for _ in range(3):
                raw[draw.randrange(len(raw))] = draw.randrange(256)
            writer.write(bytes(raw))
            await asyncio.wait_for(reader.read(100), 0.2)
        elif kind == 3:  # a name that leads elsewhere
            writer.write(message(1.0, model="..%2f..%2fetc"))
            status, _, _ = await asyncio.wait_for(read_answer(reader), 60)
            assert status == 400
        elif kind == 4:  # larger than allowed
            writer.write(HEAD.format(model="mlp", length=1 << 40, size=3).encode())
            status, _, _ = await asyncio.wait_for(read_answer(reader), 60)
            assert status == 413
        else:  # nothing at all
            await asyncio.sleep(0.01)
    except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
        pass  # the server may close on what it cannot read
    finally:
        writer.close()


async def storm(port, requests, seed):
    draw = random.Random(seed)
    gate = asyncio.Semaphore(24)

    async def one(k):
        async with gate:
            if draw.random() < 0.6:
                await good(port, float(k % 97), draw.randint(1, 4))
            else:
                await bad(port, draw)

    await asyncio.gather(*[one(k) for k in range(requests)])


@pytest.mark.parametrize(
    "count", [250, pytest.param(4500, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_the_others_get_their_answers_and_memory_stays(server, count):
    port = server.server.http_port
    asyncio.run(storm(port, max(200, count // 2), seed=1))  # warm: the clients are in this process
    gc.collect()
    before = psutil.Process().memory_info().rss
    asyncio.run(storm(port, count, seed=2))
    gc.collect()
    grown = psutil.Process().memory_info().rss - before
    assert grown < 5 << 20, f"{grown / 2**20:.1f} MiB more than before"
    plane = server.server.plane
    served = plane.repository.find("mlp")

    async def settled():
        for _ in range(200):
            if not (plane._active or served.batcher.waiting or served.batcher.running):
                return True
            await asyncio.sleep(0.05)
        return False

    assert server.call(settled()).result(30), "something is still being waited for"


def test_a_client_that_goes_takes_its_request_out_of_the_queue(own):
    """While the only instance is busy, a queued request's client closes its connection."""
    import threading

    running = own()
    served = running.server.plane.repository.find("mlp")
    gate, entered = threading.Event(), threading.Event()
    real = served.prepared.opened.run

    def slow(arrays):
        entered.set()
        assert gate.wait(60)
        return real(arrays)

    for instance in served.batcher._runs:
        instance._run = slow
    served.batcher._costs._recent.clear()

    async def clients():
        first = asyncio.create_task(good(running.server.http_port, 1.0, 1))
        await asyncio.to_thread(entered.wait, 30)
        _, writer = await asyncio.open_connection("127.0.0.1", running.server.http_port)
        writer.write(message(2.0))
        for _ in range(400):
            if served.batcher.waiting == 1:
                break
            await asyncio.sleep(0.01)
        assert served.batcher.waiting == 1
        writer.close()
        for _ in range(400):
            if not served.batcher.waiting:
                break
            await asyncio.sleep(0.01)
        assert not served.batcher.waiting
        gate.set()
        await first

    asyncio.run(clients())


def test_many_models(own):
    import shutil

    for k in range(200):
        shutil.copytree(own.root / "mlp", own.root / f"m{k}")
    running = own()

    async def all_of_them():
        from redline.serve.messages import Request

        x = np.ones((1, 8), np.float32)
        plane = running.server.plane
        found = await asyncio.gather(
            *[plane.infer(Request(f"m{k % 200}", "", {"x": x})) for k in range(1000)]
        )
        return [response.model for response in found]

    assert running.call(all_of_them()).result(60) == [f"m{k % 200}" for k in range(1000)]


def test_a_disk_that_is_full_while_loading(own, monkeypatch):
    from pathlib import Path

    from serve_models import mlp

    from redline.serve.messages import ServeError

    running = own(mode="explicit", load=("mlp",))

    def full(self, data):
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    files = {"file:1/model.onnx": mlp().SerializeToString()}
    call = running.call(running.server.plane.load("mlp", "{}", files))
    with pytest.raises(ServeError, match="No space left on device"):
        call.result(60)
    assert running.server.plane.model_ready("mlp")
