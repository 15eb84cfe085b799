"""Several processes behind one port: shared load, restarts, merged metrics, drained ends."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from redline.errors import RunError
from redline.serve.workers import Supervisor, listeners

SAMPLE = Path(__file__).with_name("worker_sample.py")
Body = Callable[[Supervisor, str], Awaitable[None]]


def command(listener: int, channel: int) -> list[str]:
    return [sys.executable, str(SAMPLE), str(listener), str(channel)]


def supervised(body: Body, count: int = 2, grace: float = 10.0) -> None:
    async def run() -> None:
        sockets = listeners("127.0.0.1", 0, count)
        url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        supervisor = Supervisor(command, sockets, grace=grace)
        running = asyncio.create_task(supervisor.run())
        while not all(worker.ready for worker in supervisor.workers):
            assert not running.done()
            await asyncio.sleep(0.02)
        try:
            await body(supervisor, url)
        finally:
            supervisor.stop()
            await running
        assert all(worker.process.returncode is not None for worker in supervisor.workers)

    asyncio.run(asyncio.wait_for(run(), 90))


async def get(url: str, path: str) -> httpx.Response:
    """Over a connection of its own, so that the kernel deals it out."""
    async with httpx.AsyncClient(timeout=30) as client:
        return await client.get(url + path)


async def pids(url: str, count: int) -> set[int]:
    found: set[int] = set()
    for _ in range(400):
        found.add((await get(url, "/v2/models/net/infer")).json()["pid"])
        if len(found) == count:
            break
    return found


def counts(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_load_is_shared_and_metrics_are_merged() -> None:
    async def body(supervisor: Supervisor, url: str) -> None:
        assert len(await pids(url, 2)) == 2
        before = counts((await get(url, "/metrics")).text)["nv_inference_request_success_total"]
        for _ in range(20):
            await get(url, "/v2/models/net/infer")
        for _ in range(4):  # whichever worker is asked
            told = counts((await get(url, "/metrics")).text)
            assert told["nv_inference_request_success_total"] == before + 20
            assert told["redline_workers"] == 2
            assert told["redline_worker_restarts_total"] == 0

    supervised(body)


def test_a_worker_that_crashes_is_started_again() -> None:
    async def body(supervisor: Supervisor, url: str) -> None:
        before = await pids(url, 2)
        with pytest.raises(httpx.HTTPError):
            await get(url, "/v2/models/crash/infer")
        # The other one serves meanwhile; what the kernel gave to the dead one's socket waits.
        for _ in range(20):
            assert (await get(url, "/v2/models/net/infer")).status_code == 200
        after = await pids(url, 2)
        assert len(after & before) == 1
        assert len(after) == 2
        assert supervisor.restarts == 1

    supervised(body)


async def slow(url: str, accepted: asyncio.Semaphore) -> str:
    path = url + "/v2/models/slow/infer"
    async with httpx.AsyncClient(timeout=60) as client, client.stream("GET", path) as told:
        accepted.release()  # its headers are there
        return (await told.aread()).decode()


async def all_accepted(url: str, count: int) -> list[asyncio.Task[str]]:
    accepted = asyncio.Semaphore(0)
    asked = [asyncio.create_task(slow(url, accepted)) for _ in range(count)]
    for _ in asked:
        await accepted.acquire()
    return asked


def test_sigterm_answers_what_was_accepted() -> None:
    async def body(supervisor: Supervisor, url: str) -> None:
        asked = await all_accepted(url, 16)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.gather(*asked) == ["done"] * 16

    supervised(body)


def test_a_second_signal_does_not_wait() -> None:
    async def body(supervisor: Supervisor, url: str) -> None:
        asked = await all_accepted(url, 4)
        supervisor.stop()
        supervisor.stop()
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert any(isinstance(one, httpx.HTTPError) for one in told)

    supervised(body)


def test_workers_that_never_start_are_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMPLE_BROKEN", "1")
    supervisor_sockets = listeners("127.0.0.1", 0, 1)

    async def run() -> None:
        await Supervisor(command, supervisor_sockets, grace=1).run()

    with pytest.raises(RunError, match=r"before it was ready \(code 3\)"):
        asyncio.run(asyncio.wait_for(run(), 60))


def test_no_worker_outlives_its_supervisor(tmp_path: Path) -> None:
    """Killed, the supervisor can say nothing: the workers hear that their channel is closed."""
    script = (
        "import asyncio, sys; from redline.serve.workers import *\n"
        "s = listeners('127.0.0.1', 0, 2)\n"
        f"command = lambda a, b: [sys.executable, {str(SAMPLE)!r}, str(a), str(b)]\n"
        "async def main():\n"
        "    one = Supervisor(command, s)\n"
        "    task = asyncio.create_task(one.run())\n"
        "    while not all(w.ready for w in one.workers): await asyncio.sleep(0.02)\n"
        "    print(*[w.process.pid for w in one.workers], flush=True)\n"
        "    await task\n"
        "asyncio.run(main())\n"
    )

    async def run() -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout
        workers = [int(pid) for pid in (await process.stdout.readline()).split()]
        process.kill()
        await process.wait()
        for pid in workers:
            while Path(f"/proc/{pid}").exists() and _state(pid) != "Z":
                await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(run(), 60))


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
