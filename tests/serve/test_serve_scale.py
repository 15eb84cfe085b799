"""Replicas on a local Ray: placed, watched, scaled by their load, and ended in order."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import serve_models
from faults import Abuser

from redline.errors import InputError, MissingError
from redline.serve import exposition, scale
from redline.serve.operator import Options
from redline.serve.settings import Settings

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install 'redline[ray]'")
SCRIPT = """
import sys
from pathlib import Path
from redline.serve.operator import Options
from redline.serve.scale import Scale, run
from redline.serve.settings import Settings
root, cpus = sys.argv[1:]
scale = Scale(1, 2, cpus=float(cpus), load=2.0, up_seconds=1.0, down_seconds=3.0,
              window_seconds=4.0)
told = ["serve", root, "--threads", "1", "--timeout-ms", "20000"]
run(Settings(models=Path(root), http_port=0, grpc_port=0), Options(), scale, told,
    lambda text: print(text, file=sys.stderr, flush=True))
"""


class Driver:
    """`redline serve --ray` in a process of its own, on a Ray of its own."""

    def __init__(self, command: list[str]) -> None:
        environment = os.environ | {
            "RAY_ADDRESS": "local",  # never a cluster that somebody else started
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
            "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_RECORD_INTERVAL_S": "0.5",
        }
        self.popen = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, bufsize=1, env=environment
        )
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stderr
        for line in self.popen.stderr:
            self.said.append(line)

    def wait_for(self, pattern: str, seconds: float = 120, after: int = 0) -> re.Match[str]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(pattern, "".join(self.said[after:])):
                return found
            assert self.popen.poll() is None, "".join(self.said)
            time.sleep(0.1)
        raise AssertionError(f"{pattern} never came: {''.join(self.said)}")

    @property
    def port(self) -> int:
        return int(self.wait_for(r"replicas on [^:]+:(\d+)")[1])

    def servers(self) -> list[psutil.Process]:
        """The server processes of this driver's replicas."""
        port = str(self.port)
        return [
            one for one in psutil.process_iter(["cmdline"])
            if "--worker" in (one.info["cmdline"] or []) and port in one.info["cmdline"]
        ]  # fmt: skip

    def end(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(90)
        finally:
            self.popen.kill()
            self.reader.join(30)
            assert self.popen.stderr
            self.popen.stderr.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    serve_models.save(tmp_path / "models/mlp/1/model.onnx", serve_models.mlp())
    return tmp_path / "models"


@pytest.fixture
def start() -> Iterator[Callable[..., Driver]]:
    made: list[Driver] = []

    def begin(*command: str) -> Driver:
        made.append(Driver([sys.executable, *command]))
        return made[-1]

    yield begin
    for one in made:
        one.end()


def ask(driver: Driver, count: int, seed: int = 0) -> Counter[str]:
    """Questions over connections of their own, each answer held against its question."""
    made, told = Abuser(driver.port, seed), Counter[str]()

    async def one(gate: asyncio.Semaphore) -> None:
        async with gate:
            told[await made.good()] += 1

    async def run() -> None:
        gate = asyncio.Semaphore(8)
        await asyncio.gather(*[one(gate) for _ in range(count)])

    asyncio.run(asyncio.wait_for(run(), 120))
    assert made.wrong == []
    return told


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_command_places_replicas_replaces_them_and_ends(
    root: Path, start: Callable[..., Driver]
) -> None:
    """Two replicas share a port; one that dies is made anew; SIGTERM leaves no process."""
    options = ("--ray", "--replicas", "2", "--replica-cpus", "0.5", "--threads", "1")
    ports = ("--http-port", "0", "--grpc-port", "0")
    driver = start("-m", "redline", "serve", str(root), *options, *ports)
    driver.wait_for("2 replicas serve")
    assert ask(driver, 200) == {"200": 200}
    servers = driver.servers()
    assert len(servers) == 2
    assert not [one for one in servers if not _listens(one, driver.port)]
    actor = servers[0].parent()
    assert actor is not None
    assert not _listens(actor, 0)  # no request goes through Ray
    mark = len(driver.said)
    actor.kill()
    driver.wait_for("1 replicas serve", after=mark)
    driver.wait_for("2 replicas serve", after=mark)
    new = driver.servers()
    assert len({one.pid for one in new} - {one.pid for one in servers}) == 1
    assert ask(driver, 100, seed=1)["200"] == 100
    assert driver.end() == 0
    assert not [one for one in new if one.is_running()]


def _listens(process: psutil.Process, port: int) -> bool:
    """Whether it listens on the port, or for 0 on any of HTTP that Ray Serve's proxy would use."""
    mine = {c.laddr.port for c in process.net_connections("tcp") if c.status == "LISTEN"}
    return port in mine if port else bool(mine & {8000, 9000})


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_load_brings_a_replica_and_quiet_takes_it(root: Path, start: Callable[..., Driver]) -> None:
    """Nothing that was accepted is lost when a replica goes."""
    # A batch waits for half a second, so that a few clients are a load.
    (root / "mlp/config.pbtxt").write_text(
        "max_batch_size: 8 dynamic_batching { preferred_batch_size: [ 8 ] "
        "max_queue_delay_microseconds: 500000 }"
    )
    driver = start("-c", SCRIPT, str(root), "0.5")
    driver.wait_for("1 replicas serve")
    stop, told = threading.Event(), Counter[str]()
    wrong: list[str] = []

    def load() -> None:
        made = Abuser(driver.port, seed=7)

        async def ask() -> None:
            while not stop.is_set():
                told[await made.good()] += 1

        async def run() -> None:
            await asyncio.gather(*[ask() for _ in range(6)])

        asyncio.run(run())
        wrong.extend(made.wrong)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        driver.wait_for("2 replicas serve")
        assert len(driver.servers()) == 2
    finally:
        stop.set()
        thread.join(60)
    mark = len(driver.said)
    driver.wait_for("1 replicas serve", after=mark)
    assert ask(driver, 20, seed=8) == {"200": 20}
    assert wrong == []
    assert set(told) == {"200"}
    assert driver.end() == 0


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_replicas_that_cannot_start_are_one_error(root: Path, start: Callable[..., Driver]) -> None:
    (root / "mlp/1/model.onnx").write_bytes(b"no model")
    ports = ("--http-port", "0", "--grpc-port", "0")
    driver = start("-m", "redline", "serve", str(root), "--ray", *ports)
    assert driver.popen.wait(240) == 1
    said = "".join(driver.said)
    assert "error: the replicas do not start" in said
    assert "Traceback" not in said


@pytest.mark.skipif(HAS_RAY, reason="Ray is here")
def test_without_ray_it_is_one_error(root: Path) -> None:
    with pytest.raises(MissingError, match="ray") as caught:
        scale.run(Settings(models=root), Options(), scale.Scale(), [], print)
    assert "redline[ray]" in str(caught.value)


def test_what_would_reach_one_replica_only_is_refused(root: Path) -> None:
    settings = Settings(models=root, mode="explicit")
    with pytest.raises(InputError, match="reach one of them"):
        scale.run(settings, Options(), scale.Scale(), [], print)


@pytest.mark.parametrize("text", ["", "x", "0", "3:2", "1:2:3", "1:-1"])
def test_replicas_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="replicas are"):
        scale.Scale.of(text)


def metrics(spent_us: float, waiting: int) -> str:
    spent = exposition.Family("nv_inference_request_duration_us", "counter", "x")
    spent.add(spent_us / 2, model="a")
    spent.add(spent_us / 2, model="b")
    pending = exposition.Family("nv_inference_pending_request_count", "gauge", "x")
    pending.add(waiting, model="a")
    return exposition.text([spent, pending])


def test_the_load_is_littles_law() -> None:
    """Ten requests at once for two seconds spend twenty seconds; a restart counts from zero."""
    now = [0.0]
    load = scale.Load(lambda: now[0])
    now[0] = 2.0
    assert load(metrics(20e6, 0)) == pytest.approx(10)
    now[0] = 4.0
    assert load(metrics(20e6, 3)) == 3  # three wait, none has ended
    now[0] = 6.0
    assert load(metrics(1e6, 0)) == 0
    now[0] = 7.0
    assert load(metrics(3e6, 0)) == pytest.approx(2)


@pytest.mark.parametrize(("loads", "count"), [([], 1), ([0.0], 1), ([4.1], 2), ([4, 4, 1], 3)])
def test_replicas_follow_the_load(loads: list[float], count: int) -> None:
    context = SimpleNamespace(
        aggregated_metrics={scale.METRIC: dict(enumerate(loads))} if loads else {},
        config=SimpleNamespace(target_ongoing_requests=4.0),
    )
    assert scale.wanted(context)[0] == max(1, math.ceil(sum(loads) / 4)) == count
