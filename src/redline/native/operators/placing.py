"""Operators that read or write at places which other values name, and pads."""

from __future__ import annotations

from math import prod

import numpy as np

from redline.native.dtypes import ALL, HALVES, NUMBERS
from redline.native.ir import Load, No, Value, contiguous, view
from redline.native.read import Op, Reader, constant, operator

_JOIN = {
    "none": "[](auto, auto b) { return b; }",
    "add": "[](auto a, auto b) { return a + b; }",
    "mul": "[](auto a, auto b) { return a * b; }",
    "max": "[](auto a, auto b) { return a > b || a != a ? a : b; }",
    "min": "[](auto a, auto b) { return a < b || a != a ? a : b; }",
}


def _whole(op: Op, index: int) -> Value:
    found = op.value(index)
    if found.dtype not in (np.int64, np.int32):
        raise No(f"{op.type} by {found.dtype}")
    return found


@operator("GatherElements", types=ALL)
def _gather_elements(r: Reader, op: Op) -> list[Value]:
    return [gather_elements(r, op.value(0), _whole(op, 1), op.attr("axis", 0))]


def gather_elements(r: Reader, x: Value, places: Value, axis: int) -> Value:
    """x with the coordinate along `axis` taken from `places`."""
    axis %= len(x.shape)
    out = r.new(places.shape, x.dtype)
    numbers = (len(x.shape), places.shape, contiguous(x.shape), axis, x.shape[axis])
    return r.call("places.hpp", "gather_elements", out, x, places, units=out.size, numbers=numbers)


@operator("GatherND", types=ALL)
def _gather_nd(r: Reader, op: Op) -> list[Value]:
    x, places, batch = op.value(0), _whole(op, 1), op.attr("batch_dims", 0)
    depth = places.shape[-1]
    rest = x.shape[batch + depth :]
    out = r.new((*places.shape[:-1], *rest), x.dtype)
    count, inner = prod(places.shape[:-1]), prod(rest)
    per = count // max(1, prod(x.shape[:batch]))
    numbers = (depth, x.shape[batch : batch + depth], inner, per, prod(x.shape[batch:]))
    return [
        r.call(
            "places.hpp", "gather_nd", out, x, places, units=count, numbers=numbers, work=out.size
        )
    ]


@operator("ScatterElements", "Scatter", types=ALL)
def _scatter_elements(r: Reader, op: Op) -> list[Value]:
    x, places, updates = op.value(0), _whole(op, 1), op.value(2)
    axis = op.attr("axis", 0) % len(x.shape)
    out = r.new(x.shape, x.dtype)
    numbers = (
        x.size, len(x.shape), places.shape, contiguous(x.shape), axis, x.shape[axis], places.size,
        _JOIN[op.attr("reduction", "none")],
    )  # fmt: skip
    return [r.call("places.hpp", "scatter_elements", out, x, places, updates, numbers=numbers)]


@operator("ScatterND", types=ALL)
def _scatter_nd(r: Reader, op: Op) -> list[Value]:
    x, places, updates = op.value(0), _whole(op, 1), op.value(2)
    depth = places.shape[-1]
    out = r.new(x.shape, x.dtype)
    numbers = (
        x.size, depth, x.shape[:depth], prod(x.shape[depth:]), prod(places.shape[:-1]),
        _JOIN[op.attr("reduction", "none")],
    )  # fmt: skip
    return [r.call("places.hpp", "scatter_nd", out, x, places, updates, numbers=numbers)]


@operator("TensorScatter", types=ALL)
def _tensor_scatter(r: Reader, op: Op) -> list[Value]:
    x, updates = op.value(0), op.value(1)
    axis = op.attr("axis", -2) % len(x.shape)
    batch = x.shape[0]
    starts = op.value(2) if op.has(2) else constant(np.zeros(batch, np.int64))
    inner, length, count = prod(x.shape[axis + 1 :]), x.shape[axis], updates.shape[axis]
    numbers = (x.size, batch, prod(x.shape[1:axis]), length, count, inner)
    circular = str(op.attr("mode", "linear") == "circular").lower()
    out = r.new(x.shape, x.dtype)
    kernel = f"tensor_scatter<{circular}>"
    return [r.call("places.hpp", kernel, out, x, updates, starts, numbers=numbers)]


@operator("OneHot", types=NUMBERS)
def _one_hot(r: Reader, op: Op) -> list[Value]:
    places, depth, values = op.value(0), int(op.const(1).reshape(-1)[0]), op.value(2)
    rank = len(places.shape) + 1
    axis = op.attr("axis", -1) % rank
    spread = r.reshape(places, (*places.shape[:axis], 1, *places.shape[axis:]))
    at = constant(np.arange(depth).reshape(-1, *[1] * (rank - axis - 1)))
    off, on = ((constant(values.const[i]) if values.const is not None
                else view(values, (), (), i * values.steps[0])) for i in (0, 1))  # fmt: skip
    form = (
        f"((int64_t)({{0}}) + ((int64_t)({{0}}) < 0 ? {depth} : 0) == ({{1}}) ? ({{3}}) : ({{2}}))"
    )
    return [r.pointwise(form, spread, at, off, on, dtype=values.dtype, vector=False)]


@operator("ReverseSequence", types=ALL)
def _reverse_sequence(r: Reader, op: Op) -> list[Value]:
    x, lengths = op.value(0), op.value(1)
    first = op.attr("batch_axis", 1) == 0
    out = r.new(x.shape, x.dtype)
    numbers = (x.shape[0], x.shape[1], prod(x.shape[2:]), int(first))
    return [r.call("places.hpp", "reverse_sequence", out, x, lengths, numbers=numbers)]


@operator("CumSum", "CumProd", types=NUMBERS)
def _cumulate(r: Reader, op: Op) -> list[Value]:
    x, axis = op.value(0), int(op.const(1).reshape(-1)[0]) % len(op.value(0).shape)
    out, inner = r.new(x.shape, x.dtype), prod(x.shape[axis + 1 :])
    summed = op.type == "CumSum"
    numbers = (
        x.shape[axis], inner, op.attr("exclusive", 0), op.attr("reverse", 0),
        0 if summed else 1, _JOIN["add" if summed else "mul"],
    )  # fmt: skip
    units = x.size // max(1, x.shape[axis])
    return [r.call("order.hpp", "cumulate", out, x, units=units, numbers=numbers, work=x.size)]


@operator("TopK", types=(*NUMBERS, *HALVES))
def _top_k(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    axis = op.attr("axis", -1) % len(x.shape)
    k = int(op.const(1).reshape(-1)[0]) if op.has(1) else op.attr("k")
    if k > x.shape[axis]:
        raise No(f"the {k} best of {x.shape[axis]}")
    inner, n = prod(x.shape[axis + 1 :]), x.shape[axis]
    out = r.new((*x.shape[:axis], k, *x.shape[axis + 1 :]), np.int64)
    high = str(bool(op.attr("largest", 1))).lower()
    places = r.call(
        "order.hpp", f"top_k<{high}>", out, x, units=x.size // max(1, n), numbers=(n, k, inner),
        work=x.size * 8, scratch_bytes=8 * n,
    )  # fmt: skip
    return [gather_elements(r, x, places, axis), places]


@operator("Pad", types=ALL, note="pads known only at run")
def _pad(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    pads, mode = op.ints(1, "pads"), op.attr("mode", "constant")
    rank = len(x.shape)
    axes = [axis % rank for axis in op.ints(3, "", range(rank))]
    low, high = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        low[axis], high[axis] = pads[i], pads[len(axes) + i]
    x = _cropped(x, low, high)
    low, high = [max(0, n) for n in low], [max(0, n) for n in high]
    if mode == "constant":
        fill = op.value(2) if op.has(2) else constant(np.array(op.attr("value", 0), x.dtype))
        return [padded(r, x, low, high, r.reshape(fill, ()))]
    for axis in range(rank):
        if low[axis] or high[axis]:
            x = _indexed(r, x, axis, _mirror(x.shape[axis], low[axis], high[axis], mode))
    return [x]


def _cropped(x: Value, low: list[int], high: list[int]) -> Value:
    """Where a pad is negative, a view without what it takes away."""
    if min([*low, *high, 0]) >= 0:
        return x
    shape = [n + min(0, a) + min(0, b) for n, a, b in zip(x.shape, low, high, strict=True)]
    offset = sum(-min(0, a) * s for a, s in zip(low, x.steps, strict=True))
    return view(x, tuple(shape), x.steps, offset)


def padded(r: Reader, x: Value, low: list[int], high: list[int], fill: Value) -> Value:
    """x amid `fill`: slabs on both sides of every axis, then x itself."""
    shape = tuple(n + a + b for n, a, b in zip(x.shape, low, high, strict=True))
    if shape == x.shape:
        return x
    out, steps = r.new(shape, x.dtype), contiguous(shape)
    starts, sizes = [0] * len(shape), list(shape)
    for axis, (n, a, b) in enumerate(zip(x.shape, low, high, strict=True)):
        for start, size in ((0, a), (a + n, b)):
            if size:
                part = (*sizes[:axis], size, *sizes[axis + 1 :])
                at = sum(p * s for p, s in zip(starts, steps, strict=True)) + start * steps[axis]
                _write(r, view(out, part, steps, at), fill)
        starts[axis], sizes[axis] = a, n
    _write(r, view(out, x.shape, steps, sum(p * s for p, s in zip(low, steps, strict=True))), x)
    return out


def _write(r: Reader, place: Value, what: Value) -> None:
    if place.size:
        r.add("loop", place)
        r.nodes[-1].expr = Load(what)


def _mirror(n: int, low: int, high: int, mode: str) -> np.ndarray:
    """For each padded place the place that it shows."""
    at = np.arange(-low, n + high)
    if mode == "edge":
        return np.clip(at, 0, n - 1)
    if mode == "wrap":
        return at % n
    period = max(1, 2 * (n - 1))
    at = at % period
    return np.where(at < n, at, period - at)


def _indexed(r: Reader, x: Value, axis: int, places: np.ndarray) -> Value:
    """Places of one axis, known at build."""
    out = r.new((*x.shape[:axis], len(places), *x.shape[axis + 1 :]), x.dtype)
    sizes = {"outer": prod(x.shape[:axis]), "inner": prod(x.shape[axis + 1 :])}
    sizes |= {"length": x.shape[axis], "count": len(places)}
    return r.add("gather", out, r.dense(x), constant(places.astype(np.int64)), **sizes)
