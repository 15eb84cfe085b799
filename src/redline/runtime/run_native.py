"""Runs a part of Redline's own compiler: a shared object and its packed weights."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import RunError
from redline.runtime.run_free import FreeRunner, open_context
from redline.runtime.runner import Runner
from redline.runtime.settings import closed, failed, threads
from redline.signature import Signature

try:
    from redline.runtime._native_call import Caller
except ImportError:  # built without a C compiler
    Caller = None  # type: ignore[assignment, misc]

ABI = 1
_ALIGN = 64
_SHORT = 200_000  # floating-point operations: some 10 us, for which other Python threads can wait


class NativeRunner:
    """A compiled model and the contexts that its callers share, one for each at a time.

    The library is never unloaded: its worker threads may be asleep in it.
    """

    def __init__(self, part: Part, library: ctypes.CDLL, weights: np.ndarray, told: Any) -> None:
        self._part = part
        self._library = library
        self._weights = weights  # the contexts read it as long as they live
        self._inputs = [(np.dtype(s["dtype"]), tuple(s["shape"])) for s in told["inputs"]]
        outputs = tuple((tuple(s["shape"]), np.dtype(s["dtype"])) for s in told["outputs"])
        self._closed = False
        self._told = told
        self.shapes = tuple(shape for _, shape in self._inputs)
        if Caller is not None and _plain(self._inputs, outputs):
            inputs = tuple((dtype.char, shape) for dtype, shape in self._inputs)
            run = ctypes.cast(library.redline_run, ctypes.c_void_p).value or 0
            long = sum(group["flops"] for group in told["groups"]) > _SHORT
            self._call: Any = Caller(run, self._context, inputs, outputs, np.empty, long)
        else:
            self._call = SlowCaller(library.redline_run, self._context, self._inputs, outputs)
        self._call.warm()

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        results = self.offer(inputs)
        if results is None:  # not the arrays that it was compiled for, or not contiguous
            results = self.offer(self._fitting(inputs))
        if results is None:
            raise RunError("the native part takes no arrays of this kind of memory")
        return results

    def offer(self, inputs: Sequence[Any]) -> list[np.ndarray] | None:
        """Run, if these are exactly the arrays that it was compiled for; else do nothing."""
        try:
            results: list[np.ndarray] | None = self._call(inputs)
        except OSError as error:
            raise failed(self._part, error) from error
        return results

    def profile(self, inputs: Sequence[np.ndarray], calls: int = 15) -> list[dict[str, Any]]:
        """The groups as describe() tells them, each with its median "seconds" over `calls`."""
        groups: list[dict[str, Any]] = self._told["groups"]
        library, context = self._library, ctypes.c_void_p(self._context())
        arrays = self._fitting(inputs)
        results = [np.empty(s["shape"], s["dtype"]) for s in self._told["outputs"]]
        sources = (ctypes.c_void_p * max(1, len(arrays)))(*map(_address, arrays))
        targets = (ctypes.c_void_p * max(1, len(results)))(*map(_address, results))
        times = np.zeros((calls, len(groups)))
        try:
            library.redline_run(context, sources, targets)
            library.redline_profile(context, 1)
            for call in range(calls):
                library.redline_run(context, sources, targets)
                times[call] = library.redline_times(context)[: len(groups)]
        finally:
            library.redline_close(context)
        medians = np.median(times, 0) * 1e-9
        return [group | {"seconds": float(s)} for group, s in zip(groups, medians, strict=True)]

    @property
    def missed(self) -> list[str]:
        """Fusions that the compiler refused, each with its reason."""
        return list(self._told.get("missed", []))

    def _fitting(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self._closed:
            raise closed(self._part)
        found = []
        for array, (dtype, shape) in zip(inputs, self._inputs, strict=True):
            if array.shape != shape or array.dtype != dtype:
                got = f"{array.dtype}{list(array.shape)}"
                told = f"got {got}, compiled for {dtype}{list(shape)}"
                raise failed(self._part, ValueError(told))
            found.append(np.array(array, order="C").reshape(shape))
        return found

    def _context(self) -> int:
        return open_context(self._library, self._weights)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for context in self._call.drain():
            self._library.redline_close(context)
        self._call = lambda inputs: None


class SlowCaller:
    """What Caller does in C, by ctypes: where Redline was installed without a C compiler."""

    def __init__(
        self,
        run: Any,
        make: Callable[[], int],
        inputs: Sequence[tuple[np.dtype, tuple[int, ...]]],
        outputs: Sequence[tuple[tuple[int, ...], np.dtype]],
    ) -> None:
        self._run, self._make, self._inputs, self._outputs = run, make, inputs, outputs
        self._pointers = ctypes.c_void_p * max(1, len(inputs))
        self._targets = ctypes.c_void_p * max(1, len(outputs))
        self._idle: list[int] = []

    def __call__(self, arrays: Sequence[Any]) -> list[np.ndarray] | None:
        if len(arrays) != len(self._inputs):
            return None
        for array, (dtype, shape) in zip(arrays, self._inputs, strict=True):
            if type(array) is not np.ndarray or array.dtype != dtype or array.shape != shape:
                return None
            if not array.flags.c_contiguous or not array.flags.aligned:
                return None
        results = [np.empty(shape, dtype) for shape, dtype in self._outputs]
        try:
            context = self._idle.pop()  # one step, so two threads never get the same
        except IndexError:
            context = self._make()
        try:
            sources = self._pointers(*map(_address, arrays))
            status = self._run(
                ctypes.c_void_p(context), sources, self._targets(*map(_address, results))
            )
        finally:
            self._idle.append(context)
        if status:
            raise OSError(f"the compiled model returned {status}")
        return results

    def warm(self) -> None:
        """Make the first context now, where what fails can be told."""
        self._idle.append(self._make())

    def drain(self) -> list[int]:
        """Take the idle contexts out."""
        idle, self._idle = self._idle, []
        return idle


def _plain(inputs: Sequence[Any], outputs: Sequence[Any]) -> bool:
    """Types that the buffer protocol has a letter for, in numbers that the C code has room for."""
    types = [dtype for dtype, _ in inputs] + [dtype for _, dtype in outputs]
    shapes = [shape for _, shape in inputs] + [shape for shape, _ in outputs]
    return (
        all(dtype.isbuiltin == 1 for dtype in types)
        and all(len(shape) <= 16 for shape in shapes)
        and max(len(inputs), len(outputs)) <= 64
    )


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class PointsRunner:
    """Builds of one model for several sizes; a batch of another size is run in pieces."""

    def __init__(self, part: Part, runners: Sequence[NativeRunner]) -> None:
        self._part = part
        self._exact = {runner.shapes: runner for runner in runners}
        batches = {shapes[0][0]: runner for shapes, runner in self._exact.items() if shapes[0]}
        self._batches = sorted(batches.items(), key=lambda item: -item[0])

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        exact = self._exact.get(tuple(array.shape for array in inputs))
        if exact is not None:
            return exact.run(inputs)
        total, done = (inputs[0].shape or (0,))[0], 0
        pieces = []
        for size, runner in self._batches:
            while total - done >= size > 0:
                pieces.append(runner.run([array[done : done + size] for array in inputs]))
                done += size
        if not pieces or done != total:
            shapes = [list(array.shape) for array in inputs]
            raise failed(self._part, ValueError(f"no build for inputs of shapes {shapes}"))
        return [np.concatenate(outputs) for outputs in zip(*pieces, strict=True)]

    def profile(self, inputs: Sequence[np.ndarray], calls: int = 15) -> list[dict[str, Any]]:
        """The groups of the build for exactly these sizes; empty where there is none."""
        exact = self._exact.get(tuple(array.shape for array in inputs))
        return exact.profile(inputs, calls) if exact else []

    @property
    def missed(self) -> list[str]:
        """Fusions that the compiler refused, each with its reason."""
        return next(iter(self._exact.values())).missed

    def close(self) -> None:
        for runner in self._exact.values():
            runner.close()


def open_part(part: Part, store: Store, signature: Signature) -> Runner:
    """Open "model.so" (machine code) with "weights.bin", or a pair of such files for each size.

    Setting: threads (int), which the code was compiled for.

    Raises:
        RunError: it cannot be loaded, fits another version, or wants more threads than allowed.
    """
    built = int(part.setting["threads"])
    if built > threads(part):
        raise RunError(f"the native part is compiled for {built} threads, {threads(part)} allowed")
    if part.setting.get("partition"):
        from redline.runtime.run_segments import open_segments

        return open_segments(part, store, signature)
    if part.setting.get("free"):
        return FreeRunner(part, *_loaded(part, store, signature, *part.files[:2]))
    libraries = [name for name in part.files if name.endswith(".so")]
    runners = []
    try:
        for name in libraries:
            weights = name.replace("model", "weights").replace(".so", ".bin")
            runners.append(open_library(part, store, signature, name, weights))
    except BaseException:
        for runner in runners:
            runner.close()
        raise
    return PointsRunner(part, runners) if signature.dims else runners[0]


def open_library(
    part: Part, store: Store, signature: Signature | None, name: str, data: str
) -> NativeRunner:
    """One shared object and its weights; None as signature where it is only a piece of a model."""
    return NativeRunner(part, *_loaded(part, store, signature, name, data))


def _loaded(
    part: Part, store: Store, signature: Signature | None, name: str, data: str
) -> tuple[ctypes.CDLL, np.ndarray, Any]:
    """The library, its weights and what it tells of itself."""
    try:
        library = ctypes.CDLL(str(store.path(name)))
        library.redline_describe.restype = ctypes.c_char_p
        library.redline_open.restype = ctypes.c_void_p
        library.redline_open.argtypes = [ctypes.c_void_p]
        library.redline_close.argtypes = [ctypes.c_void_p]
        library.redline_close.restype = None
        library.redline_profile.argtypes = [ctypes.c_void_p, ctypes.c_int]
        library.redline_profile.restype = None
        library.redline_times.argtypes = [ctypes.c_void_p]
        library.redline_times.restype = ctypes.POINTER(ctypes.c_uint64)
        told = json.loads(library.redline_describe())
    except (OSError, AttributeError, ValueError) as error:
        raise RunError(f"the native part cannot be loaded: {str(error)[:300]}") from error
    if told["abi"] != ABI:
        raise RunError(f"the native part has ABI {told['abi']}, this Redline reads {ABI}")
    if signature is not None:
        _check(told, signature)
    return library, _weights(store, data, int(told["weights"])), told


def _check(told: Any, signature: Signature) -> None:
    expected = [[spec.dtype, list(spec.shape)] for spec in signature.inputs]
    found = [[spec["dtype"], spec["shape"]] for spec in told["inputs"]]
    if len(expected) != len(found) or not all(map(_fits, expected, found)):
        raise RunError(f"the native part takes {found}, the signature says {expected}")


def _fits(expected: list[Any], found: list[Any]) -> bool:
    """The same dtype and shape, but for dims that are free."""
    (dtype, shape), (other, sizes) = expected, found
    if dtype != other or len(shape) != len(sizes):
        return False
    return all(isinstance(axis, str) or axis == n for axis, n in zip(shape, sizes, strict=True))


def _weights(store: Store, name: str, size: int) -> np.ndarray:
    """The file as aligned memory, mapped and not read; pages begin at multiples of 4096."""
    if not size:
        return np.zeros(_ALIGN, np.uint8)
    weights = np.memmap(store.path(name), np.uint8, "r")
    if weights.size != size:
        raise RunError(f"{name} of the native part has {weights.size} bytes, expected {size}")
    return weights
