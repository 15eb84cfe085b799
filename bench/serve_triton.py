"""Claim: one client waits no longer for `redline serve` than for pytriton (docs/serving.md).

    REDLINE_PYTRITON=ENV python bench/serve_triton.py

ENV is an environment with nvidia-pytriton; its wheel carries NVIDIA's server. All serve Triton's
example model "simple", sums and differences of sixteen int32: pytriton as a function in Python;
Triton alone in its Python backend, the only one of the wheel (tests/serve/triton_oracle.py);
ours in ONNX Runtime. The requests are the same bytes, to each server in turns.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "serve"))

import serve_models
from triton_oracle import triton

from redline.serve.proto import SERVICE, message
from serve import OCTETS, free_port, local, started
from serve_load import Way, framed, measure, micro

ROUNDS, SECONDS = 5, 3
ROW = np.arange(16, dtype=np.int32)
INPUTS = [{"name": name, "shape": [1, 16], "datatype": "INT32"} for name in ("INPUT0", "INPUT1")]


def rest(port: int) -> Way:
    told = [one | {"parameters": {"binary_data_size": ROW.nbytes}} for one in INPUTS]
    text = json.dumps({"inputs": told, "parameters": {"binary_data_output": True}}).encode()
    headers = (*OCTETS, f"inference-header-content-length: {len(text)}")
    return Way(local(port, "/v2/models/simple/infer"), text + 2 * ROW.tobytes(), headers)


def rpc(port: int) -> Way:
    wire = message("ModelInferRequest")(model_name="simple")
    for one in INPUTS:
        wire.inputs.add(**one)
        wire.raw_input_contents.append(ROW.tobytes())
    headers = ("content-type: application/grpc", "te: trailers")
    url = local(port, f"/{SERVICE}/ModelInfer")
    return Way(url, framed(wire.SerializeToString()), headers, grpc=True)


@contextlib.contextmanager
def serving(home: Path) -> Iterator[dict[str, tuple[int, int]]]:
    """Ports for HTTP and gRPC of each server."""
    models, python = home / "models", Path(os.environ["REDLINE_PYTRITON"], "bin", "python")
    serve_models.save(models / "simple/1/model.onnx", serve_models.add_sub())
    ours, theirs = (free_port(), free_port()), (free_port(), free_port())
    command = [
        sys.executable, "-m", "redline", "serve", str(models), "--http-port", str(ours[0]),
        "--grpc-port", str(ours[1]), "--threads", "1",
    ]  # fmt: skip
    pytriton = [str(python), "serve_pytriton.py", *map(str, theirs)]
    path = f"{python.parent}:{os.environ['PATH']}"
    environment = {
        "PATH": path, "VIRTUAL_ENV": str(python.parents[1]), "PYTHONPATH": "",
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR"),  # of the Python that its stub finds
    }  # fmt: skip
    with (
        started(command, ours[0], "/v2/health/ready", {}),
        triton(home / "triton") as alone,
        started(pytriton, theirs[0], "/v2/models/simple/ready", environment),
    ):
        time.sleep(5)  # it answers before its model is there
        yield {"Redline": ours, "pytriton": theirs, "Triton": alone}


def main() -> None:
    if not Path(os.environ.get("REDLINE_PYTRITON", ""), "bin", "python").is_file():
        raise SystemExit(
            "REDLINE_PYTRITON names no environment with nvidia-pytriton; "
            "tests/serve/triton_oracle.py says how to make one"
        )
    with tempfile.TemporaryDirectory() as home, serving(Path(home)) as ports:
        print("| one client | server | median (p99) | over Redline |\n|---|---|---|---|")
        for label, way, which in (("REST, binary", rest, 0), ("gRPC", rpc, 1)):
            ways = {name: way(both[which]) for name, both in ports.items()}
            rounds = [
                {name: measure(one, 1, SECONDS) for name, one in ways.items()}
                for _ in range(ROUNDS)
            ]
            for name in ways:
                p50, p99 = (
                    micro(np.median([getattr(row[name], part) for row in rounds]))
                    for part in ("p50", "p99")
                )
                ratios = sorted(row[name].p50 / row["Redline"].p50 for row in rounds)
                span = f"{np.median(ratios):.2f}× ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                failed = sum(row[name].failed for row in rounds)
                told = f", {failed} failed" if failed else ""
                print(f"| {label} | {name} | {p50} ({p99}) | {span}{told} |", flush=True)


if __name__ == "__main__":
    main()
