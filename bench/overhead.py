"""Claim: calling an engine costs less than 5 µs more than calling its backend directly.

    python bench/overhead.py

The smallest network of the zoo, so that the call dominates: the same ONNX Runtime and OpenVINO
objects are called through the engine and directly, in turns, with NumPy and with torch inputs.
"""

from __future__ import annotations

import time

import numpy as np
import torch

import redline
from models import mlp
from redline.measure.statistics import interval

CALLS, ROUNDS = 2000, 41


def seconds(call, argument) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        call(argument)
    return (time.perf_counter() - start) / CALLS


def measure(backend: str) -> None:
    module, example = mlp()
    engine = redline.optimize(module, example, backends=[backend], budget="30s", use_cache=False)
    run = engine._session.run
    array, tensor = example.numpy(), example
    raw = np.ascontiguousarray(array)

    def direct(x: np.ndarray) -> list[np.ndarray]:
        return run([x])

    rows = {"numpy": [], "torch": []}
    for _ in range(ROUNDS):
        base = seconds(direct, raw)
        rows["numpy"].append(seconds(engine, raw) - base)
        rows["torch"].append(seconds(engine, tensor) - seconds(direct, raw))
    for kind, extra in rows.items():
        middle, low, high = (value * 1e6 for value in interval(extra))
        print(f"| {backend} | {kind} | {middle:.2f} µs ({low:.2f} to {high:.2f}) |")


def main() -> None:
    torch.manual_seed(0)
    print("| backend | inputs | engine call minus backend call |\n|---|---|---|")
    for backend in ("onnxruntime", "openvino"):
        measure(backend)


if __name__ == "__main__":
    main()
