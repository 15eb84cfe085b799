"""Tensors of any library to NumPy arrays and back, without a copy where that is possible."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from redline.errors import SignatureError

_DLPACK_CPU = 1


def is_torch(value: object) -> bool:
    """Whether a value is a torch tensor; False without torch, which is not imported for this."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def to_numpy(value: Any, name: str) -> np.ndarray:
    """A torch tensor, NumPy array or DLPack object as a NumPy array, over the same memory.

    Example:
        >>> to_numpy(np.zeros(2)[::-1], "x").shape
        (2,)

    Raises:
        SignatureError: it lies on another device, or NumPy has no such dtype.
    """
    if is_torch(value):
        return from_torch(value, name)
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    device = getattr(value, "__dlpack_device__", lambda: (_DLPACK_CPU, 0))()[0]
    if int(device) != _DLPACK_CPU:
        raise _elsewhere(name, f"DLPack device {int(device)}", "copy it to the CPU first")
    try:
        return np.from_dlpack(value)
    except (BufferError, TypeError, ValueError, RuntimeError) as error:
        raise SignatureError(
            f"input {name!r} is a {type(value).__qualname__} that NumPy cannot read: {error}",
            hint="pass a NumPy array or a torch tensor",
        ) from error


def from_torch(value: Any, name: str) -> np.ndarray:
    """A torch tensor as a NumPy array over the same memory; detached if it requires a gradient.

    Raises:
        SignatureError: it lies on another device, or NumPy has no such dtype or layout.
    """
    if not value.is_cpu:
        raise _elsewhere(name, str(value.device), "pass x.cpu()")
    try:
        array: np.ndarray = value.numpy()
    except (RuntimeError, TypeError):  # it requires a gradient, or is a lazy conjugate or negative
        try:
            array = value.numpy(force=True)
        except (RuntimeError, TypeError) as error:
            what = f"input {name!r} is a {value.layout} tensor of {value.dtype}, which NumPy lacks"
            raise SignatureError(what, hint="pass a dense tensor of the engine's dtype") from error
    return array


def _elsewhere(name: str, device: str, hint: str) -> SignatureError:
    return SignatureError(f"input {name!r} is on {device}, expected the CPU", hint=hint)


def plain(array: np.ndarray) -> np.ndarray:
    """The array itself when it is contiguous and aligned, else a copy that is."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else array.copy(order="C")


def to_torch(arrays: Sequence[np.ndarray]) -> list[Any]:
    """The same memory as torch tensors; torch must be imported already."""
    from_numpy = sys.modules["torch"].from_numpy
    return [from_numpy(array) for array in arrays]
