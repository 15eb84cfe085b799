"""The four meanings of "legal", asked of tensors; strides.py and overlap.py hold the rules."""

from __future__ import annotations

from typing import Any

from redline.errors import UnknownNameError
from redline.layout import overlap, strides
from redline.layout.source import read
from redline.layout.strides import ORDERS, Ints, Verdict
from redline.layout.view import explain_view


def may_exist(shape: Ints, stride: Ints, offset: int = 0, storage: int | None = None) -> Verdict:
    """May a tensor with this shape and these strides be made? The rule of `torch.as_strided`.

    Args:
        stride: in elements, as `offset` and `storage` are.
        storage: elements of the storage; None if only the strides are in question.

    Example:
        >>> bool(may_exist((3, 3), (1, 1), storage=5))     # overlap is allowed
        True
    """
    return strides.may_exist(tuple(shape), tuple(stride), offset, storage)


def may_view(tensor: Any, shape: Any) -> Verdict:
    """May it be viewed as `shape` without a copy? `explain_view` says more.

    Raises:
        InputError: not a tensor.

    Example:
        >>> may_view(torch.zeros(2, 3, 4).permute(2, 0, 1), (4, 6)).legal
        True
    """
    told = explain_view(tensor, shape)
    return Verdict(told.legal, told.reason, told.strides)


def is_contiguous(tensor: Any, memory_format: str = "contiguous") -> Verdict:
    """Do its elements lie in the order of the memory format, without gaps?

    Raises:
        InputError: not a tensor.
        UnknownNameError: not a memory format.

    Example:
        >>> is_contiguous(torch.zeros(0, 4).t()).legal     # nothing to be out of order
        True
    """
    name = str(memory_format).removeprefix("torch.").removesuffix("_format")
    known = ["contiguous", *ORDERS]
    if name not in known:
        raise UnknownNameError("memory format", name, known)
    facts = read(tensor)
    return strides.is_contiguous(facts.shape, facts.strides, name)


def may_write(tensor: Any) -> Verdict:
    """May it be written in place, so that one write changes one element?

    Raises:
        InputError: not a tensor.

    Example:
        >>> print(may_write(torch.zeros(3).expand(2, 3)))
        no: dim 0 has stride 0, so its 2 indices are one element; torch refuses
    """
    facts = read(tensor)
    if facts.read_only:
        return Verdict(False, "its owner made it read-only")
    return overlap.may_write(facts.shape, facts.strides)
