"""What a child does with a part: open it, run it, time it, weigh it. Called by name (see Child)."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.runtime import load
from redline.runtime.runner import Runner, open_part
from redline.signature import Signature

_SAMPLE = 50e-6  # seconds: shorter calls are timed several at once, so that the clock costs < 1 %
_SLOW = 10.0  # seconds: a model slower than this is not called again just to warm up


def open_runner(
    state: dict[str, Any],
    *,
    part: dict[str, Any],
    folder: str,
    graph: str | None,
    signature: dict[str, Any],
) -> float:
    """Open a part that lies in a folder; returns the seconds it took."""
    start = time.perf_counter()
    store = FolderStore(Path(folder), Path(graph) if graph else None)
    state["runner"] = open_part(
        msgspec.convert(part, Part), store, msgspec.convert(signature, Signature)
    )
    return time.perf_counter() - start


def open_engine(state: dict[str, Any], *, path: str, trust: bool) -> str:
    """Open an engine file; returns the backend that runs it."""
    session = load.open_engine(path, trust=trust)
    state["runner"] = session
    return session.part.backend if session.part else ""


def run(state: dict[str, Any], *, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """Run the open part once."""
    runner: Runner = state["runner"]
    return [np.asarray(output) for output in runner.run(inputs)]


def prepare(state: dict[str, Any], *, inputs: list[np.ndarray]) -> float:
    """Bind the inputs to be timed, warm up, and return a first estimate in seconds a call."""
    runner = state["runner"]
    call = _bind(runner, inputs)
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    if once < _SLOW:
        _repeat(call, max(1, min(1000, int(0.05 / max(once, 1e-7)))))
        start = time.perf_counter()
        call()
        once = min(once, time.perf_counter() - start)
    state["call"], state["inner"] = call, max(1, int(_SAMPLE / max(once, 1e-9)))
    return once


def time_block(state: dict[str, Any], *, seconds: float) -> list[float]:
    """Call until `seconds` have passed, at least once; returns seconds a call, one per sample."""
    call, inner = state["call"], state["inner"]
    samples = []
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        _repeat(call, inner)
        stop = time.perf_counter()
        samples.append((stop - start) / inner)
        if stop >= end:
            return samples


def peak_memory(state: dict[str, Any]) -> int:
    """Bytes of this process's resident memory at its highest.

    VmHWM and not ru_maxrss: Linux carries the latter over from the parent through fork and exec.
    """
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _bind(runner: Any, inputs: list[np.ndarray]) -> Callable[[], object]:
    """A call without arguments. In-framework runners convert their inputs once, as users would."""
    bind = getattr(runner, "bind", None)
    return bind(inputs) if bind else lambda: runner.run(inputs)


def _repeat(call: Callable[[], object], times: int) -> None:
    for _ in range(times):
        call()
