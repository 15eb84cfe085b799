"""NVIDIA's own server beside ours: the one that the wheel of pytriton carries.

REDLINE_PYTRITON names a Python environment with nvidia-pytriton in it (it needs numpy < 2, so it is
no requirement of ours): `python3.11 -m venv env && env/bin/pip install nvidia-pytriton==0.7.0`.
Its server has the Python backend only, so its model is Python where ours is ONNX.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

CONFIG = """
name: "simple"
backend: "python"
max_batch_size: 8
input [ { name: "INPUT0" data_type: TYPE_INT32 dims: [ 16 ] },
        { name: "INPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
output [ { name: "OUTPUT0" data_type: TYPE_INT32 dims: [ 16 ] },
         { name: "OUTPUT1" data_type: TYPE_INT32 dims: [ 16 ] } ]
"""
MODEL = """
import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        x, y = (
            utils.get_input_tensor_by_name(request, name).as_numpy()
            for name in ("INPUT0", "INPUT1")
        )
        outputs = [utils.Tensor("OUTPUT0", x + y), utils.Tensor("OUTPUT1", x - y)]
        return utils.InferenceResponse(outputs)
"""


def _packages() -> Path:
    """The site-packages of the environment with pytriton."""
    home = os.environ.get("REDLINE_PYTRITON")
    if not home:
        pytest.skip("REDLINE_PYTRITON names no environment with nvidia-pytriton")
    found = next(Path(home).glob("lib/python3.11/site-packages/pytriton"), None)
    if found is None:
        pytest.skip(f"{home} has no pytriton for Python 3.11")
    return found.parent


def _free() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


@contextlib.contextmanager
def triton(folder: Path) -> Iterator[tuple[int, int]]:
    """Triton with the model "simple": its ports for HTTP and gRPC."""
    packages = _packages()
    server = packages / "pytriton/tritonserver"
    shutil.copytree(server / "backends/python", folder / "backends/python")
    shutil.copy(
        server / "python_backend_stubs/3.11/triton_python_backend_stub", folder / "backends/python"
    )
    (folder / "models/simple/1").mkdir(parents=True)
    (folder / "models/simple/config.pbtxt").write_text(CONFIG)
    (folder / "models/simple/1/model.py").write_text(MODEL)
    http, grpc = _free(), _free()
    libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    home = packages.parents[2]
    environment = dict(
        os.environ, PYTHONPATH=str(packages), VIRTUAL_ENV=str(home),
        PATH=f"{home / 'bin'}:{os.environ['PATH']}", LD_LIBRARY_PATH=":".join(map(str, libraries)),
    )  # fmt: skip
    command = [
        server / "bin/tritonserver", "--model-repository", folder / "models",
        "--backend-directory", folder / "backends", "--allow-gpu-metrics=false",
        "--allow-metrics=false", "--http-address=127.0.0.1", f"--http-port={http}",
        "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
    try:
        until = time.monotonic() + 60
        while True:
            assert started.poll() is None, (folder / "log").read_text()[-3000:]
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{http}/v2/health/ready").status_code == 200:
                    break
            assert time.monotonic() < until, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield http, grpc
    finally:
        started.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(40)
        if started.poll() is None:
            started.kill()
            started.wait()
