"""Runs a native part that was compiled for every size within a range."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from redline.engine.manifest import Part
from redline.errors import RunError
from redline.runtime.settings import closed, failed


class FreeRunner:
    """A compiled model, told the sizes before each call, and the contexts that its callers share.

    What describe() tells as terms, [factor, exponent of each size], is evaluated for each call.
    """

    def __init__(self, part: Part, library: Any, weights: np.ndarray, told: Any) -> None:
        self._part, self._library, self._told = part, library, told
        self._weights = weights  # the contexts read it as long as they live
        self._inputs = [(np.dtype(s["dtype"]), s["shape"]) for s in told["inputs"]]
        self._bounds = {s["name"]: (s["min"], s["max"]) for s in told["sizes"]}
        self._sizes = ctypes.c_long * len(self._bounds)
        self._idle = [self._context()]
        self._closed = False

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self._closed:
            raise closed(self._part)
        sizes = self._found(inputs)
        try:
            context = self._idle.pop()  # one step, so two threads never get the same
        except IndexError:
            context = self._context()
        try:
            return self._call(context, inputs, sizes, lambda run: run())
        finally:
            self._idle.append(context)

    def profile(self, inputs: Sequence[np.ndarray], calls: int = 15) -> list[dict[str, Any]]:
        """The groups as describe() tells them, at these sizes, each with its median "seconds"."""
        sizes = self._found(inputs)
        groups = [
            {k: _value(v, sizes) if k in ("flops", "bytes") else v for k, v in group.items()}
            for group in self._told["groups"]
        ]
        context, times = self._context(), np.zeros((calls, len(groups)))

        def measure(run: Callable[[], None]) -> None:
            run()
            self._library.redline_profile(context, 1)
            for call in range(calls):
                run()
                times[call] = self._library.redline_times(context)[: len(groups)]

        try:
            self._call(context, inputs, sizes, measure)
        finally:
            self._library.redline_close(context)
        medians = np.median(times, 0) * 1e-9
        return [group | {"seconds": float(s)} for group, s in zip(groups, medians, strict=True)]

    @property
    def missed(self) -> list[str]:
        """Fusions that the compiler refused, each with its reason."""
        return list(self._told.get("missed", []))

    def _call(
        self,
        context: int,
        inputs: Sequence[np.ndarray],
        sizes: Sequence[int],
        how: Callable[[Callable[[], None]], None],
    ) -> list[np.ndarray]:
        arrays = [np.array(array, order="C", copy=None) for array in inputs]
        results = [
            np.empty([_value(axis, sizes) for axis in s["shape"]], s["dtype"])
            for s in self._told["outputs"]
        ]
        sources = (ctypes.c_void_p * max(1, len(arrays)))(*(a.ctypes.data for a in arrays))
        targets = (ctypes.c_void_p * max(1, len(results)))(*(a.ctypes.data for a in results))
        self._library.redline_sizes(ctypes.c_void_p(context), self._sizes(*sizes))

        def run() -> None:
            status = self._library.redline_run(ctypes.c_void_p(context), sources, targets)
            if status:
                raise failed(self._part, OSError(f"the compiled model returned {status}"))

        how(run)
        return results

    def _found(self, inputs: Sequence[np.ndarray]) -> list[int]:
        """The free sizes, from the shapes of the inputs."""
        sizes: dict[str, int] = {}
        for array, (dtype, shape) in zip(inputs, self._inputs, strict=True):
            fits = array.dtype == dtype and array.ndim == len(shape)
            for axis, n in zip(shape, array.shape, strict=True) if fits else ():
                low, high = self._bounds.get(axis, (axis, axis))
                fits &= low <= n <= high and (isinstance(axis, int) or sizes.get(axis, n) == n)
                sizes[axis] = n
            if not fits:
                bounds = ", ".join(f"{k} {a} to {b}" for k, (a, b) in self._bounds.items())
                told = f"got {array.dtype}{list(array.shape)}, compiled for {dtype}{shape}"
                raise failed(self._part, ValueError(f"{told} with {bounds}"))
        return [sizes[name] for name in self._bounds]

    def _context(self) -> int:
        return open_context(self._library, self._weights)

    def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for context in idle:
            self._library.redline_close(context)


def open_context(library: Any, weights: np.ndarray) -> int:
    """The address of a new context.

    Raises:
        RunError: there is no memory or no thread for it.
    """
    context = library.redline_open(weights.ctypes.data)
    if not context:
        raise RunError("the native part got no memory or no thread for its workspace")
    return int(context)


def _value(number: Any, sizes: Sequence[int]) -> int:
    """A number, or the sum of its terms at these sizes."""
    if isinstance(number, int):
        return number
    return sum(c * prod(s**e for s, e in zip(sizes, x, strict=True)) for c, *x in number)
