"""The null backend: plants every way in which a part can go wrong, so that tests can watch.

setting["behaviour"]:
    "echo"    zeros of the outputs' shapes, or what the part's file "outputs.npz" holds
    "right"   the right answer, by ONNX Runtime on graph.onnx
    "wrong"   the right answer plus setting["error"] times its RMS
    "slow"    the right answer after setting["seconds"]
    "nan"     NaN
    "error"   raises RunError
    "crash"   kills its own process with SIGSEGV
    "hang"    never returns
    "memory"  takes memory until it gets no more
"""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable, Sequence

import numpy as np

from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import RunError, UnknownNameError
from redline.signature import Signature

Arrays = Sequence[np.ndarray]
BLOCK = 64 * 1024 * 1024


class NullRunner:
    """Answers as its behaviour says."""

    def __init__(self, part: Part, store: Store, signature: Signature) -> None:
        self._part = part
        self._store = store
        self._signature = signature
        self._right: Callable[[Arrays], list[np.ndarray]] | None = None
        default = "right" if part.uses_graph else "echo"
        behaviour = str(part.setting.get("behaviour", default))
        if behaviour not in BEHAVIOURS:
            raise UnknownNameError("behaviour", behaviour, BEHAVIOURS)
        self._behaviour = BEHAVIOURS[behaviour]
        if behaviour in ("right", "wrong", "slow"):
            from redline.runtime.run_onnxruntime import open_part as open_reference

            reference = Part("onnxruntime", {"threads": 1}, uses_graph=True)
            self._right = open_reference(reference, store, signature).run

    def run(self, inputs: Arrays) -> list[np.ndarray]:
        return self._behaviour(self, inputs)

    def close(self) -> None:
        self._right = None

    def _echo(self, inputs: Arrays) -> list[np.ndarray]:
        if "outputs.npz" in self._part.files:
            with np.load(io.BytesIO(self._store.read("outputs.npz")), allow_pickle=False) as stored:
                return [stored[f"out_{index}"] for index in range(len(self._signature.outputs))]
        sizes = {
            axis: size
            for spec, array in zip(self._signature.inputs, inputs, strict=True)
            for axis, size in zip(spec.shape, array.shape, strict=True)
        }
        return [
            np.zeros(
                [sizes.get(a, 1) if isinstance(a, str) else a for a in spec.shape],
                spec.dtype,
            )
            for spec in self._signature.outputs
        ]

    def _answer(self, inputs: Arrays) -> list[np.ndarray]:
        if self._right is None:
            raise RunError("the null part is closed")
        return self._right(inputs)

    def _wrong(self, inputs: Arrays) -> list[np.ndarray]:
        share = float(self._part.setting.get("error", 1.0))
        return [
            (y + share * np.sqrt(np.mean(np.square(y, dtype=np.float64)))).astype(y.dtype)
            for y in self._answer(inputs)
        ]

    def _slow(self, inputs: Arrays) -> list[np.ndarray]:
        time.sleep(float(self._part.setting.get("seconds", 0.1)))
        return self._answer(inputs)

    def _nan(self, inputs: Arrays) -> list[np.ndarray]:
        return [np.full_like(y, np.nan, dtype=np.float32) for y in self._echo(inputs)]

    def _error(self, inputs: Arrays) -> list[np.ndarray]:
        raise RunError("the null part was told to fail")

    def _crash(self, inputs: Arrays) -> list[np.ndarray]:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError("still alive")

    def _hang(self, inputs: Arrays) -> list[np.ndarray]:
        while True:
            time.sleep(1)

    def _memory(self, inputs: Arrays) -> list[np.ndarray]:
        blocks = []
        while True:  # ones, not zeros: a page counts only once it is written
            blocks.append(np.ones(BLOCK, np.uint8))


BEHAVIOURS: dict[str, Callable[[NullRunner, Arrays], list[np.ndarray]]] = {
    "echo": NullRunner._echo,
    "right": NullRunner._answer,
    "wrong": NullRunner._wrong,
    "slow": NullRunner._slow,
    "nan": NullRunner._nan,
    "error": NullRunner._error,
    "crash": NullRunner._crash,
    "hang": NullRunner._hang,
    "memory": NullRunner._memory,
}


def open_part(part: Part, store: Store, signature: Signature) -> NullRunner:
    """Open a null part. Setting: behaviour (see above), seconds (float), error (float)."""
    return NullRunner(part, store, signature)
