"""The load tool of bench/serve.py: h2load of nghttp2, closed-loop clients, the same for all.

Written in C, it takes a tenth of a core where a client in Python would take more than the server
that is measured. Each client has a connection of its own and one request at a time, over HTTP/1.1
or, for gRPC, HTTP/2 without TLS; its log has the time of every request.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WARM = 1  # seconds that are not counted
_DATA = re.compile(r"traffic:.*\((\d+)\) data")


@dataclass(frozen=True)
class Way:
    """One way to ask a server: its request, as it goes over the wire."""

    url: str
    body: bytes
    headers: tuple[str, ...] = ("content-type: application/json",)
    grpc: bool = False


@dataclass(frozen=True)
class Load:
    """What clients saw: answers a second, microseconds, and requests that failed."""

    rate: float
    p50: float
    p99: float
    failed: int

    def cell(self) -> str:
        text = f"{self.rate:.0f} ({micro(self.p50)}, {micro(self.p99)})"
        return f"{text}, {self.failed} failed" if self.failed else text


def micro(value: float) -> str:
    return f"{value / 1000:.3g} ms" if value >= 1000 else f"{value:.0f} µs"


def framed(message: bytes) -> bytes:
    """A message as gRPC has it in the body of a request."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def ask(way: Way) -> int:
    """Bytes of one answer; raises where there is none, so that no errors are counted as answers."""
    if way.grpc:
        import grpc

        host, _, method = way.url.removeprefix("http://").partition("/")
        with grpc.insecure_channel(host) as channel:
            return 5 + len(channel.unary_unary("/" + method)(way.body[5:], timeout=60))
    headers = dict(line.split(": ", 1) for line in way.headers)
    request = urllib.request.Request(way.url, way.body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return len(answer.read())


def measure(way: Way, clients: int, seconds: int) -> Load:
    """So many clients for so long."""
    if shutil.which("h2load") is None:
        raise SystemExit("the load tool is missing: apt install nghttp2-client")
    size = ask(way)
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(way.body)
        command = [
            "h2load", "-c", str(clients), "-m", "1", "-D", str(seconds),
            "--warm-up-time", str(WARM), "-d", str(body), f"--log-file={log}",
            *(("-p", "h2c") if way.grpc else ("--h1",)),
            *(part for line in way.headers for part in ("-H", line)), way.url,
        ]  # fmt: skip
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    times = np.array([int(took) for _, status, took in rows if status == "200"])
    failed = len(rows) - len(times)
    if way.grpc and int(_DATA.search(told)[1]) < 0.99 * len(times) * size:
        failed = len(times)  # a gRPC error is a 200 without data
    p50, p99 = np.percentile(times, [50, 99]) if len(times) else (float("nan"),) * 2
    return Load(len(times) / seconds, float(p50), float(p99), failed)
