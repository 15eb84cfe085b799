"""Runs a model in segments: those of our compiler, and between them what ONNX Runtime takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import RunError
from redline.runtime.run_native import NativeRunner, open_library
from redline.runtime.settings import closed, failed, threads
from redline.signature import Signature

Call = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True)
class Step:
    """One segment in "plan.json": "model-0.so" and "weights-0.bin", or "graph-1.onnx"."""

    foreign: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """The segments in order, the model's own inputs and outputs, and what is left to ONNX Runtime.

    Attributes:
        left: operator -> why the compiler does not take it.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    left: dict[str, str]


class SegmentsRunner:
    """Segment after segment; each array is dropped after the last that reads it."""

    def __init__(self, part: Part, plan: Plan, calls: Sequence[Call], stack: Any) -> None:
        self._part, self._plan, self._calls, self._stack = part, plan, list(calls), stack
        self._last = {name: place for place, s in enumerate(plan.steps) for name in s.inputs}

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if not self._calls:
            raise closed(self._part)
        arrays = dict(zip(self._plan.inputs, inputs, strict=True))
        for place, (step, call) in enumerate(zip(self._plan.steps, self._calls, strict=True)):
            results = call([arrays[name] for name in step.inputs])
            for name in step.inputs:
                if self._last[name] == place and name not in self._plan.outputs:
                    arrays.pop(name, None)
            arrays.update(zip(step.outputs, results, strict=True))
        return [arrays[name] for name in self._plan.outputs]

    @property
    def missed(self) -> list[str]:
        """Which operators ONNX Runtime runs, and why."""
        return [f"{name} is left to ONNX Runtime: {why}" for name, why in self._plan.left.items()]

    def close(self) -> None:
        self._calls = []
        self._stack.close()


def open_segments(part: Part, store: Store, signature: Signature) -> SegmentsRunner:
    """Open the segments that "plan.json" names.

    Raises:
        RunError: the plan cannot be read, or a segment cannot be opened.
    """
    try:
        plan = msgspec.json.decode(bytes(store.read("plan.json")), type=Plan)
    except msgspec.DecodeError as error:
        raise RunError(f"the native part's plan cannot be read: {error}") from error
    if len(plan.inputs) != len(signature.inputs):
        raise RunError(
            f"the native part takes {len(plan.inputs)} inputs, the signature has "
            f"{len(signature.inputs)}"
        )
    calls: list[Call] = []
    with contextlib.ExitStack() as stack:
        for place, step in enumerate(plan.steps):
            if step.foreign:
                calls.append(_foreign(part, store, f"graph-{place}.onnx", step))
                continue
            names = (f"model-{place}.so", f"weights-{place}.bin")
            runner: NativeRunner = open_library(part, store, None, *names)
            stack.callback(runner.close)
            calls.append(runner.run)
        return SegmentsRunner(part, plan, calls, stack.pop_all())


def _foreign(part: Part, store: Store, name: str, step: Step) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads(part)
    options.log_severity_level = 3
    # Its threads would spin on the cores that our next segment needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            bytes(store.read(name)), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise RunError(f"onnxruntime cannot open {name}: {str(error)[:500]}") from error

    def call(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        feed = dict(zip(step.inputs, arrays, strict=True))
        try:
            found: list[np.ndarray] = session.run(list(step.outputs), feed)
        except Exception as error:
            raise failed(part, error) from error
        return found

    return call
