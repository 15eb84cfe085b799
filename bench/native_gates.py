"""Claims: a native call costs 1.5 µs at most, a GEMM reaches 90 % of the peak, a build takes 90 s.

    python bench/native_gates.py            # all three, about two minutes
    python bench/native_gates.py call gemm

The peak is the machine card's, measured by multiply-adds on registers; a product's time is the
least of many calls of a model that is that product alone, with its weights packed at build.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir
from onnx import helper, numpy_helper

from models import ZOO
from redline import machine
from redline.capture.capture import capture
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.graph import serialize
from redline.native import isa
from redline.native.compile import compile_graph, tune_graph
from redline.native.tune import Model
from redline.runtime.run_native import open_part
from redline.runtime.session import Session
from redline.signature import Signature, TensorSpec
from redline.tree import Tree

SIZES = [(96, 256, 256), (128, 768, 768), (128, 3072, 768), (197, 1536, 384), (256, 1024, 1024)]
SIZES += [(512, 512, 512), (1024, 1024, 1024)]


def graph(
    nodes: list, shape: tuple[int, ...], out: tuple[int, ...], weights: dict
) -> onnx_ir.Model:
    made = helper.make_graph(
        nodes,
        "gate",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, out)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return onnx_ir.serde.deserialize_model(helper.make_model(made))


def target() -> isa.Isa:
    return isa.usable(sorted(machine.isa_flags()))[0]


def call() -> None:
    """The smallest model: one float in, one float out."""
    print("| call of an empty model | µs |\n|---|---:|")
    model = graph([helper.make_node("Identity", ["x"], ["y"])], (1,), (1,), {})
    leaf = Tree()
    inputs, outputs = ((TensorSpec(name, "float32", (1,)),) for name in "xy")
    signature = Signature(inputs, outputs, Tree("dict", ("x",), (leaf,)), leaf)
    with tempfile.TemporaryDirectory() as folder:
        compile_graph(model, target(), 1, Path(folder))
        part = Part("native", {"threads": 1}, files=("model.so", "weights.bin"))
        runner = open_part(part, FolderStore(Path(folder)), signature)
        session, x = Session(runner, signature), np.ones(1, np.float32)
        arrays = [x]
        for name, once in (
            ("the runner, as a backend is timed", lambda: runner.run(arrays)),
            ("the engine, arguments bound and checked", lambda: session(x)),
        ):
            times = []
            for _ in range(50):
                start = time.perf_counter()
                for _ in range(2000):
                    once()
                times.append((time.perf_counter() - start) / 2000)
            print(f"| {name} | {np.median(times) * 1e6:.2f} |")


def gemm() -> None:
    """Products with constant weights, bias and ReLU, on every core."""
    peak, threads = machine.card().peak_flops, machine.card().cores
    print(
        f"peak {peak / 1e9:.0f} GFLOP/s\n\n"
        "| M × N × K | µs | GFLOP/s | of the peak |\n|---|---:|---:|---:|"
    )
    random = np.random.default_rng(0)
    for m, n, k in SIZES:
        weights = {
            "w": random.standard_normal((k, n), np.float32),
            "b": random.standard_normal(n, np.float32),
        }
        nodes = [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"]),
            helper.make_node("Relu", ["h"], ["y"]),
        ]
        x = random.standard_normal((m, k), np.float32)
        with tempfile.TemporaryDirectory() as folder:
            compile_graph(graph(nodes, x.shape, (m, n), weights), target(), threads, Path(folder))
            model = Model(Path(folder), [x])
            took = min(model.call() for _ in range(400))
            model.close()
        rate = 2 * m * n * k / took
        print(
            f"| {m} × {n} × {k} | {took * 1e6:.0f} | {rate / 1e9:.0f} | {rate / peak:.0%} |",
            flush=True,
        )


def build() -> None:
    """ResNet-50, objects not in the cache, with tuning and without, then once more."""
    name, factory = ZOO["resnet50"]
    module, example = factory()
    captured = capture(module, example)
    threads, inputs = machine.card().cores, [np.ascontiguousarray(a) for a in captured.example]
    print(f"| build of {name} | s |\n|---|---:|")
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        os.environ["REDLINE_CACHE_DIR"] = cache
        path = Path(folder) / "graph.onnx"
        path.write_bytes(serialize.to_bytes(captured.graph))
        for what, tuned in (("cold, default schedules", False), ("cold, tuned", True)):
            start = time.perf_counter()
            graph = onnx_ir.load(path)
            choices = tune_graph(graph, target(), threads, inputs, winograd=True) if tuned else {}
            compile_graph(graph, target(), threads, Path(folder), winograd=True, choices=choices)
            print(f"| {what} | {time.perf_counter() - start:.1f} |", flush=True)
        start = time.perf_counter()
        graph = onnx_ir.load(path)
        compile_graph(graph, target(), threads, Path(folder), winograd=True, choices=choices)
        print(f"| objects from the cache | {time.perf_counter() - start:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    gates = {"call": call, "gemm": gemm, "build": build}
    parser.add_argument("gates", nargs="*", default=list(gates), metavar="gate")
    for gate in parser.parse_args().gates:
        if gate not in gates:
            sys.exit(f"no gate {gate!r}; there are {', '.join(gates)}")
        gates[gate]()
        print()


if __name__ == "__main__":
    main()
