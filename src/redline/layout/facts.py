"""`describe`: everything that shape, strides and storage say about one tensor."""

from __future__ import annotations

import gc
import inspect
import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from redline.layout.overlap import may_write
from redline.layout.source import Strided, read
from redline.layout.strides import (
    ORDERS,
    Verdict,
    chunks,
    is_contiguous,
    is_dense,
    may_exist,
    span,
)
from redline.layout.view import memory_order

LINE = 64  # bytes of a cache line on every x86-64 and most arm64 machines
_WALKED = 1 << 20  # elements of the walk that are counted at most


@dataclass(frozen=True)
class Walk:
    """Cache lines met when the elements are read in the order of their indices.

    Attributes:
        touched: lines for each element when only the last line is kept: 1.0 is the worst.
        least: distinct lines for each element: what a cache that holds everything fetches.
        elements: how many were walked; fewer than there are for a large tensor.
    """

    touched: float
    least: float
    elements: int


@dataclass(frozen=True)
class Layout:
    """What `describe` found; prints itself, and draws itself in a notebook.

    Attributes:
        facts: shape, strides, offset, storage (see Strided).
        exists: the strides fit their storage. A storage that was shrunk later no longer does.
        contiguous: in the order of the indices; chunks: the dims that lie in memory as one.
        formats: torch's memory formats that it satisfies; more than one is ambiguous.
        suggested: the format that operators will take for their outputs ("" for none by name).
        dense: no gaps and no overlap, in some order of the dims.
        broadcast: the dims of stride 0.
        write: may it be written, and which two indices collide if not.
        walk: cache lines met in the order of the indices.
        views: names or addresses of other live tensors on the same storage.
    """

    facts: Strided
    exists: Verdict
    contiguous: Verdict
    chunks: tuple[tuple[int, ...], ...]
    formats: tuple[str, ...]
    suggested: str
    dense: bool
    broadcast: tuple[int, ...]
    write: Verdict
    walk: Walk
    views: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int = 100) -> str:
        """The facts and the picture as plain text, the picture folded at `width` columns."""
        from redline.layout.picture import picture

        rows = self.rows()
        label = max(len(name) for name, _ in rows)
        lines = [f"{name:<{label}}  {value}" for name, value in rows]
        return "\n".join([*lines, "", picture(self.facts, width)])

    def svg(self) -> str:
        """The storage strip, the index grid and the walk as one SVG document."""
        from redline.layout.svg import draw

        return draw(self.facts)

    def html(self) -> str:
        """One HTML document with the facts and the picture; it asks the network for nothing."""
        from redline.layout.page import document

        return document("Layout of a tensor", self._repr_html_())

    def _repr_html_(self) -> str:
        from redline.layout.page import facts_table

        return facts_table(self.rows()) + self.svg()

    def rows(self) -> list[tuple[str, str]]:
        """(what it is, its value) in words."""
        facts, walk = self.facts, self.walk
        where = "no memory" if facts.address is None else f"at {facts.address:#x}"
        size = "size unknown" if facts.storage_bytes is None else f"{facts.storage_bytes} bytes"
        used = f"{facts.count} elements of {facts.itemsize} bytes"
        rows = [
            ("tensor", f"{facts.kind} {facts.dtype} on {facts.device}: {used}"),
            ("shape", f"{facts.shape}"),
            ("strides", f"{facts.strides} elements"),
            ("offset", f"{facts.offset} elements"),
            ("storage", f"{size}, {where}"),
            ("exists", str(self.exists)),
            ("contiguous", str(self.contiguous)),
            ("chunks", _spelled(self.chunks)),
            ("memory format", self._format()),
            ("dense", "yes" if self.dense else "no: there are gaps or overlaps"),
            ("broadcast dims", ", ".join(map(str, self.broadcast)) or "none"),
            ("may be written", self._writing()),
            ("cache lines", f"{walk.touched:.3g} for each element in index order, {_part(walk)}"),
        ]
        rows += [("views", ", ".join(self.views))] if self.views else []
        return rows + [("note", remark) for remark in facts.remarks]

    def _format(self) -> str:
        formats = ", ".join(self.formats) or f"none by name; memory order {self._order()}"
        if len(self.formats) > 1:
            seen = self.suggested or "none"
            formats += f" (ambiguous: sizes of 1 fit both; operators will take it for {seen})"
        return formats

    def _order(self) -> str:
        return f"{memory_order(self.facts.shape, self.facts.strides)}"

    def _writing(self) -> str:
        if self.facts.read_only:
            return "no: its owner made it read-only"
        return str(self.write)


def _spelled(groups: tuple[tuple[int, ...], ...]) -> str:
    """Example: dims 0+1 | dim 2."""
    named = (f"dim{'s' if len(dims) > 1 else ''} {'+'.join(map(str, dims))}" for dims in groups)
    return " | ".join(named) or "none"


def _part(walk: Walk) -> str:
    told = f"{walk.least:.3g} at least ({LINE}-byte lines"
    return (
        f"{told}; the first {walk.elements} elements)" if walk.elements == _WALKED else told + ")"
    )


def describe(tensor: Any) -> Layout:
    """Shape, strides, storage and what follows from them. The data are not read.

    Args:
        tensor: a torch tensor, a NumPy array, or an object with `__dlpack__`.

    Raises:
        InputError: none of these, or without strides (sparse).

    Example:
        >>> describe(torch.zeros(2, 3, 4).permute(2, 0, 1)).chunks
        ((0,), (1, 2))
    """
    facts = read(tensor)
    shape, strides = facts.shape, facts.strides
    return Layout(
        facts=facts,
        exists=_exists(facts),
        contiguous=is_contiguous(shape, strides),
        chunks=tuple(chunk.dims for chunk in chunks(shape, strides)),
        formats=tuple(name for name in ("contiguous", *ORDERS) if _is(name, facts)),
        suggested=suggested_format(facts),
        dense=is_dense(shape, tuple(map(abs, strides))),
        broadcast=tuple(d for d in range(len(shape)) if strides[d] == 0 and shape[d] > 1),
        write=may_write(shape, strides),
        walk=walk(facts),
        views=_views(tensor) if facts.kind == "torch" else (),
    )


def _is(name: str, facts: Strided) -> bool:
    return bool(is_contiguous(facts.shape, facts.strides, name))


def _exists(facts: Strided) -> Verdict:
    """For NumPy, negative strides are fine; what is asked is the reach in both directions."""
    if all(stride >= 0 for stride in facts.strides):
        return may_exist(facts.shape, facts.strides, facts.offset, facts.storage_elements)
    return Verdict(True, "NumPy has negative strides; torch has none, and would need a copy")


def suggested_format(facts: Strided) -> str:
    """The format that operators infer from strides, those of sizes of 1 included.

    It is c10's is_channels_last_strides_2d (and _3d), which differs from is_contiguous() where
    sizes are 1: the reason why a tensor can be both and still be taken for only one.

    Example:
        >>> suggested_format(read(torch.zeros(4, 1, 5, 5)))
        'contiguous'
    """
    for name, order in ORDERS.items():
        if len(order) == len(facts.shape) and _channels_last(facts, order):
            return name
    return "contiguous" if _is("contiguous", facts) else ""


def _channels_last(facts: Strided, order: tuple[int, ...]) -> bool:
    shape, strides, least = facts.shape, facts.strides, 0
    if strides[1] == 0:
        return False
    for dim in reversed(order):
        if shape[dim] == 0 or strides[dim] < least:
            return False
        if dim == 0 and least == strides[1]:  # N11W and NC11 are left to the default format
            return False
        least = strides[dim]
        if shape[dim] > 1:
            least *= shape[dim]
    return True


def walk(facts: Strided) -> Walk:
    """Count cache lines along the walk in index order; lines start where the storage starts
    when the address is not known.
    """
    count = min(facts.count, _WALKED)
    if count == 0 or any(stride * facts.itemsize > 1 << 52 for stride in facts.strides):
        return Walk(0.0, 0.0, 0)
    places = positions(facts, count)
    begin = (facts.address or 0) % LINE
    lines = (places * facts.itemsize + begin) // LINE
    touched = 1 + int(np.count_nonzero(np.diff(lines)))
    return Walk(touched / count, len(np.unique(lines)) / count, count)


def positions(facts: Strided, count: int) -> np.ndarray:
    """Places in the storage, in elements, of the first `count` elements in index order."""
    index = np.arange(count, dtype=np.int64)
    places = np.full(count, facts.offset, dtype=np.int64)
    for size, stride in zip(reversed(facts.shape), reversed(facts.strides), strict=True):
        places += index % size * stride
        index //= size
    return places


def _views(tensor: Any) -> tuple[str, ...]:
    """Live torch tensors on the same storage: by name in the caller's variables, else by shape.

    It asks the garbage collector, so tensors that only C++ holds (saved for backward) are missing.
    """
    torch = sys.modules["torch"]
    if tensor.device.type == "meta" or not tensor.untyped_storage().data_ptr():
        return ()
    address = tensor.untyped_storage().data_ptr()
    names = _callers_names()
    found = []
    for other in gc.get_objects():
        # Fake, functional and other subclasses are left out: asking for their storage warns.
        if type(other) not in (torch.Tensor, torch.nn.Parameter) or other is tensor:
            continue
        try:
            same = other.untyped_storage().data_ptr() == address
        except (NotImplementedError, RuntimeError):  # sparse
            continue
        if same:
            at = f"{tuple(other.shape)} strides {other.stride()} offset {other.storage_offset()}"
            found.append(f"{names.get(id(other), 'a tensor')} {at}")
    return tuple(sorted(found))


def _callers_names() -> dict[int, str]:
    """id -> name, of the variables of the frame that called us from outside this package."""
    frame = inspect.currentframe()
    while frame and frame.f_globals.get("__name__", "").startswith("redline.layout"):
        frame = frame.f_back
    if frame is None:
        return {}
    return {id(value): name for name, value in {**frame.f_globals, **frame.f_locals}.items()}


def spans(facts: Strided) -> int:
    """Elements of the strip to draw: the storage, or the tensor's own reach if that is unknown."""
    reach = facts.offset + span(facts.shape, tuple(map(abs, facts.strides)))
    return facts.storage_elements if facts.storage_elements is not None else math.ceil(reach)
