"""Memory as storages: what two views share is held, and counted, once."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors(nest: Any) -> list[torch.Tensor]:
    """Every tensor in a nest of containers; objects that are no container are passed over."""
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, torch.Tensor)]


def key(tensor: torch.Tensor) -> tuple[int, int]:
    """(identity of the memory, its bytes). Two views of one tensor have the same.

    The identity holds for as long as something keeps the memory alive. A tensor without a
    storage of its own (sparse) counts by its elements.
    """
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return id(tensor), tensor.numel() * tensor.element_size()
    return storage._cdata, storage.nbytes()


def keys(found: Iterable[torch.Tensor]) -> set[int]:
    """The identities of the memory of some tensors."""
    return {key(tensor)[0] for tensor in found}


def spell(tensor: torch.Tensor) -> str:
    """Shape and type in one word.

    Example:
        >>> spell(torch.zeros(1, 3)), spell(torch.tensor(0))
        ('1x3 float32', 'scalar int64')
    """
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operators make, from when they are made until they are let go.

    Not counted: what a kernel takes and gives back inside (workspaces), and the rounding of an
    allocator.
    """

    def __init__(self, known: Iterable[torch.Tensor], made: Callable[[int], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._held = {key(tensor)[0]: -1 for tensor in known}  # there before: not counted
        self._numbers: Iterator[int] = itertools.count()
        self._made = made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            self._count(tensor)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        identity, size = key(tensor)
        if identity in self._held or tensor.is_sparse:
            return
        number = self._held[identity] = next(self._numbers)
        weakref.finalize(tensor.untyped_storage(), self._let_go, identity, number, size)
        self.live += size
        self.peak = max(self.peak, self.live)
        self._made(size)

    def _let_go(self, identity: int, number: int, size: int) -> None:
        if self._held.get(identity) == number:
            del self._held[identity]
            self.live -= size
