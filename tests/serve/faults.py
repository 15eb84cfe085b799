"""A server process under abuse: what clients do wrong, and what must hold afterwards.

Every good request has an input of its own, so an answer that belongs to another is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import serve_models

GROWTH = 5 << 20  # bytes that a server may grow by after its warm-up
ROW = 8  # numbers of one request to the mlp
NAMES = (
    "..", "../../etc/passwd", "%2e%2e", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "a/../mlp",
    "%00", "mlp%00", "%0a%0dforged", "%20", "mlp%20", "A" * 5000, "%ff%fe", "\u202emlp", "mlp/",
    "%5c..%5c..", "~root", "$(id)", "mlp;id", "{}", "<script>", "CON", ".", "...", "mlp%2f1",
)  # fmt: skip
BODIES = (
    b"", b"{", b"null", b"[]", b"{}", b'{"inputs": 1}', b'{"inputs": [1]}', b'{"inputs": []}',
    b'{"inputs":[{"name":"x"}]}', b"[" * 100_000, b'{"a":' * 50_000, b"\xff" * 100, b"\0" * 100,
    b'{"inputs":[{"name":"x","shape":[1,8],"datatype":"FP32","data":[1]}]}',
    b'{"inputs":[{"name":"x","shape":[-1,8],"datatype":"FP32","data":[]}]}',
    b'{"inputs":[{"name":"x","shape":[4294967296,4294967296],"datatype":"FP32","data":[]}]}',
    b'{"inputs":[{"name":"x","shape":[1,8],"datatype":"FP99","data":[1,2,3,4,5,6,7,8]}]}',
    b'{"inputs":[{"name":"x","shape":[1,8],"datatype":"FP32","data":["a",2,3,4,5,6,7,8]}]}',
    b'{"inputs":[{"name":"q","shape":[1,8],"datatype":"FP32","data":[1,2,3,4,5,6,7,8]}]}',
    b'{"inputs":[{"name":"x","shape":[1,9],"datatype":"FP32","data":[1,2,3,4,5,6,7,8,9]}]}',
    (b'{"inputs":[{"name":"x","shape":[1,8],"datatype":"FP32","parameters":'
    b'{"binary_data_size":99999999999}}]}'),
)  # fmt: skip
_HOST = re.compile(rb"/(?:tmp|work|home|root|usr|var)/[a-z]|Traceback|\.py\b")


class Abuser:
    """Sends requests of every kind to one server and counts how they ended.

    Attributes:
        ended: how many requests of each kind ended how.
        wrong: what must never happen, in words.
    """

    def __init__(self, port: int, seed: int, model: str = "mlp") -> None:
        self.port, self.model = port, model
        self.random = random.Random(seed)
        self.ended: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []
        self.kinds = {
            "good": self.good, "cancel": self.cancel, "cut": self.cut, "malformed": self.malformed,
            "oversize": self.oversize, "name": self.name, "slow": self.slow, "noise": self.noise,
        }  # fmt: skip

    async def run(self, count: int, at_once: int = 16) -> None:
        """So many requests, half of them good, over so many connections at once."""
        gate = asyncio.Semaphore(at_once)

        async def one() -> None:
            kind = self.random.choice((*self.kinds, *("good",) * 7))
            async with gate:
                try:
                    told = await asyncio.wait_for(self.kinds[kind](), 60)
                except TimeoutError:
                    told = "hung"
                    self.wrong.append(f"{kind}: no end within 60 s")
                except (ConnectionError, asyncio.IncompleteReadError) as error:
                    told = type(error).__name__
                    if kind == "good":
                        self.wrong.append(f"good: lost, {told}")
                self.ended[kind, told] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(one())

    async def good(self) -> str:
        """One answer, and its own."""
        x, head, body = self.question()
        status, told = await self.exchange(head + body)
        if status == 503:
            return "503"
        if status != 200:
            self.wrong.append(f"good: status {status}: {told[:200]!r}")
            return str(status)
        y = np.array(json.loads(told)["outputs"][0]["data"], np.float32).reshape(1, 4)
        if not np.allclose(y, serve_models.expected(x), rtol=1e-4, atol=1e-4):
            self.wrong.append(f"another's answer: {y} to {x}")
        return "200"

    def question(self) -> tuple[np.ndarray, bytes, bytes]:
        """An input, and its request by the binary extension or as JSON."""
        x = np.array([[self.random.uniform(-9, 9) for _ in range(ROW)]], np.float32)
        spec: dict[str, object] = {"name": "x", "shape": [1, ROW], "datatype": "FP32"}
        extra = b""
        if self.random.random() < 0.5:
            text = json.dumps({"inputs": [spec | {"data": x.ravel().tolist()}]}).encode()
            body = text
        else:
            text = json.dumps(
                {"inputs": [spec | {"parameters": {"binary_data_size": x.nbytes}}]}
            ).encode()
            body = text + x.tobytes()
            extra = b"inference-header-content-length: %d\r\n" % len(text)
        return x, self.head(len(body), extra), body

    def head(self, length: int, extra: bytes = b"", model: str = "") -> bytes:
        path = f"/v2/models/{model or self.model}/infer".encode()
        start = b"POST %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n" % path
        return start + extra + b"content-length: %d\r\n\r\n" % length

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            return await self.answer(reader)
        finally:
            writer.close()

    async def answer(self, reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head.lower())[1])  # type: ignore[index]
        return int(head[9:12]), await reader.readexactly(length)

    async def refused(self, what: str, request: bytes) -> str:
        """An error that says why and nothing of this host; the server may also hang up early."""
        status, told = await self.exchange(request)
        if not 400 <= status < 500 and status != 503:
            self.wrong.append(f"{what}: status {status}: {told[:200]!r}")
        if not json.loads(told).get("error"):
            self.wrong.append(f"{what}: no error in {told[:200]!r}")
        if _HOST.search(told):
            self.wrong.append(f"{what}: tells of the host: {told[:300]!r}")
        return str(status)

    async def cancel(self) -> str:
        """Ask and leave."""
        _, head, body = self.question()
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(head + body)
        await asyncio.sleep(self.random.random() * 0.01)
        self._drop(writer)
        return "left"

    async def cut(self) -> str:
        """Leave in the middle of the body, or of the headers."""
        _, head, body = self.question()
        whole = head + body
        _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(whole[: self.random.randrange(len(whole))])
        await asyncio.sleep(self.random.random() * 0.01)
        self._drop(writer)
        return "left"

    def _drop(self, writer: asyncio.StreamWriter) -> None:
        if self.random.random() < 0.5:  # with a reset, as a process that was killed
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(1, 13, struct.pack("ii", 1, 0))
        writer.close()

    async def malformed(self) -> str:
        body = self.random.choice(BODIES)
        extra = b""
        if self.random.random() < 0.3:
            value = self.random.choice([b"-1", b"99999999999999", b"x", b"%d" % (len(body) + 1)])
            extra = b"inference-header-content-length: " + value + b"\r\n"
        return await self.refused(f"malformed {body[:60]!r}", self.head(len(body), extra) + body)

    async def oversize(self) -> str:
        choice = self.random.randrange(3)
        if choice == 0:
            return await self.refused("body of 10 GB", self.head(10 << 30))
        if choice == 1:
            request = self.head(2, b"x: " + b"a" * 40_000 + b"\r\n") + b"{}"
            return await self.refused("headers of 40 kB", request)
        extra = b"content-encoding: gzip\r\n"
        bomb = b"\x1f\x8b\x08" + b"\0" * 7 + b"\xff" * 1000
        return await self.refused("broken gzip", self.head(len(bomb), extra) + bomb)

    async def name(self) -> str:
        name = self.random.choice(NAMES)
        _, _, body = self.question()
        return await self.refused(f"name {name[:40]!r}", self.head(len(body), b"", name) + body)

    async def slow(self) -> str:
        """A good request, read a few bytes at a time."""
        _, head, body = self.question()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=64)
        writer.write(head + body)
        size = 0
        while block := await reader.read(16):
            size += len(block)
            await asyncio.sleep(0.001)
        writer.close()
        if not size:
            self.wrong.append("slow: no answer")
        return "read"

    async def noise(self) -> str:
        """What is no HTTP at all."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(self.random.randbytes(self.random.randrange(1, 2000)) + b"\r\n\r\n")
        writer.write_eof()
        await reader.read(4096)
        writer.close()
        return "done"


class Process:
    """`redline serve` as a process of its own."""

    def __init__(self, root: Path, *options: str, prefix: tuple[str, ...] = ()) -> None:
        command = [
            *prefix, sys.executable, "-m", "redline", "serve", str(root), "--http-port", "0",
            "--grpc-port", "0", *options,
        ]  # fmt: skip
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, bufsize=1)
        self.said: list[str] = []
        self.port = self._port()

    def _port(self) -> int:
        assert self.popen.stderr
        for line in self.popen.stderr:
            self.said.append(line)
            if found := re.search(r"models on https?://[^:]+:(\d+)", line):
                self.said.append(rpc := self.popen.stderr.readline())
                self.rpc = int(rpc.rpartition(":")[2])
                self.reader = threading.Thread(target=self._drain, daemon=True)
                self.reader.start()
                return int(found[1])
        raise AssertionError("".join(self.said))

    def close(self) -> None:
        """After its end: nothing of it stays open."""
        self.reader.join(30)
        assert self.popen.stderr
        self.popen.stderr.close()

    def _drain(self) -> None:
        assert self.popen.stderr
        self.said.extend(self.popen.stderr)

    @property
    def memory(self) -> int:
        """Resident bytes that are its own: files that it shares do not count."""
        info = psutil.Process(self.popen.pid).memory_info()
        return int(info.rss - info.shared)

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.popen.pid).children(recursive=True)

    def live(self) -> bool:
        import httpx

        return httpx.get(f"http://127.0.0.1:{self.port}/v2/health/live", timeout=30).is_success

    def ready(self) -> bool:
        import httpx

        return httpx.get(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=30).is_success

    def wait_ready(self, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not self.ready():
            assert time.monotonic() < end, "not ready again"
            time.sleep(0.05)

    def terminate(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(60)


@contextlib.contextmanager
def process(root: Path, *options: str) -> Iterator[Process]:
    """A server that is ended, one way or the other."""
    made = Process(root, *options)
    try:
        yield made
    finally:
        if made.popen.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                made.terminate()
        if made.popen.poll() is None:
            made.popen.kill()
            made.popen.wait()
        made.close()


def abuse(server: Process, count: int, seed: int = 0) -> Abuser:
    """So many requests of every kind, half of them good."""
    made = Abuser(server.port, seed)
    asyncio.run(made.run(count))
    return made


def check(made: Abuser, server: Process) -> None:
    """Nothing went wrong, something went right, and the server lives."""
    assert made.wrong == []
    assert made.ended["good", "200"] > 0
    assert server.live()
