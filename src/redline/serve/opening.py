"""Opens a model file, an engine or a plain ONNX file, as tensors and a function that runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redline.engine.manifest import Part
from redline.errors import MissingError, RefusedError
from redline.runtime.load import open_engine
from redline.serve.dtypes import BF16, BYTES, to_datatype
from redline.serve.messages import ServeError, Status
from redline.signature import Signature, TensorSpec

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]
FILES = ("model.redline", "model.onnx")
SUFFIXES = (".redline", ".onnx")
_ORT_TYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """One input or output. An axis of -1 is free, within `ranges`; `names` says which are the same.

    Attributes:
        ranges: (axis, name, smallest, largest) for each free axis that has a range.
    """

    name: str
    dtype: np.dtype[Any]
    datatype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    ranges: tuple[tuple[int, str, int, int], ...] = ()


@dataclass(frozen=True)
class Opened:
    """A model file that is open. `max_batch` is what its first axis allows, None where it is fixed.

    Attributes:
        run: arrays in the order of inputs -> arrays in the order of outputs; from many threads.
        notices: what the user should know.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    run: Run
    close: Callable[[], None]
    platform: str
    backend: str
    min_batch: int = 1
    max_batch: int | None = None
    notices: tuple[str, ...] = ()


def open_model(path: Path, *, trust: bool, threads: int, max_batch: int) -> Opened:
    """Open a model; an engine has replayed its self-test afterwards.

    Args:
        trust: run machine code that no trusted key signed.
        threads: of an ONNX file, 0 for every core; an engine brings its own.
        max_batch: for a free batch axis without a range.

    Raises:
        RedlineError: it cannot be opened, or computes other numbers than it should.
    """
    if path.suffix == ".redline":
        return _open_engine(path, trust)
    return _open_onnx(path, threads, max_batch)


def _open_engine(path: Path, trust: bool) -> Opened:
    notices: list[str] = []
    session = open_engine(path, trust=trust, notify=notices.append)
    signature = session.signature
    inputs = tuple(_tensor(spec, signature) for spec in signature.inputs)
    outputs = tuple(_tensor(spec, signature) for spec in signature.outputs)
    axis = batch_axis(inputs, outputs)
    dim = signature.dim(axis) if axis else None
    return Opened(
        inputs,
        outputs,
        session.run,
        session.close,
        platform="redline",
        backend=session.part.backend if session.part else "redline",
        min_batch=max(1, dim.min) if dim else 1,
        max_batch=dim.max if dim else None,
        notices=tuple(notices),
    )


def _tensor(spec: TensorSpec, signature: Signature) -> Tensor:
    names = tuple(axis if isinstance(axis, str) else "" for axis in spec.shape)
    ranges = []
    for axis, name in enumerate(names):
        dim = signature.dim(name) if name else None
        if dim is not None:
            ranges.append((axis, name, dim.min, dim.max))
    dtype = np.dtype(spec.dtype)
    try:
        datatype = to_datatype(dtype)
    except ServeError as error:
        raise RefusedError(f"{spec.name!r}: {error.what}") from error
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in spec.shape)
    return Tensor(spec.name, dtype, datatype, shape, names, tuple(ranges))


def batch_axis(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """The name of the free first axis that all tensors share; "" where there is none."""
    names = {tensor.names[0] if tensor.names else "" for tensor in (*inputs, *outputs)}
    return names.pop() if len(names) == 1 and inputs else ""


def _open_onnx(path: Path, threads: int, max_batch: int) -> Opened:
    try:
        import onnxruntime

        from redline.runtime.run_onnxruntime import OnnxRuntimeRunner, open_session
    except ImportError as error:
        raise MissingError(
            "ONNX files need ONNX Runtime, which is not installed", hint="pip install onnxruntime"
        ) from error
    part = Part("onnxruntime", {"threads": threads, "spin": False}, uses_graph=True)
    session = open_session(part, str(path))
    inputs = tuple(_onnx_tensor(node) for node in session.get_inputs())
    outputs = tuple(_onnx_tensor(node) for node in session.get_outputs())
    if any(tensor.dtype == BF16 for tensor in (*inputs, *outputs)):
        run: Run = _Bf16Run(onnxruntime, session, inputs, outputs)
    else:
        names = tuple(tensor.name for tensor in inputs)
        run = OnnxRuntimeRunner(part, session, names).run
    if any(tensor.dtype == BYTES for tensor in (*inputs, *outputs)):
        run = _as_text(run)
    axis = batch_axis(inputs, outputs)
    platform = "onnxruntime_onnx"
    free = max_batch if axis else None
    return Opened(inputs, outputs, run, lambda: None, platform, "onnxruntime", 1, free)


def _onnx_tensor(node: Any) -> Tensor:
    kind = str(node.type)
    inner = kind.removeprefix("tensor(").removesuffix(")")
    if inner == "string":
        dtype = BYTES
    elif inner == "bfloat16":
        dtype = BF16
    elif inner in _ORT_TYPES:
        dtype = np.dtype(_ORT_TYPES[inner])
    else:
        raise RefusedError(f"{node.name!r} is a {kind}, which the protocol cannot carry")
    axes = list(node.shape or ())
    names = tuple(
        "" if isinstance(axis, int) else (axis or f"{node.name}.{place}")
        for place, axis in enumerate(axes)
    )
    shape = tuple(axis if isinstance(axis, int) else -1 for axis in axes)
    return Tensor(node.name, dtype, to_datatype(dtype), shape, names)


def _as_text(run: Run) -> Run:
    """ONNX Runtime takes and gives texts where the protocol has bytes."""

    def run_texts(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [_encode(out) for out in run([_decode(array) for array in arrays])]

    return run_texts


def _decode(array: np.ndarray) -> np.ndarray:
    if array.dtype != BYTES:
        return array
    texts = np.empty(array.shape, object)
    flat = texts.reshape(-1)
    for index, value in enumerate(array.reshape(-1)):
        try:
            flat[index] = value.decode("utf-8") if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise ServeError(
                Status.INVALID, "a BYTES element is not UTF-8, which this model's texts must be"
            ) from None
    return texts


def _encode(array: np.ndarray) -> np.ndarray:
    if array.dtype != BYTES:
        return array
    texts = np.empty(array.shape, object)
    flat = texts.reshape(-1)
    for index, value in enumerate(array.reshape(-1)):
        flat[index] = value if isinstance(value, bytes) else str(value).encode()
    return texts


class _Bf16Run:
    """Feeds bfloat16, which ONNX Runtime takes and gives only as OrtValues."""

    def __init__(
        self, onnxruntime: Any, session: Any, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
    ) -> None:
        self._value = onnxruntime.OrtValue
        self._session = session
        self._inputs, self._outputs = inputs, outputs

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        feeds = {
            tensor.name: self._feed(tensor, array)
            for tensor, array in zip(self._inputs, arrays, strict=True)
        }
        values = self._session.run_with_ort_values([t.name for t in self._outputs], feeds)
        return [self._read(t, v) for t, v in zip(self._outputs, values, strict=True)]

    def _feed(self, tensor: Tensor, array: np.ndarray) -> Any:
        bfloat16 = 16  # TensorProto.BFLOAT16
        if tensor.dtype != BF16:
            return self._value.ortvalue_from_numpy(np.ascontiguousarray(array))
        words = np.ascontiguousarray(array).view(np.uint16)
        return self._value.ortvalue_from_numpy_with_onnx_type(words, bfloat16)

    def _read(self, tensor: Tensor, value: Any) -> np.ndarray:
        if tensor.dtype != BF16:
            return np.asarray(value.numpy())
        import ctypes

        shape = tuple(value.shape())
        found = np.empty(shape, BF16)
        if found.size:  # a copy: the memory goes with the OrtValue
            ctypes.memmove(found.ctypes.data, value.data_ptr(), found.nbytes)
        return found


def example(tensor: Tensor, rows: int | None, seed: int) -> np.ndarray:
    """A made-up input for warm-up: small numbers, that are also legal indices of most tables."""
    shape = [
        max(1, next((low for place, _, low, _ in tensor.ranges if place == axis), 1))
        if size < 0
        else size
        for axis, size in enumerate(tensor.shape)
    ]
    if rows is not None:
        shape[0] = rows
    draw = np.random.default_rng(seed)
    if tensor.dtype == BYTES:
        texts = np.empty(shape, object)
        with contextlib.suppress(ValueError):  # empty shapes
            texts.fill(b"0")
        return texts
    if tensor.dtype.kind in "iub":
        return draw.integers(0, 2, shape).astype(tensor.dtype)
    return draw.standard_normal(shape).astype(np.float32).astype(tensor.dtype)
