"""The batcher: nothing lost, nothing mixed up, whatever is cancelled, late or urgent."""

import asyncio
import random
import threading
import time
from collections import Counter

import numpy as np
import pytest

from redline.serve.batcher import Batcher, Queueing
from redline.serve.costs import Costs
from redline.serve.messages import ServeError, Status
from redline.serve.turns import Turns


class Engine:
    """Adds 1; notes its batches; waits where a test says so."""

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.lock = threading.Lock()

    def __call__(self, arrays):
        with self.lock:
            self.batches.append(arrays[0].copy())
        assert self.gate.wait(30)
        if np.any(arrays[0] < 0):
            raise ValueError("negative")
        return [arrays[0] + 1]


def request(value, rows=1, width=2):
    array = np.full((rows, width), float(value), np.float32)
    return [array], rows, ((width,),)


def submit(batcher, value, rows=1, width=2, priority=0, timeout=0.0):
    return batcher.submit(*request(value, rows, width), priority, timeout)


async def finish(batcher):
    await batcher.drained()
    for instance in batcher.close():
        await asyncio.to_thread(instance.join, 10)


async def until(true):
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not come to pass")


def blocked(engine):
    """An instance that is busy, so that the next requests wait."""
    engine.gate.clear()


async def ask(batcher, value, draw):
    """One request in some shape and mood; what became of it."""
    rows, width = draw.randint(1, 4), draw.choice([2, 3])
    priority, timeout = draw.choice([0, 1, 2, 3]), draw.choice([0, 0, 0.001, 5])
    try:
        item = submit(batcher, value, rows, width, priority, timeout)
    except ServeError as error:
        return "full" if error.status is Status.UNAVAILABLE else "wrong"
    try:
        if draw.random() < 0.3:
            await asyncio.sleep(draw.random() * 0.004)
            batcher.cancel(item)
        (output,) = await item.future
    except asyncio.CancelledError:
        return "cancelled"
    except ServeError as error:
        return "late" if error.what == "Request timeout expired" else "wrong"
    right = output.shape == (rows, width) and (output == value + 1).all()
    return "right" if right else "wrong"


@pytest.mark.parametrize("seed", range(6))
def test_every_request_gets_its_own_answer_or_a_reason(seed):
    draw = random.Random(seed)
    queueing = Queueing(
        max_batch=8, size=60, preferred=(4,), levels=3, default_priority=2,
        inline=5e-5 if seed % 2 else 0.0,
    )  # fmt: skip

    async def main():
        engine = Engine()
        batcher = Batcher([engine] * draw.randint(1, 2), 1, queueing)
        tasks = []
        for value in range(400):
            tasks.append(asyncio.create_task(ask(batcher, value, draw)))
            if draw.random() < 0.1:
                await asyncio.sleep(draw.random() * 0.003)
        told = Counter(await asyncio.wait_for(asyncio.gather(*tasks), 60))
        assert told.total() == 400
        assert not told["wrong"]
        assert told["right"] > 50
        assert (batcher.waiting, batcher.running) == (0, 0)
        assert all(batch.shape[0] <= 8 for batch in engine.batches)
        await finish(batcher)

    asyncio.run(main())


def run(scenario, queueing, instances=1):
    async def main():
        engine = Engine()
        batcher = Batcher([engine] * instances, 1, queueing)
        try:
            return await asyncio.wait_for(scenario(engine, batcher), 60)
        finally:
            engine.gate.set()
            await finish(batcher)

    return asyncio.run(main())


async def occupy(engine, batcher):
    blocked(engine)
    first = submit(batcher, 100)
    await until(lambda: engine.batches)
    return first


def test_what_waits_goes_together_and_shapes_are_never_mixed():
    async def scenario(engine, batcher):
        first = await occupy(engine, batcher)
        items = [submit(batcher, k, width=2 + k % 2) for k in range(6)]
        engine.gate.set()
        await asyncio.gather(first.future, *[item.future for item in items])
        assert [batch.shape for batch in engine.batches[1:]] == [(3, 2), (3, 3)]

    run(scenario, Queueing(max_batch=8))


def test_the_urgent_go_first():
    async def scenario(engine, batcher):
        await occupy(engine, batcher)
        for priority in (3, 1, 2, 1):
            submit(batcher, priority, priority=priority)
        engine.gate.set()
        await batcher.drained()
        assert [batch[0, 0] for batch in engine.batches[1:]] == [1, 1, 2, 3]

    run(scenario, Queueing(max_batch=1, levels=3))


def test_a_full_queue_refuses_at_once():
    async def scenario(engine, batcher):
        await occupy(engine, batcher)
        for k in range(3):
            submit(batcher, k)
        with pytest.raises(ServeError, match="Exceeds maximum queue size"):
            submit(batcher, 4)

    run(scenario, Queueing(max_batch=8, size=3))


def test_a_deadline_is_answered_while_the_engine_is_busy():
    async def scenario(engine, batcher):
        await occupy(engine, batcher)
        item = submit(batcher, 1, timeout=0.01)
        with pytest.raises(ServeError, match="Request timeout expired"):
            await asyncio.wait_for(item.future, 20)
        assert batcher.running == 1  # the engine has not come back yet
        assert len(item.arrays) == 0

    run(scenario, Queueing(max_batch=8))


@pytest.mark.parametrize(("override", "dies"), [(True, True), (False, False)])
def test_a_request_can_only_shorten_its_timeout(override, dies):
    async def scenario(engine, batcher):
        await occupy(engine, batcher)
        item = submit(batcher, 1, timeout=0.01)
        await asyncio.sleep(0.1)
        assert item.future.done() == dies
        if dies:
            assert isinstance(item.future.exception(), ServeError)

    run(scenario, Queueing(max_batch=8, timeout=30.0, override=override))


def test_delay_puts_the_late_behind():
    async def scenario(engine, batcher):
        await occupy(engine, batcher)
        late = submit(batcher, 1, timeout=0.01)
        await asyncio.sleep(0.1)
        submit(batcher, 2)
        engine.gate.set()
        await late.future
        assert [batch[0, 0] for batch in engine.batches[1:]] == [2, 1]

    run(scenario, Queueing(max_batch=1, late="DELAY"))


def test_a_cancelled_request_leaves_the_queue_and_its_memory_goes():
    async def scenario(engine, batcher):
        await occupy(engine, batcher)
        items = [submit(batcher, k) for k in range(3)]
        batcher.cancel(items[1])
        assert (batcher.waiting, len(items[1].arrays)) == (2, 0)
        engine.gate.set()
        assert [(await items[k].future)[0][0, 0] for k in (0, 2)] == [1, 3]

    run(scenario, Queueing(max_batch=8))


def test_a_request_that_fails_does_not_fail_its_mates():
    async def scenario(engine, batcher):
        await occupy(engine, batcher)
        items = [submit(batcher, k) for k in (1, -1, 3)]
        engine.gate.set()
        results = await asyncio.gather(*[i.future for i in items], return_exceptions=True)
        assert results[0][0][0, 0] == 2
        assert isinstance(results[1], ServeError)
        assert results[2][0][0, 0] == 4

    run(scenario, Queueing(max_batch=8))


def test_preferred_sizes_and_the_delay():
    async def scenario(engine, batcher):
        items = [submit(batcher, k) for k in range(6)]
        await asyncio.gather(*[item.future for item in items])
        assert [len(batch) for batch in engine.batches] == [4, 2]

    run(scenario, Queueing(max_batch=8, preferred=(2, 4)))

    async def waits(engine, batcher):
        start = time.monotonic()
        first = submit(batcher, 1)
        await asyncio.sleep(0.02)
        second = submit(batcher, 2)
        await asyncio.gather(first.future, second.future)
        assert [len(batch) for batch in engine.batches] == [2]
        assert time.monotonic() - start >= 0.19

    run(waits, Queueing(max_batch=8, delay=0.2))


def test_a_hung_run_is_answered_and_another_thread_goes_on():
    async def scenario(engine, batcher):
        blocked(engine)
        item = submit(batcher, 1)
        with pytest.raises(ServeError, match="did not answer within"):
            await asyncio.wait_for(item.future, 30)
        engine.gate.set()
        assert (await submit(batcher, 5).future)[0][0, 0] == 6

    run(scenario, Queueing(max_batch=8, run_timeout=0.05))


def test_models_take_turns_when_they_may_not_all_run():
    async def main():
        turns, order, lock = Turns(1), [], threading.Lock()

        def engine(name, seconds):
            def call(arrays):
                time.sleep(seconds)
                with lock:
                    order.append(name)
                return [arrays[0]]

            return call

        queueing = Queueing(max_batch=1)
        slow = Batcher([engine("slow", 0.02)], 1, queueing, turns=turns)
        quick = Batcher([engine("quick", 0.002)], 1, queueing, turns=turns)
        items = [submit(slow, k) for k in range(20)] + [submit(quick, k) for k in range(20)]
        await asyncio.wait_for(asyncio.gather(*[item.future for item in items]), 60)
        # The quick one is done long before the slow one, although it came later.
        assert order.index("slow") < order.index("quick") or order[0] == "quick"
        assert len(order) - 1 - order[::-1].index("quick") < 30
        await finish(slow)
        await finish(quick)

    asyncio.run(main())


def test_quick_batches_run_on_the_loop_and_slow_ones_do_not():
    places = []

    def run_here(arrays):
        places.append(threading.current_thread() is threading.main_thread())
        time.sleep(float(arrays[0][0, 0]))
        return [arrays[0] + 1]

    async def main():
        batcher = Batcher([run_here], 1, Queueing(max_batch=8, inline=0.03))
        for seconds in (0.0, 0.0, 0.4, 0.0, 0.0):
            await submit(batcher, seconds).future
        await finish(batcher)

    asyncio.run(main())
    # Unknown, quick, quick as far as one could know, then known to be slow.
    assert places == [False, True, True, False, False]


def test_costs_forgive_one_delay_and_find_back_to_the_loop():
    costs = Costs(1e-4)
    assert not costs.quick(1)  # nothing is known
    costs.add(1, 2e-5, here=True)
    assert costs.quick(1)
    assert not costs.quick(8)
    costs.add(1, 5e-4, here=True)  # the machine had other work
    assert costs.quick(1)
    costs.add(1, 5e-4, here=True)  # and again: it is the engine
    assert not costs.quick(1)
    tried = [costs.quick(1) for _ in range(64)]
    assert sum(tried) == 2  # now and then
    costs.add(1, 2e-5, here=True)
    assert costs.quick(1)
    costs.add(1, 2e-3, here=True)  # long enough to be the engine at once
    assert not any(costs.quick(1) for _ in range(100))
    costs.add(1, 9e-3, here=False)
    costs.add(1, 9e-4, here=False)  # among waits for the interpreter, one that had none
    tried = [costs.quick(1) for _ in range(64)]
    assert sum(tried) == 1  # half as often, after a try that was too long
    assert not Costs(0).quick(1)
