"""How parent and child talk: length-prefixed msgpack frames with NumPy arrays. No pickle."""

from __future__ import annotations

import os
import select
import struct
import time
from typing import Any

import msgspec
import numpy as np

_ARRAY = 1
_HEADER = struct.Struct("<Q")
_READ_AT_ONCE = 1 << 20


def _encode_other(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        head = msgspec.json.encode([value.dtype.str, value.shape])
        body = _HEADER.pack(len(head)) + head + np.ascontiguousarray(value).tobytes()
        return msgspec.msgpack.Ext(_ARRAY, body)
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} cannot be sent to a child process")


def _decode_other(code: int, data: memoryview) -> Any:
    if code != _ARRAY:
        raise NotImplementedError(f"unknown extension {code}")
    (size,) = _HEADER.unpack_from(data)
    start = _HEADER.size + size
    dtype, shape = msgspec.json.decode(data[_HEADER.size : start])
    return np.frombuffer(data[start:], dtype=dtype).reshape(shape).copy()


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_encode_other)
_DECODER = msgspec.msgpack.Decoder(ext_hook=_decode_other)


def write_frame(fd: int, value: Any) -> None:
    """Send one value: builtins, dataclasses, bytes and NumPy arrays, nested.

    Raises:
        BrokenPipeError: the other side is gone.
    """
    payload = _ENCODER.encode(value)
    data = memoryview(_HEADER.pack(len(payload)) + payload)
    while data:
        data = data[os.write(fd, data) :]


def read_frame(fd: int) -> Any:
    """Wait for one value.

    Raises:
        EOFError: the other side is gone.
    """
    (size,) = _HEADER.unpack(_read_exactly(fd, _HEADER.size))
    return _DECODER.decode(_read_exactly(fd, size))


def readable(fd: int, seconds: float) -> bool:
    """Whether a frame, or the end, arrives within that many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        left = max(0.0, deadline - time.monotonic())
        try:
            return bool(select.select([fd], [], [], left)[0])
        except InterruptedError:
            continue


def _read_exactly(fd: int, size: int) -> bytes:
    chunks = []
    while size:
        chunk = os.read(fd, min(size, _READ_AT_ONCE))
        if not chunk:
            raise EOFError("the other side closed the pipe")
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
