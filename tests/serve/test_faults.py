"""A real server process under abuse: nothing lost, nothing mixed up, no growth, clear errors."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import serve_models
from faults import GROWTH, Abuser, Process, abuse, check, process


def load_of(server: Process, count: int, body) -> Abuser:
    """Good requests all the time, while `body` does what it does to the server."""
    made = Abuser(server.port, seed=3)

    async def run() -> None:
        stop = asyncio.Event()

        async def ask() -> None:
            while not stop.is_set():
                made.ended["good", await made.good()] += 1

        asking = [asyncio.create_task(ask()) for _ in range(count)]
        try:
            await asyncio.to_thread(body)
        finally:
            stop.set()
            results = await asyncio.gather(*asking, return_exceptions=True)
            made.wrong += [f"lost: {one!r}" for one in results if one is not None]

    asyncio.run(asyncio.wait_for(run(), 800))
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    serve_models.save(tmp_path / "mlp/1/model.onnx", serve_models.mlp())
    return tmp_path


def scaled(root: Path, scale: float) -> None:
    serve_models.save(root / "mlp/1/model.onnx", serve_models.mlp(scale=scale))


def abused(root: Path, count: int, *options: str, rounds: int = 1) -> tuple[Abuser, int]:
    """(what happened, bytes that the server grew by after a warm-up of the same kind).

    The allocator's heap goes up and down; a leak grows in every one of the rounds.
    """
    with process(root, *options) as server:
        for seed in (1, 2, 3):  # what the allocator keeps is there after about 2000 requests
            check(abuse(server, 1000, seed), server)
        for _ in range(rounds):
            before = server.memory
            made = abuse(server, count)
            check(made, server)
            grown = server.memory - before
            if grown < GROWTH:
                break
        assert server.terminate() == 0
    return made, grown


def test_every_kind_of_abuse_in_short(root: Path) -> None:
    made, grown = abused(root, 500, rounds=3)
    assert {kind for kind, _ in made.ended} == set(made.kinds)
    assert grown < GROWTH


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_requests(root: Path) -> None:
    made, grown = abused(root, 10_000)
    assert sum(made.ended.values()) == 10_000
    assert grown < GROWTH


def test_the_check_of_memory_sees_growth(root: Path) -> None:
    """The negative control: a cache that keeps every answer is what the check must find."""
    with process(root, "--cache-bytes", str(1 << 30)) as server:
        check(abuse(server, 200), server)
        before = server.memory
        x = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
            for number in range(150):
                data = np.tile(x + number, (2000, 1))[:32].ravel().tolist()
                spec = {"name": "x", "shape": [32, 8], "datatype": "FP32", "data": data}
                for part in range(100):
                    spec["data"][0] = part + number / 1000
                    told = client.post("/v2/models/mlp/infer", json={"inputs": [spec]})
                    assert told.status_code == 200
                if server.memory - before > GROWTH:
                    break
        assert server.memory - before > GROWTH


@pytest.mark.parametrize(
    "count", [12, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_reload_under_load(root: Path, count: int) -> None:
    """Every answer is right for one of the two models, and no request fails."""
    with process(root, "--mode", "explicit", "--load", "*", "--allow-control") as server:
        url = f"http://127.0.0.1:{server.port}/v2/repository/models/mlp/load"

        def reload() -> None:
            for number in range(count):
                path = root / "mlp/1/model.onnx"
                os.utime(path, (number, number))  # the same model, loaded anew
                assert httpx.post(url, timeout=60).status_code == 200

        check(load_of(server, 4, reload), server)


def test_a_broken_model_leaves_the_old_one(root: Path) -> None:
    with process(root, "--mode", "explicit", "--load", "*", "--allow-control") as server:
        url = f"http://127.0.0.1:{server.port}/v2/repository/models/mlp/load"
        (root / "mlp/1/model.onnx").write_bytes(b"no model")
        told = httpx.post(url, timeout=60)
        assert told.status_code >= 400
        assert "failed to load" in told.json()["error"]
        assert str(root) not in told.text
        check(abuse(server, 50), server)


def test_sigterm_under_load(root: Path) -> None:
    """What was accepted is answered; who comes later is refused or not connected."""
    with process(root) as server:
        made = Abuser(server.port, seed=4)
        answered: list[str] = []

        async def ask() -> None:
            while True:
                try:
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                except OSError:
                    return
                x, head, body = made.question()
                try:
                    writer.write(head + body)
                    raw = await reader.read()
                except ConnectionError:
                    raw = b""
                finally:
                    writer.close()
                if not raw:
                    return  # never taken: not one byte of an answer
                status, _, told = raw.partition(b"\r\n\r\n")
                if b" 200 " not in status[:16]:
                    answered.append(status[:12].decode())
                    continue
                y = np.array(json.loads(told)["outputs"][0]["data"], np.float32)
                assert np.allclose(y, serve_models.expected(x).ravel(), rtol=1e-4, atol=1e-4)
                answered.append("200")

        async def run() -> None:
            asking = [asyncio.create_task(ask()) for _ in range(8)]
            await asyncio.sleep(1.0)
            server.popen.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*asking), 60)

        asyncio.run(run())
        assert server.popen.wait(60) == 0
        assert answered.count("200") > 10
        assert set(answered) <= {"200", "HTTP/1.1 503"}


ABUSES = (
    "json", "numbers", "deep", "shape", "overflow", "datatype", "size", "bomb", "name", "headers",
)  # fmt: skip


def abusive(kind: str) -> bytes:
    """A whole request that asks for more than it may have."""
    made = Abuser(0, seed=0)
    spec = '{"inputs":[{"name":"x","shape":%s,"datatype":"%s"%s}]}'
    bodies = {
        "json": b"{" * 60_000,
        "numbers": (spec % ("[1,8]", "FP32", f',"data":[{"1," * 500_000}1]')).encode(),
        "deep": b"[" * 500_000 + b"]" * 500_000,
        "shape": (spec % ("[1,999999999]", "FP32", ',"data":[1]')).encode(),
        "overflow": (spec % ("[4294967296,4294967296]", "FP32", ',"data":[]')).encode(),
        "datatype": (spec % ("[1,8]", "X" * 100_000, ',"data":[1]')).encode(),
        "size": (
            spec % ("[1,8]", "FP32", ',"parameters":{"binary_data_size":9999999999999}')
        ).encode(),
    }
    if kind == "bomb":
        bomb = gzip.compress(b"[" * (100 << 20), 1)
        return made.head(len(bomb), b"content-encoding: gzip\r\n") + bomb
    if kind == "name":
        return made.head(2, model="A" * 20_000) + b"{}"
    if kind == "headers":
        return made.head(2, b"x: " + b"a" * 60_000 + b"\r\n") + b"{}"
    return made.head(len(bodies[kind])) + bodies[kind]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_of_each_abuse_leave_no_memory_behind(root: Path) -> None:
    """Each is refused while the server lives, and costs less than 1 MiB over 100 repeats.

    The allocator's heap goes up and down; what is lost with each request grows in every round.
    """
    with process(root) as server:
        made = Abuser(server.port, seed=8)
        grown = {}
        for kind in ABUSES:
            request = abusive(kind)

            def repeat(kind: str = kind, request: bytes = request) -> None:
                for _ in range(100):
                    asyncio.run(made.refused(kind, request))

            sizes = []
            for _ in range(4):
                repeat()
                sizes.append(server.memory / (1 << 20))
                assert server.live()
            grown[kind] = min(after - before for before, after in pairwise(sizes))
        assert made.wrong == []
        assert max(grown.values()) < 1, grown


@pytest.mark.slow
def test_an_idle_server_sleeps(root: Path) -> None:
    """Less than one part in a hundred of a core, by the time that the process has used."""
    with process(root) as server:
        check(abuse(server, 50), server)
        time.sleep(1.0)
        used = psutil.Process(server.popen.pid)
        before, start = sum(used.cpu_times()[:2]), time.monotonic()
        time.sleep(15.0)
        spent = sum(used.cpu_times()[:2]) - before
        assert spent / (time.monotonic() - start) < 0.01


def _wait_for_an_answer(server: Process) -> None:
    """Until a request is answered: the one that finds its process dead is told so."""
    made = Abuser(server.port, seed=6)
    for _ in range(200):
        _, head, body = made.question()
        status, told = asyncio.run(asyncio.wait_for(made.exchange(head + body), 60))
        if status == 200:
            return
        assert json.loads(told)["error"]
        time.sleep(0.1)
    raise AssertionError("no answer after a crash")


def test_an_engine_that_crashes_its_process(root: Path) -> None:
    with process(root, "--isolation", "process") as server:
        check(abuse(server, 50), server)
        for _ in range(3):
            old = server.children()
            for child in old:
                child.send_signal(signal.SIGSEGV)
            assert server.live()
            time.sleep(0.3)
            _wait_for_an_answer(server)
            server.wait_ready()
        made = Abuser(server.port, seed=5)
        asyncio.run(made.run(100))
        check(made, server)


def test_a_crash_in_the_middle_of_a_batch(tmp_path: Path) -> None:
    """Only those of the batch are told so; who waited for the next one gets its own answer."""
    serve_models.save_null(tmp_path / "mlp/1/model.redline", "slow", seconds=1.0)
    (tmp_path / "mlp/config.json").write_text('{"max_batch_size": 4}')
    with process(tmp_path, "--trust", "--isolation", "process") as server:
        stats = f"http://127.0.0.1:{server.port}/v2/models/mlp/stats"
        made = Abuser(server.port, seed=9)
        asked = [made.question() for _ in range(9)]

        async def kill() -> None:
            while httpx.get(stats).json()["model_stats"][0]["execution_count"] < 1:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)  # the next batch, of four, is running
            for child in server.children():
                child.send_signal(signal.SIGSEGV)

        async def run() -> list[tuple[int, bytes]]:
            asking = [asyncio.create_task(made.exchange(head + body)) for _, head, body in asked]
            await asyncio.gather(kill(), *asking)
            return [task.result() for task in asking]

        answers = asyncio.run(asyncio.wait_for(run(), 60))
        failed = [told for status, told in answers if status != 200]
        assert len(failed) == 4
        assert all(json.loads(told)["error"] for told in failed)
        for (x, _, _), (status, told) in zip(asked, answers, strict=True):
            if status == 200:
                y = np.array(json.loads(told)["outputs"][0]["data"], np.float32)
                right = serve_models.expected(x).ravel()
                assert np.allclose(y, right, rtol=1e-4, atol=1e-4)
        server.wait_ready()


def test_an_engine_that_hangs(root: Path) -> None:
    with process(root, "--isolation", "process", "--run-timeout", "2") as server:
        check(abuse(server, 30), server)
        for child in server.children():
            child.send_signal(signal.SIGSTOP)
        made = Abuser(server.port, seed=6)
        _, head, body = made.question()
        status, told = asyncio.run(asyncio.wait_for(made.exchange(head + body), 60))
        assert status >= 500
        assert json.loads(told)["error"]
        assert server.live()
        server.wait_ready()
        check(abuse(server, 50, seed=7), server)


def test_a_load_with_no_room_on_the_disk(root: Path) -> None:
    """Files of a load are written to a folder of the server's; no file may grow past 1 kB there."""
    model = (root / "mlp/1/model.onnx").read_bytes() + b"\0" * 100_000
    limit = ("prlimit", "--fsize=1024")
    if shutil.which("prlimit") is None:
        pytest.skip("needs prlimit of util-linux")
    options = ("--mode", "explicit", "--load", "*", "--allow-control")
    server = Process(root, *options, prefix=limit)
    try:
        import base64

        parameters = {
            "config": "{}", "file:1/model.onnx": base64.b64encode(model).decode(),
        }  # fmt: skip
        told = httpx.post(
            f"http://127.0.0.1:{server.port}/v2/repository/models/mlp/load",
            json={"parameters": parameters}, timeout=60,
        )  # fmt: skip
        assert told.status_code >= 400
        assert "failed to load" in told.json()["error"]
        assert "/tmp" not in told.text
        check(abuse(server, 50), server)
    finally:
        server.terminate()
        server.close()


@pytest.mark.slow
def test_two_hundred_models(tmp_path: Path) -> None:
    for number in range(200):
        serve_models.save(
            tmp_path / f"m{number}/1/model.onnx", serve_models.mlp(scale=1.0 + number)
        )
    with process(tmp_path, "--threads", "1") as server:
        x = np.linspace(-1, 1, 8, dtype=np.float32)[None]
        spec = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": x.ravel().tolist()}
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
            assert len(client.post("/v2/repository/index").json()) == 200
            for number in np.random.default_rng(0).integers(0, 200, 600):
                told = client.post(f"/v2/models/m{number}/infer", json={"inputs": [spec]}).json()
                y = np.array(told["outputs"][0]["data"], np.float32)
                right = serve_models.expected(x, 1.0 + number).ravel()
                assert np.allclose(y, right, rtol=1e-4, atol=1e-4)
            assert len(client.get("/metrics").text.splitlines()) > 2000
            assert client.get("/page/state").json()["ready"]
        assert server.live()
