"""Claim: redline.load() of a ResNet-18 engine takes under 400 ms beyond importing its backend.

    python bench/load.py

Each load happens in a fresh process in which torch cannot be imported. The clock starts after
`import onnxruntime` (or openvino) and includes importing Redline, verifying every hash and the
signature, opening the part, and the self-test.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import redline
from models import resnet18
from redline.measure.statistics import interval

TIMES = 9
ONE = """
import sys, time
sys.modules["torch"] = None
import numpy, {backend}
start = time.perf_counter()
import redline
engine = redline.load({path!r})
print(time.perf_counter() - start)
"""


def main() -> None:
    module, example = resnet18()
    print("| engine | load |\n|---|---|")
    for backend in ("onnxruntime", "openvino"):
        with tempfile.TemporaryDirectory() as folder:
            engine = redline.optimize(module, example, backends=[backend], budget="60s")
            path = engine.save(Path(folder) / "resnet18.redline")
            engine.close()
            code = ONE.format(backend=backend, path=str(path))
            command = [sys.executable, "-c", code]
            times = [
                float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                for _ in range(TIMES)
            ]
        middle, low, high = (value * 1e3 for value in interval(times))
        print(f"| {backend} | {middle:.0f} ms ({low:.0f} to {high:.0f}) |")


if __name__ == "__main__":
    main()
