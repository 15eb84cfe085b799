"""Programs of Triton's clients, each as a process of its own, against one `redline serve`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tritonclient.grpc")
pytest.importorskip("tritonclient.http.aio")

import serve_models
import triton_programs
from faults import Process, process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    root = tmp_path_factory.mktemp("simple")
    serve_models.save(root / "simple/1/model.onnx", serve_models.add_sub())
    options = ("--mode", "explicit", "--load", "*", "--allow-control", "--shared-memory")
    with process(root, *options) as running:
        yield running


@pytest.mark.parametrize("name", triton_programs.PROGRAMS)
def test_a_program_of_tritonclient(server: Process, name: str) -> None:
    where = (f"127.0.0.1:{server.port}", f"127.0.0.1:{server.rpc}")
    program = Path(triton_programs.__file__)
    told = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", str(program), name, *where],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    assert told.stdout.endswith("PASS\n")
