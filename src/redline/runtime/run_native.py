"""Runs a part of Redline's own compiler: a shared object and its packed weights."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import RunError
from redline.runtime.settings import closed, failed, threads
from redline.signature import Signature

ABI = 1
_ALIGN = 64


class NativeRunner:
    """A compiled model and the contexts that its callers share, one for each at a time.

    The library is never unloaded: its worker threads may be asleep in it.
    """

    def __init__(self, part: Part, library: ctypes.CDLL, weights: np.ndarray, told: Any) -> None:
        self._part = part
        self._library = library
        self._weights = weights  # the contexts read it as long as they live
        self._inputs = [(np.dtype(s["dtype"]), tuple(s["shape"])) for s in told["inputs"]]
        self._outputs = [(tuple(s["shape"]), np.dtype(s["dtype"])) for s in told["outputs"]]
        self._pointers = ctypes.c_void_p * max(1, len(self._inputs))
        self._targets = ctypes.c_void_p * max(1, len(self._outputs))
        self._call = library.redline_run
        self._idle: SimpleQueue[ctypes.c_void_p] | None = SimpleQueue()
        self._idle.put(self._context())

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        idle = self._idle
        if idle is None:
            raise closed(self._part)
        arrays = [
            self._checked(array, *spec) for array, spec in zip(inputs, self._inputs, strict=True)
        ]
        results = [np.empty(shape, dtype) for shape, dtype in self._outputs]
        sources = self._pointers(*[_address(array) for array in arrays])
        targets = self._targets(*[_address(array) for array in results])
        try:
            context = idle.get_nowait()
        except Empty:
            context = self._context()
        try:
            status = self._call(context, sources, targets)
        finally:
            idle.put(context)
        if status:
            raise failed(self._part, OSError(f"the compiled model returned {status}"))
        return results

    def _checked(self, array: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        if array.shape != shape or array.dtype != dtype:
            got = f"{array.dtype}{list(array.shape)}"
            raise failed(self._part, ValueError(f"got {got}, compiled for {dtype}{list(shape)}"))
        return array if array.flags.c_contiguous else np.ascontiguousarray(array).reshape(shape)

    def _context(self) -> ctypes.c_void_p:
        context = self._library.redline_open(self._weights.ctypes.data)
        if not context:
            raise RunError("the native part got no memory or no thread for its workspace")
        return ctypes.c_void_p(context)

    def close(self) -> None:
        idle, self._idle = self._idle, None
        while idle is not None:
            try:
                self._library.redline_close(idle.get_nowait())
            except Empty:
                return


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def open_part(part: Part, store: Store, signature: Signature) -> NativeRunner:
    """Open "model.so" (machine code) with "weights.bin".

    Setting: threads (int), which the code was compiled for.

    Raises:
        RunError: it cannot be loaded, fits another version, or wants more threads than allowed.
    """
    built = int(part.setting["threads"])
    if built > threads(part):
        raise RunError(f"the native part is compiled for {built} threads, {threads(part)} allowed")
    try:
        library = ctypes.CDLL(str(store.path("model.so")))
        library.redline_describe.restype = ctypes.c_char_p
        library.redline_open.restype = ctypes.c_void_p
        library.redline_open.argtypes = [ctypes.c_void_p]
        library.redline_close.argtypes = [ctypes.c_void_p]
        told = json.loads(library.redline_describe())
    except (OSError, AttributeError, ValueError) as error:
        raise RunError(f"the native part cannot be loaded: {str(error)[:300]}") from error
    if told["abi"] != ABI:
        raise RunError(f"the native part has ABI {told['abi']}, this Redline reads {ABI}")
    expected = [[spec.dtype, list(spec.shape)] for spec in signature.inputs]
    found = [[spec["dtype"], spec["shape"]] for spec in told["inputs"]]
    if expected != found:
        raise RunError(f"the native part takes {found}, the signature says {expected}")
    return NativeRunner(part, library, _weights(store, int(told["weights"])), told)


def _weights(store: Store, size: int) -> np.ndarray:
    """The file as aligned memory, mapped and not read; pages begin at multiples of 4096."""
    if not size:
        return np.zeros(_ALIGN, np.uint8)
    weights = np.memmap(store.path("weights.bin"), np.uint8, "r")
    if weights.size != size:
        raise RunError(f"weights.bin of the native part has {weights.size} bytes, expected {size}")
    return weights
