"""Claim: one client waits no longer for `redline serve` than for NVIDIA's Triton (docs/serving.md).

    REDLINE_PYTRITON=ENV python bench/serve_triton.py

ENV is an environment with nvidia-pytriton, whose wheel carries the server (tests/serve/triton_oracle.py
starts it, and says how to make one). Both serve Triton's example model "simple", two sums and two
differences of sixteen int32: Triton in its Python backend, the only one the wheel has, which is also
how pytriton runs a model; ours in ONNX Runtime. The requests are the same bytes, in turns.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "serve"))

import serve_models
from redline.serve.proto import SERVICE, message
from serve import OCTETS, free_port, local, started
from serve_load import Way, framed, measure, micro
from triton_oracle import triton

ROUNDS, SECONDS = 7, 4
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


def main() -> None:
    ours, grpc = free_port(), free_port()
    with tempfile.TemporaryDirectory() as home:
        models = Path(home, "models")
        serve_models.save(models / "simple/1/model.onnx", serve_models.add_sub())
        command = [
            sys.executable, "-m", "redline", "serve", str(models), "--http-port", str(ours),
            "--grpc-port", str(grpc), "--threads", "1",
        ]  # fmt: skip
        with (
            triton(Path(home, "triton")) as (theirs, their_grpc),
            started(command, ours, "/v2/health/ready", {}),
        ):
            ways = {"REST, binary": (rest(ours), rest(theirs)), "gRPC": (rpc(grpc), rpc(their_grpc))}
            print("| one client | Redline, median (p99) | Triton | Triton / Redline |\n|---|---|---|---|")
            for label, both in ways.items():
                found = [[measure(way, 1, SECONDS) for way in both] for _ in range(ROUNDS)]
                cells = [
                    f"{micro(np.median([row[i].p50 for row in found]))} "
                    f"({micro(np.median([row[i].p99 for row in found]))})"
                    for i in (0, 1)
                ]
                ratios = sorted(theirs.p50 / mine.p50 for mine, theirs in found)
                span = f"{np.median(ratios):.2f}× ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                failed = sum(load.failed for row in found for load in row)
                told = f", {failed} failed" if failed else ""
                print(f"| {label} | {cells[0]} | {cells[1]} | {span}{told} |", flush=True)


if __name__ == "__main__":
    main()
