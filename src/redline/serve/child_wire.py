"""What parent and child of an isolated engine share: messages on a socket, tensors in memory."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from redline.serve.dtypes import BYTES, pack_bytes, to_datatype, to_numpy_dtype, unpack_bytes
from redline.serve.opening import Tensor

_SIZE = struct.Struct("<Q")
_ALIGN = 64
_LARGEST = 64 << 20  # bytes of a message, which only says where tensors lie
Row = tuple[str, list[int], int, int]  # datatype, shape, offset, bytes


class Peer:
    """Length-prefixed msgpack on a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, message: Any, seconds: float | None = None) -> None:
        """Send one message. Raises OSError where the other side is gone."""
        data = msgspec.msgpack.encode(message)
        self._sock.settimeout(seconds)
        self._sock.sendall(_SIZE.pack(len(data)) + data)

    def receive(self, seconds: float | None = None) -> Any:
        """Wait for one message. Raises TimeoutError, or EOFError where the other side is gone."""
        self._sock.settimeout(seconds)
        (size,) = _SIZE.unpack(self._exactly(_SIZE.size))
        if size > _LARGEST:
            raise EOFError("the other side sends nonsense")
        return msgspec.msgpack.decode(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._sock.recv(size - len(data))
            if not piece:
                raise EOFError("the other side is gone")
            data += piece
        return bytes(data)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class Memory:
    """An anonymous file that two processes map; it grows and is used again for every batch."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.size = 0
        self._map: mmap.mmap | None = None

    @classmethod
    def make(cls) -> Memory:
        """A new one, that has no name."""
        return cls(os.memfd_create("redline", os.MFD_CLOEXEC))

    def grow_to(self, size: int, *, resize: bool = False) -> None:
        """Map at least `size` bytes; `resize` makes the file that large."""
        if size <= self.size:
            return
        if resize:
            size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)  # the old goes with the last array over it
        self.size = size

    def write(self, arrays: Sequence[np.ndarray]) -> list[Row]:
        """Lay arrays one after the other; returns where they are."""
        sources = [
            np.frombuffer(pack_bytes(array), np.uint8) if array.dtype == BYTES else array
            for array in arrays
        ]
        rows: list[Row] = []
        end = 0
        for array, source in zip(arrays, sources, strict=True):
            rows.append((to_datatype(array.dtype), list(array.shape), end, source.nbytes))
            end += -(-source.nbytes // _ALIGN) * _ALIGN
        self.grow_to(end, resize=True)
        for source, (_, _, offset, size) in zip(sources, rows, strict=True):
            if size:
                target = self._view(offset, size).view(source.dtype).reshape(source.shape)
                np.copyto(target, source)
        return rows

    def read(self, rows: Sequence[Sequence[Any]], *, copy: bool = True) -> list[np.ndarray]:
        """Arrays that the other side laid down; without `copy` they change with its next batch."""
        return [self._array(*row, copy=copy) for row in rows]

    def _array(
        self, datatype: str, shape: list[int], offset: int, size: int, *, copy: bool
    ) -> np.ndarray:
        dtype = to_numpy_dtype(datatype)
        count = int(np.prod(shape, dtype=np.int64))
        if not size:
            return np.empty(shape, dtype)
        view = self._view(offset, size)
        if dtype == BYTES:
            return unpack_bytes(memoryview(view.tobytes()), count, "tensor").reshape(shape)
        array = view.view(dtype).reshape(shape)
        return array.copy() if copy else array

    def _view(self, offset: int, size: int) -> np.ndarray:
        assert self._map is not None  # grow_to() comes first
        return np.frombuffer(self._map, np.uint8, size, offset)

    def close(self) -> None:
        """Close the file; mapped arrays stay good."""
        os.close(self.fd)


def told_tensor(tensor: Tensor) -> list[Any]:
    """A Tensor as plain data."""
    return [tensor.name, tensor.datatype, tensor.shape, tensor.names, tensor.ranges]


def tensor_of(told: Sequence[Any]) -> Tensor:
    """The counterpart of told_tensor()."""
    name, datatype, shape, names, ranges = told
    limits = tuple((int(axis), str(dim), int(low), int(high)) for axis, dim, low, high in ranges)
    dtype = to_numpy_dtype(datatype)
    return Tensor(name, dtype, datatype, tuple(shape), tuple(names), limits)
