"""What the docs promise of a request: how often it is copied, and when it hears of its deadline."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc

import numpy as np
import pytest

from redline.serve.batcher import Batcher, Queueing
from redline.serve.grpc_tensors import TensorLimits, to_request
from redline.serve.messages import ServeError
from redline.serve.proto import message
from redline.serve.rest_tensors import parse_request
from redline.serve.settings import Limits
from redline.serve.shared_memory import SharedMemory

MIB = 1 << 20


def test_binary_rest_and_raw_grpc_give_views_of_what_came():
    x = np.arange(16, dtype=np.float32).reshape(1, 16)
    spec = {"name": "x", "shape": [1, 16], "datatype": "FP32"}
    head = json.dumps({"inputs": [spec | {"parameters": {"binary_data_size": 64}}]}).encode()
    head += b" " * (-len(head) % 4)
    body = bytearray(head + x.tobytes())
    request, _ = parse_request("m", "", body, b"%d" % len(head), Limits())
    assert np.shares_memory(request.inputs["x"], np.frombuffer(body, np.uint8))
    wire = message("ModelInferRequest")(model_name="m")
    wire.inputs.add(**spec)
    wire.raw_input_contents.append(x.tobytes())
    with SharedMemory().lease() as lease:
        request, _ = to_request(wire, lease, TensorLimits())
    raw = np.frombuffer(wire.raw_input_contents[0], np.uint8)
    assert np.array_equal(request.inputs["x"], x)
    assert not request.inputs["x"].flags.owndata
    assert raw.nbytes == request.inputs["x"].nbytes


def test_a_batch_is_one_copy_and_a_request_alone_is_none():
    """Four requests of 4 MiB: the engine reads them in memory that was there before, and nothing
    of their size is allocated on the way."""
    seen = []

    def run(arrays):
        seen.append((tracemalloc.get_traced_memory()[1], arrays[0].ctypes.data, arrays[0].shape[0]))
        return [arrays[0][:, :1].copy()]

    async def main():
        batcher = Batcher([run], 1, Queueing(max_batch=4))
        rows = [np.full((1, MIB), k, np.float32) for k in range(4)]

        async def together(count):
            items = [batcher.submit([row], 1, ((MIB,),), 0, 0.0) for row in rows[:count]]
            return await asyncio.gather(*[item.future for item in items])

        await together(4)  # the slab grows to its size
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            answers = await together(4)
            alone = await together(1)
        finally:
            tracemalloc.stop()
        await batcher.drained()
        for instance in batcher.close():
            instance.join(10)
        return rows, before, answers, alone

    rows, before, answers, alone = asyncio.run(main())
    assert [float(answer[0][0, 0]) for answer in answers] == [0.0, 1.0, 2.0, 3.0]
    assert float(alone[0][0][0, 0]) == 0.0
    (_, first, four), (peak, second, again), (last, single, one) = seen
    assert (four, again, one) == (4, 4, 1)
    assert first == second  # the same memory, used again
    assert max(peak, last) - before < MIB // 4  # so the copy into it was the only one
    assert single == rows[0].ctypes.data  # and alone there was none


@pytest.mark.slow
def test_a_deadline_in_the_queue_is_answered_within_50_ms_of_it():
    """While the only instance is busy for longer; not when it becomes free."""

    def run(arrays):
        time.sleep(0.6)
        return arrays

    async def main():
        batcher = Batcher([run], 1, Queueing(max_batch=1))
        late = []
        for _ in range(9):
            busy = batcher.submit([np.zeros((1, 1))], 1, (), 0, 0.0)
            await asyncio.sleep(0.05)  # it runs
            start = time.perf_counter()
            waits = batcher.submit([np.zeros((1, 1))], 1, (), 0, 0.2)
            with pytest.raises(ServeError, match="expired"):
                await waits.future
            late.append(time.perf_counter() - start - 0.2)
            await busy.future
        for instance in batcher.close():
            instance.join(10)
        return late

    late = sorted(asyncio.run(main()))
    assert late[0] > -0.01
    assert late[len(late) // 2] < 0.05, late
