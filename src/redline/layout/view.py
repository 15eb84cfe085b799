"""`explain_view`: may a tensor be viewed under another shape, why not, and what to do instead."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redline.layout.source import Strided, read
from redline.layout.strides import (
    ORDERS,
    Ints,
    Verdict,
    chunks,
    is_contiguous,
    may_view,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Alternative:
    """Something else to write, that copies nothing.

    Attributes:
        code: to be called on the tensor.
        shape: what it gives.
        same_order: its elements come in the order that the refused view asked for.
        why: what it does, and how it differs from what was asked.
    """

    code: str
    shape: tuple[int, ...]
    same_order: bool
    why: str


@dataclass(frozen=True)
class ViewExplanation:
    """Whether a view is legal, why, what a copy costs, and what is free.

    Attributes:
        legal: torch's `view` takes it.
        reason: the numbers that decided it.
        strides: of the view; None if it is not legal.
        cost_bytes: what `reshape` would write: 0 for a legal view, None where no reshape can be.
        alternatives: free ones.
    """

    asked: str
    shape: tuple[int, ...]
    tensor_strides: tuple[int, ...]
    legal: bool
    reason: str
    strides: tuple[int, ...] | None
    cost_bytes: int | None
    alternatives: tuple[Alternative, ...] = ()

    def __bool__(self) -> bool:
        return self.legal

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        outcome = "legal, nothing is copied" if self.legal else "not legal"
        yield f"{self.asked} of {self.shape} with strides {self.tensor_strides}: {outcome}"
        yield f"  why: {self.reason}"
        if self.legal:
            yield f"  strides of the view: {self.strides}"
        elif self.cost_bytes is not None:
            yield f"  {self.asked.replace('view', 'reshape', 1)} copies {self.cost_bytes} bytes"
        for one in self.alternatives:
            yield f"  free: {one.code}  gives {one.shape}; {one.why}"

    def _repr_html_(self) -> str:
        from redline.layout.page import preformatted

        return preformatted(str(self))


def explain_view(tensor: Any, shape: Any) -> ViewExplanation:
    """Whether `tensor.view(shape)` is legal, by the rule of chunks, and what to write if not.

    Args:
        tensor: a torch tensor, a NumPy array, or an object with DLPack. Its data is not read.
        shape: whole numbers, one of which may be -1; or a torch dtype, as for `view(dtype)`.

    Raises:
        InputError: not a tensor.

    Example:
        >>> x = torch.arange(24).reshape(2, 3, 4)
        >>> explain_view(x.permute(2, 0, 1), (4, 6)).legal
        True
        >>> explain_view(x.permute(1, 0, 2), (3, 8)).alternatives[0].code
        'view(3, 2, 4)'
    """
    facts = read(tensor)
    if hasattr(shape, "itemsize") and not isinstance(shape, int):
        return _explain_dtype(facts, shape)
    sizes = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
    asked = f"view({', '.join(map(str, sizes))})"
    full = _filled(facts.shape, sizes)
    if isinstance(full, str):
        return ViewExplanation(asked, facts.shape, facts.strides, False, full, None, None)
    verdict = may_view(facts.shape, facts.strides, full)
    cost = 0 if verdict else facts.count * facts.itemsize
    others = () if verdict else tuple(_alternatives(facts, full))
    return ViewExplanation(
        asked,
        facts.shape,
        facts.strides,
        verdict.legal,
        verdict.reason,
        verdict.strides,
        cost,
        others,
    )


def _filled(shape: Ints, asked: Ints) -> tuple[int, ...] | str:
    """The asked sizes with -1 worked out, or why no shape comes of them."""
    count = math.prod(shape)
    holes = [dim for dim, size in enumerate(asked) if size == -1]
    if any(size < -1 for size in asked):
        return f"a size below -1 in {tuple(asked)}"
    if len(holes) > 1:
        return "only one size can be worked out from the others (-1)"
    known = math.prod(size for size in asked if size != -1)
    if not holes:
        if known != count:
            return f"{tuple(asked)} has {known} elements, the tensor has {count}"
        return tuple(asked)
    if known == 0:
        why = "could be any number" if count == 0 else f"cannot make {count} elements"
        return f"-1 beside a size 0 {why}"
    if count % known:
        return f"{count} elements cannot be split by {known}, the product of the other sizes"
    return tuple(count // known if size == -1 else size for size in asked)


def _alternatives(facts: Strided, shape: tuple[int, ...]) -> Iterator[Alternative]:
    """Free ways out, the one that keeps the order of the elements first."""
    finer = _refined(facts, shape)
    if finer:
        why = "the same elements in the same order, with the dims that cannot merge left apart"
        yield Alternative(_call("view", finer), finer, True, why)
    order = memory_order(facts.shape, facts.strides)
    moved = [facts.shape[dim] for dim in order]
    along = [facts.strides[dim] for dim in order]
    if order != tuple(range(len(order))) and may_view(moved, along, shape):
        step = _step(order)
        name = _format_of(order)
        why = f"its elements come in the order of memory{name}, which is another order"
        yield Alternative(f"{step}.{_call('view', shape)}", shape, False, why)


def memory_order(shape: Ints, strides: Ints) -> tuple[int, ...]:
    """The dims from the largest stride to the smallest; ties and dims of size 1 keep their place.

    Example:
        >>> memory_order((2, 3, 4), (12, 1, 3))
        (0, 2, 1)
    """
    big = [dim for dim in range(len(shape)) if shape[dim] != 1]
    order = iter(sorted(big, key=lambda dim: -abs(strides[dim])))
    return tuple(dim if shape[dim] == 1 else next(order) for dim in range(len(shape)))


def _refined(facts: Strided, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The coarsest shape that splits both the asked sizes and the chunks; None if none does."""
    edges = {1, facts.count}
    for sizes in (shape, [chunk.size for chunk in chunks(facts.shape, facts.strides)]):
        total = 1
        for size in reversed(sizes):
            total *= size
            edges.add(total)
    inner = sorted(edges)
    pairs = list(itertools.pairwise(inner))
    if any(high % low for low, high in pairs):
        return None
    return tuple(high // low for low, high in reversed(pairs))


def _step(order: tuple[int, ...]) -> str:
    moved = [dim for dim in range(len(order)) if order[dim] != dim]
    if len(moved) == 2:
        return f"transpose({moved[0]}, {moved[1]})"
    return _call("permute", order)


def _format_of(order: tuple[int, ...]) -> str:
    name = next((name for name, dims in ORDERS.items() if dims == order), "")
    return f" ({name})" if name else ""


def _call(name: str, sizes: Ints) -> str:
    return f"{name}({', '.join(map(str, sizes))})"


def _explain_dtype(facts: Strided, dtype: torch.dtype) -> ViewExplanation:
    """`view(dtype)`: the elements of the last dim are cut up or put together."""
    verdict = may_view_dtype(facts, dtype.itemsize)
    cost = 0 if verdict else facts.count * facts.itemsize
    asked = f"view({dtype})"
    return ViewExplanation(
        asked,
        facts.shape,
        facts.strides,
        verdict.legal,
        verdict.reason,
        verdict.strides,
        cost,
    )


def may_view_dtype(facts: Strided, itemsize: int) -> Verdict:
    """May the bytes be seen as elements of another size (torch's `view(dtype)`)?

    Example:
        >>> print(may_view_dtype(read(np.zeros((2, 3), np.float32)), 8))
        no: size[-1] = 3 is not a multiple of 2 (from 4 to 8 bytes)
    """
    old, shape, strides = facts.itemsize, facts.shape, facts.strides
    if old == itemsize:
        return Verdict(True, "elements of both dtypes have the same size", strides)
    if not shape:
        return Verdict(False, "without dims, elements of another size have no place")
    if strides[-1] != 1:
        return Verdict(False, f"stride[-1] = {strides[-1]}, and another size of elements needs 1")
    if itemsize < old:
        ratio = old // itemsize
        found = (*(stride * ratio for stride in strides[:-1]), 1)
        return Verdict(True, f"each element of {old} bytes becomes {ratio}", found)
    ratio = itemsize // old
    told = f"is not a multiple of {ratio} (from {old} to {itemsize} bytes)"
    if shape[-1] % ratio:
        return Verdict(False, f"size[-1] = {shape[-1]} {told}")
    if facts.offset % ratio:
        return Verdict(False, f"the offset {facts.offset} {told}")
    for dim, stride in enumerate(strides[:-1]):
        if stride % ratio:
            return Verdict(False, f"stride[{dim}] = {stride} {told}")
    found = (*(stride // ratio for stride in strides[:-1]), 1)
    return Verdict(True, f"{ratio} elements of {old} bytes become one", found)


def would_copy(tensor: Any, memory_format: str = "contiguous") -> int:
    """Bytes that `.contiguous(memory_format=...)` would copy: 0 where it already is.

    Example:
        >>> would_copy(torch.zeros(4, 6).t())
        96
    """
    facts = read(tensor)
    done = is_contiguous(facts.shape, facts.strides, memory_format)
    return 0 if done else facts.count * facts.itemsize
