"""The self-test's arrays as an uncompressed .npz, read without pickle and without surprises."""

from __future__ import annotations

import io
import mmap
from collections.abc import Sequence

import numpy as np

from redline.engine.archive import read_directory
from redline.errors import TamperedError

Arrays = tuple[np.ndarray, ...]


def pack_arrays(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> bytes:
    """The bytes of an .npz with in_0, in_1, .. and out_0, out_1, .."""
    named = {f"in_{index}": array for index, array in enumerate(inputs)}
    named |= {f"out_{index}": array for index, array in enumerate(outputs)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **named)
    return buffer.getvalue()


def unpack_arrays(data: bytes | memoryview, inputs: int, outputs: int) -> tuple[Arrays, Arrays]:
    """So many input and output arrays of an .npz.

    np.load would allocate whatever size a header claims; here every array must be as large as its
    bytes.

    Raises:
        TamperedError: other names, a wrong size, or Python objects inside.
    """
    names = [f"in_{index}" for index in range(inputs)]
    names += [f"out_{index}" for index in range(outputs)]
    with mmap.mmap(-1, max(len(data), 1)) as copy:
        copy[:] = data
        spans = read_directory(copy)
        if set(spans) != {f"{name}.npy" for name in names}:
            raise TamperedError("check.npz does not hold the engine's inputs and outputs")
        arrays = []
        for name in names:
            span = spans[f"{name}.npy"]
            arrays.append(_read_array(copy[span.start : span.start + span.size], name))
    return tuple(arrays[:inputs]), tuple(arrays[inputs:])


def _read_array(data: bytes, name: str) -> np.ndarray:
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, column_major, dtype = read(stream)
        count = int(np.prod(shape, dtype=object))
        if dtype.hasobject or count * dtype.itemsize != len(data) - stream.tell():
            raise ValueError("its size is not what its header says")
        array = np.frombuffer(data, dtype, count, stream.tell())
        array = array.reshape(shape, order="F" if column_major else "C")
    except Exception as error:  # numpy evaluates the header as a literal, which fails in many ways
        raise TamperedError(f"array {name!r} of check.npz cannot be read: {error}") from error
    return np.array(array, order="C")
