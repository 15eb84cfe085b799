"""The protocol's datatypes, their NumPy counterparts, and how tensors are laid out as bytes."""

from __future__ import annotations

import struct
from typing import Any

import ml_dtypes
import numpy as np

from redline.serve.messages import ServeError, Status

BF16 = np.dtype(ml_dtypes.bfloat16)
BYTES = np.dtype(object)

_TABLE = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": BF16,
    "BYTES": BYTES,
}
_NAMES = {dtype: name for name, dtype in _TABLE.items()}
_LENGTH = struct.Struct("<I")


def to_numpy_dtype(datatype: str) -> np.dtype[Any]:
    """The NumPy dtype of a protocol datatype; BYTES is object.

    Example:
        >>> to_numpy_dtype("FP16")
        dtype('float16')

    Raises:
        ServeError: INVALID, no such datatype.
    """
    found = _TABLE.get(datatype)
    if found is None:
        raise ServeError(
            Status.INVALID, f"datatype {datatype[:40]!r} is not known: {', '.join(_TABLE)}"
        )
    return found


def to_datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a NumPy dtype.

    Example:
        >>> to_datatype(np.dtype("float32"))
        'FP32'

    Raises:
        ServeError: UNSUPPORTED, the protocol has none (complex numbers).
    """
    found = _NAMES.get(dtype)
    if found is None:
        raise ServeError(Status.UNSUPPORTED, f"the protocol has no datatype for {dtype.name}")
    return found


def config_type(datatype: str) -> str:
    """The name in a model configuration: "TYPE_FP32"; BYTES are TYPE_STRING there."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"


def count_elements(shape: tuple[int, ...] | list[int], limit: int, name: str) -> int:
    """The product of a shape, by Python integers that cannot overflow.

    Raises:
        ServeError: INVALID, a negative size or more than `limit` elements.
    """
    total = 1
    for size in shape:
        if size < 0:
            raise ServeError(
                Status.INVALID, f"input {name!r} has a negative size in its shape {list(shape)}"
            )
        total *= size
        if total > limit and 0 not in shape:
            raise ServeError(
                Status.INVALID, f"input {name!r} has more than {limit} elements: {list(shape)}"
            )
    return total


def from_bytes(
    data: memoryview, datatype: str, shape: tuple[int, ...], count: int, name: str
) -> np.ndarray:
    """A tensor over the bytes of a request, without a copy but for BYTES; `count` is its elements.

    Raises:
        ServeError: INVALID, not as many bytes as the shape needs.
    """
    dtype = to_numpy_dtype(datatype)
    if dtype is BYTES:
        return unpack_bytes(data, count, name).reshape(shape)
    needed = count * dtype.itemsize
    if len(data) != needed:
        raise ServeError(
            Status.INVALID,
            f"input {name!r} came with {len(data)} bytes, expected {needed} for {datatype} "
            f"{list(shape)}",
        )
    if not count:
        return np.empty(shape, dtype)
    array = np.frombuffer(data, dtype).reshape(shape)
    if datatype == "BOOL" and np.any(array.view(np.uint8) > 1):
        return (array.view(np.uint8) != 0).reshape(shape)
    return array


def unpack_bytes(data: memoryview, count: int, name: str) -> np.ndarray:
    """BYTES elements: each a little-endian uint32 of its length and then the bytes; 1-d object.

    Raises:
        ServeError: INVALID, cut short, or another number of elements than `count`.
    """
    if count * _LENGTH.size > len(data):
        raise _wrong_bytes(name, f"{len(data)} bytes are too few for {count} elements")
    array = np.empty(count, dtype=object)
    at, end = 0, len(data)
    for index in range(count):
        if at + _LENGTH.size > end:
            raise _wrong_bytes(name, f"the data ends after {index} of {count} elements")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > end:
            raise _wrong_bytes(name, f"element {index} has {size} bytes, {end - at} are left")
        array[index] = bytes(data[at : at + size])
        at += size
    if at != end:
        raise _wrong_bytes(name, f"{end - at} bytes are left over after {count} elements")
    return array


def _wrong_bytes(name: str, what: str) -> ServeError:
    return ServeError(Status.INVALID, f"input {name!r}: {what}")


def to_bytes(array: np.ndarray) -> memoryview:
    """A tensor as the protocol lays it out: row-major, little-endian, without a copy if it is so.

    Example:
        >>> bytes(to_bytes(np.array([1, 2], np.int16)))
        b'\\x01\\x00\\x02\\x00'
    """
    if array.dtype == BYTES:
        return memoryview(pack_bytes(array))
    array = np.ascontiguousarray(array)
    if not array.size:
        return memoryview(b"")
    return memoryview(array.reshape(-1).view(np.uint8))


def pack_bytes(array: np.ndarray) -> bytes:
    """The counterpart of unpack_bytes; texts become UTF-8."""
    parts = []
    for value in array.reshape(-1):
        element = as_bytes(value)
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return b"".join(parts)


def as_bytes(value: Any) -> bytes:
    """One element of a BYTES tensor, whatever an engine gave: bytes or text."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
