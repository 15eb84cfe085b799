"""The four meanings of "legal" for a shape and its strides, as plain arithmetic on integers.

may_exist      may a tensor with these strides be made at all?
may_view       may these elements be seen under another shape without a copy?
is_contiguous  do they lie in the order of their indices, without gaps?
may_write      has every index an address of its own?

Strides and offsets count elements, as torch and DLPack do (NumPy counts bytes). Nothing here needs
torch; docs/strides.md says where torch has each rule, and the tests hold each against torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Ints = Sequence[int]


@dataclass(frozen=True)
class Verdict:
    """The answer to one of the four questions; true when it is yes.

    Attributes:
        legal: the answer.
        reason: why, with the numbers that decided it.
        strides: of the view, for may_view.
        witness: two indices with one address, for may_write.

    Example:  # doctest: +NORMALIZE_WHITESPACE
        >>> print(may_view((3, 2), (1, 3), (6,)))
        no: dims 0 and 1 do not merge: stride[0] = 1, but size[1]*stride[1] = 2*3 = 6; new dim 0 \
        (size 6) would need elements from both
    """

    legal: bool
    reason: str
    strides: tuple[int, ...] | None = None
    witness: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __bool__(self) -> bool:
        return self.legal

    def __str__(self) -> str:
        return f"{'yes' if self.legal else 'no'}: {self.reason}"


@dataclass(frozen=True)
class Chunk:
    """Neighbouring dims that lie in memory as one dim would: its size, stride, and which they are.

    `dims` runs from outer to inner and leaves out dims of size 1, which never end a chunk.
    """

    size: int
    stride: int
    dims: tuple[int, ...]


def chunks(shape: Ints, strides: Ints) -> tuple[Chunk, ...]:
    """Merge dims i and i+1 where stride[i] == size[i+1] * stride[i+1]; outer to inner.

    Example:
        >>> [(chunk.size, chunk.stride) for chunk in chunks((4, 2, 3), (1, 12, 4))]
        [(4, 1), (6, 4)]
    """
    found: list[Chunk] = []
    for dim in reversed(range(len(shape))):
        size, stride = shape[dim], strides[dim]
        if size == 1:
            continue
        inner = found[-1] if found else None
        if inner and stride == inner.size * inner.stride:
            found[-1] = Chunk(size * inner.size, inner.stride, (dim, *inner.dims))
        else:
            found.append(Chunk(size, stride, (dim,)))
    return tuple(reversed(found))


def standard_strides(shape: Ints) -> tuple[int, ...]:
    """The strides of a new tensor: each the product of the later sizes, where 0 counts as 1."""
    strides = [1] * len(shape)
    for dim in reversed(range(len(shape) - 1)):
        strides[dim] = strides[dim + 1] * max(shape[dim + 1], 1)
    return tuple(strides)


def span(shape: Ints, strides: Ints) -> int:
    """Elements from the first address to the last, both counted; 0 for an empty tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def may_exist(shape: Ints, strides: Ints, offset: int = 0, storage: int | None = None) -> Verdict:
    """May a tensor with these strides be made (as_strided, set_, empty_strided)?

    Args:
        storage: elements that the storage holds; None leaves that question out.

    Example:
        >>> print(may_exist((3, 4), (4, 1), offset=1, storage=12))
        no: it needs 1 + 12 = 13 elements of storage, which holds 12
    """
    if len(shape) != len(strides):
        return Verdict(False, f"{len(shape)} sizes but {len(strides)} strides")
    for dim, size in enumerate(shape):
        if size < 0:
            return Verdict(False, f"size[{dim}] = {size} is negative")
    for dim, stride in enumerate(strides):
        if stride < 0:
            return Verdict(False, f"stride[{dim}] = {stride}: torch has no negative strides")
    if offset < 0:
        return Verdict(False, f"the offset {offset} is negative")
    if 0 in shape:
        return Verdict(True, "it has no elements, so no address is checked")
    needed = span(shape, strides)
    if storage is None:
        return Verdict(True, f"it needs {offset} + {needed} elements of storage")
    if offset + needed > storage:
        total = f"{offset} + {needed} = {offset + needed}"
        return Verdict(False, f"it needs {total} elements of storage, which holds {storage}")
    return Verdict(True, f"its last element lies at {offset + needed - 1} of {storage}")


def may_view(shape: Ints, strides: Ints, new_shape: Ints) -> Verdict:
    """May these elements be seen as `new_shape` (without -1) without a copy, in the same order?

    The sizes of the new shape, read from the right, must fill each chunk exactly.

    Example:
        >>> may_view((4, 2, 3), (1, 12, 4), (4, 6)).strides
        (1, 4)
    """
    count, wanted = math.prod(shape), math.prod(new_shape)
    if count != wanted:
        return Verdict(False, f"{tuple(new_shape)} has {wanted} elements, the tensor has {count}")
    if count == 0:
        same = tuple(shape) == tuple(new_shape)
        return Verdict(
            True, "it has no elements", tuple(strides) if same else standard_strides(new_shape)
        )
    found = _view_strides(shape, strides, new_shape)
    merged = chunks(shape, strides)
    if found is None:
        return Verdict(False, _clash(merged, new_shape, shape, strides))
    return Verdict(True, _fits(merged), found)


def _view_strides(shape: Ints, strides: Ints, new_shape: Ints) -> tuple[int, ...] | None:
    """torch's own walk (ATen/TensorUtils.cpp, computeStride_impl), from the last dim to the first.

    It gives dims of size 1 the strides that torch gives them, which chunks() need not know.
    """
    if not shape:
        return (1,) * len(new_shape)
    found = [0] * len(new_shape)
    dim, base, size, filled = len(new_shape) - 1, strides[-1], 1, 1
    for old in reversed(range(len(shape))):
        size *= shape[old]
        if old and (shape[old - 1] == 1 or strides[old - 1] == size * base):
            continue  # the next outer dim belongs to this chunk
        while dim >= 0 and (filled < size or new_shape[dim] == 1):
            found[dim] = filled * base
            filled *= new_shape[dim]
            dim -= 1
        if filled != size:
            return None
        if old:
            base, size, filled = strides[old - 1], 1, 1
    return tuple(found)


def _fits(merged: Sequence[Chunk]) -> str:
    if len(merged) <= 1:
        return "all dims lie in memory as one"
    groups = ", ".join(f"{_listed(chunk.dims)} (size {chunk.size})" for chunk in merged)
    return f"the new sizes split along the chunks of memory, which are {groups}"


def _clash(merged: Sequence[Chunk], new_shape: Ints, shape: Ints, strides: Ints) -> str:
    """Which two dims do not merge, by which numbers, and which new dim would need them to."""
    place, dim, filled = len(merged) - 1, len(new_shape) - 1, 1
    while True:
        while new_shape[dim] == 1 or (filled < merged[place].size):
            filled *= new_shape[dim]
            dim -= 1
        if filled != merged[place].size:
            break
        place, filled = place - 1, 1
    outer, inner = merged[place - 1].dims[-1], merged[place].dims[0]
    product = f"{shape[inner]}*{strides[inner]}"
    return (
        f"dims {outer} and {inner} do not merge: stride[{outer}] = {strides[outer]}, but "
        f"size[{inner}]*stride[{inner}] = {product} = {shape[inner] * strides[inner]}; "
        f"new dim {dim + 1} (size {new_shape[dim + 1]}) would need elements from both"
    )


def _listed(dims: Ints) -> str:
    return f"dim {dims[0]}" if len(dims) == 1 else "dims " + "+".join(map(str, dims))


ORDERS = {  # the memory formats that torch names: dims from outer to inner
    "channels_last": (0, 2, 3, 1),
    "channels_last_3d": (0, 2, 3, 4, 1),
}


def is_contiguous(shape: Ints, strides: Ints, memory_format: str = "contiguous") -> Verdict:
    """Do the elements lie in the order of the memory format, without gaps?

    Strides of dims of size 1 do not count, and a tensor without elements is contiguous.

    Args:
        memory_format: "contiguous", "channels_last" (4 dims) or "channels_last_3d" (5 dims).

    Example:
        >>> print(is_contiguous((2, 3), (1, 2)))
        no: stride[1] = 2, but the sizes inside it make 1
    """
    order = ORDERS.get(memory_format, tuple(range(len(shape))))
    if len(order) != len(shape):
        return Verdict(False, f"{memory_format} is for {len(order)} dims, this has {len(shape)}")
    if 0 in shape and memory_format == "contiguous":
        return Verdict(True, "it has no elements")
    expected = 1
    for dim in reversed(order):
        if shape[dim] == 1:
            continue
        if strides[dim] != expected:
            told = f"stride[{dim}] = {strides[dim]}, but the sizes inside it make {expected}"
            return Verdict(False, told)
        expected *= shape[dim]
    return Verdict(True, "each stride is the product of the sizes inside it")


def is_dense(shape: Ints, strides: Ints) -> bool:
    """Non-overlapping and dense: contiguous in some order of its dims, as torch defines it.

    Example:
        >>> is_dense((2, 3), (1, 2)), is_dense((2, 3), (6, 2))
        (True, False)
    """
    if 0 in shape:
        return True
    expected = 1
    for size, stride in sorted(
        zip(shape, strides, strict=True), key=lambda pair: (pair[0] < 2, pair[1])
    ):
        if size < 2:
            return True
        if stride != expected:
            return False
        expected *= size
    return True
