"""Shape, strides and storage of whatever holds a tensor: torch, NumPy, or anything with DLPack.

A DLPack capsule is read in place and never handed to torch.from_dlpack, which ends the process
when a stride is negative (torch 2.13).
"""

from __future__ import annotations

import ctypes
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.errors import InputError
from redline.layout.strides import Ints

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Strided:
    """What a strided tensor is, without its data.

    Attributes:
        kind: "torch", "numpy" or "dlpack".
        strides: in elements; offset: in elements from the start of the storage.
        storage_bytes: None where only the tensor itself is known (DLPack).
        address: of the storage's first byte; None where there is no memory (meta).
        read_only: the holder forbids writes.
        remarks: lazy bits and the like, one sentence each.
    """

    kind: str
    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    storage_bytes: int | None = None
    address: int | None = None
    device: str = "cpu"
    read_only: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def storage_elements(self) -> int | None:
        """How many elements the storage holds."""
        return None if self.storage_bytes is None else self.storage_bytes // self.itemsize


def read(tensor: Any) -> Strided:
    """The facts of a torch tensor, a NumPy array or an object with `__dlpack__`.

    Raises:
        InputError: none of these, or without strides (sparse), or with strides that are not whole
            elements.
    """
    if isinstance(tensor, Strided):
        return tensor
    if isinstance(tensor, np.ndarray):
        return _numpy(tensor)
    torch = sys.modules.get("torch")  # without it nothing can be a torch tensor
    if torch is not None and isinstance(tensor, torch.Tensor):
        return _torch(tensor)
    if hasattr(tensor, "__dlpack__"):
        return _dlpack(tensor)
    raise InputError(
        f"a {type(tensor).__name__} is no tensor",
        hint="give a torch tensor, a NumPy array, or an object with __dlpack__",
    )


def _torch(tensor: torch.Tensor) -> Strided:
    import torch

    if tensor.layout != torch.strided:
        raise InputError(f"a tensor of layout {tensor.layout} has no strides", hint="t.to_dense()")
    remarks = []
    if tensor.is_conj():
        remarks.append("the conjugate bit is set: kernels and .numpy() need resolve_conj(), a copy")
    if tensor.is_neg():
        remarks.append("the negative bit is set: kernels and .numpy() need resolve_neg(), a copy")
    try:
        storage = tensor.untyped_storage()
        size, start = storage.nbytes(), storage.data_ptr()
    except (NotImplementedError, RuntimeError):  # subclasses without memory of their own
        size, start = None, 0
    memory = tensor.device.type != "meta" and start != 0
    return Strided(
        kind="torch",
        dtype=str(tensor.dtype).removeprefix("torch."),
        itemsize=tensor.element_size(),
        shape=tuple(tensor.shape),
        strides=tensor.stride(),
        offset=int(tensor.storage_offset()),
        storage_bytes=size,
        address=start if memory else None,
        device=str(tensor.device),
        remarks=tuple(remarks),
    )


def _numpy(array: np.ndarray) -> Strided:
    size = array.itemsize
    strides = _in_elements(array.strides, size, array.dtype)
    first = array.__array_interface__["data"][0]
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    low, high = np.lib.array_utils.byte_bounds(root)
    remarks = () if array.dtype.isnative else ("its byte order is not this machine's",)
    return Strided(
        kind="numpy",
        dtype=str(array.dtype),
        itemsize=size,
        shape=array.shape,
        strides=strides,
        offset=(first - low) // size,
        storage_bytes=high - low,
        address=low,
        read_only=not array.flags.writeable,
        remarks=remarks,
    )


def _in_elements(strides: Ints, size: int, dtype: Any) -> tuple[int, ...]:
    if size == 0 or any(stride % size for stride in strides):
        raise InputError(
            f"the strides {tuple(strides)} bytes are not multiples of the {size} bytes of {dtype}",
            where="a field of a packed record, most often",
            hint="np.ascontiguousarray(x), which copies",
        )
    return tuple(stride // size for stride in strides)


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned of dlpack.h: its tensor comes last."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


_CODES = {0: "int", 1: "uint", 2: "float", 3: "opaque", 4: "bfloat", 5: "complex", 6: "bool"}
_DEVICES = {1: "cpu", 2: "cuda", 3: "cuda (host)", 7: "vulkan", 8: "metal", 10: "rocm", 13: "cuda"}


def _dlpack(holder: Any) -> Strided:
    capsule = _capsule(holder)
    versioned = _pointer(capsule, b"dltensor_versioned")
    if versioned:
        managed = _Versioned.from_address(versioned)
        tensor, read_only = managed.tensor, bool(managed.flags & 1)
    else:
        plain = _pointer(capsule, b"dltensor")
        if not plain:
            raise InputError(f"the DLPack capsule of a {type(holder).__name__} was used already")
        tensor, read_only = _DLTensor.from_address(plain), False
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[i] for i in range(tensor.ndim))
    else:  # a null pointer means contiguous
        strides = tuple(math.prod(shape[i + 1 :]) for i in range(tensor.ndim))
    below = sum((n - 1) * -step for n, step in zip(shape, strides, strict=True) if n and step < 0)
    kind = _CODES.get(tensor.dtype.code, f"code {tensor.dtype.code} of ")
    bits = tensor.dtype.bits * tensor.dtype.lanes
    return Strided(
        kind="dlpack",
        dtype=kind if kind == "bool" else f"{kind}{bits}",
        itemsize=max(1, (bits + 7) // 8),
        shape=shape,
        strides=strides,
        offset=below,
        address=(tensor.data or 0) + tensor.byte_offset - below * max(1, bits // 8) or None,
        device=_DEVICES.get(tensor.device.type, f"device {tensor.device.type}"),
        read_only=read_only,
        remarks=("DLPack does not tell the size of the storage",),
    )


def _capsule(holder: Any) -> Any:
    """A capsule, of the newest version that the holder speaks."""
    try:
        try:
            return holder.__dlpack__(max_version=(1, 0))
        except TypeError:
            return holder.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"a {type(holder).__name__} gave no DLPack capsule: {error}") from error


def _pointer(capsule: Any, name: bytes) -> int | None:
    api = ctypes.pythonapi
    valid = api.PyCapsule_IsValid
    valid.argtypes, valid.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_int
    if not valid(capsule, name):
        return None
    get = api.PyCapsule_GetPointer
    get.argtypes, get.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    found: int | None = get(capsule, name)
    return found


def from_dlpack(holder: Any) -> torch.Tensor:
    """`torch.from_dlpack`, but a negative stride is an error and not the end of the process.

    Raises:
        InputError: strides that torch cannot hold, or no DLPack.

    Example:
        >>> from_dlpack(np.arange(3)[::-1])
        Traceback (most recent call last):
        ...
        redline.errors.InputError: stride[0] = -1: torch has no negative strides
          hint: copy it first: np.ascontiguousarray(x)
    """
    import torch.utils.dlpack

    from redline.layout.strides import may_exist

    if not hasattr(holder, "__dlpack__"):
        raise InputError(f"a {type(holder).__name__} has no __dlpack__", hint="torch.as_tensor(x)")
    facts = read(holder)
    verdict = may_exist(facts.shape, facts.strides)
    if not verdict:
        raise InputError(verdict.reason, hint="copy it first: np.ascontiguousarray(x)")
    return torch.utils.dlpack.from_dlpack(holder)
