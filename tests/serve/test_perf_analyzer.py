"""Triton's load tool against `redline serve`: it asks for metadata, configuration and statistics.

docs/serving.md says where perf_analyzer comes from; it is looked for on the PATH.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import serve_models
from faults import Process, process

MISSING = not shutil.which("perf_analyzer")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(MISSING, reason="perf_analyzer is not on the PATH"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    root = tmp_path_factory.mktemp("simple")
    serve_models.save(root / "simple/1/model.onnx", serve_models.add_sub())
    with process(root, "--shared-memory", "--allow-control") as running:
        yield running


@pytest.mark.parametrize("memory", ["none", "system"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer_completes(
    server: Process, protocol: str, memory: str, tmp_path: Path
) -> None:
    port = server.port if protocol == "http" else server.rpc
    report = tmp_path / "report.csv"
    told = subprocess.run(
        ["perf_analyzer", "-m", "simple", "-u", f"127.0.0.1:{port}", "-i", protocol,
         "--shared-memory", memory, "--concurrency-range", "1:5:4", "-p", "1000", "-s", "900",
         "-f", str(report)],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
    rows = list(csv.DictReader(report.read_text().splitlines()))
    assert {row["Concurrency"] for row in rows} == {"1", "5"}
    assert all(float(row["Inferences/Second"]) > 0 for row in rows)
    assert all(float(row["Server Compute Infer"]) > 0 for row in rows), "from our statistics"
