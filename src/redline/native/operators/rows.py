"""Operators that reduce: over the last axis by a row kernel, over others after a transpose."""

from __future__ import annotations

from math import prod

import numpy as np

from redline.native.dtypes import FLOATS, NUMBERS
from redline.native.ir import Load, No, Node, Value, view
from redline.native.literals import literal
from redline.native.operators.anchors import global_pool
from redline.native.read import Op, Reader, constant, operator

_REDUCE = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare")


def _rows(r: Reader, kind: str, x: Value, out: Value, *ins: Value, **attrs: object) -> Value:
    r.nodes.append(Node(kind, out, list(ins), Load(x), dict(attrs), [out.name]))
    return out


def last(x: Value, axis: int) -> tuple[Value, tuple[int, ...]]:
    """x with `axis` moved to the end, and the permutation that moved it."""
    axes = [i for i in range(len(x.shape)) if i != axis % len(x.shape)] + [axis % len(x.shape)]
    seen = view(x, tuple(x.shape[i] for i in axes), tuple(x.steps[i] for i in axes))
    return (x if axes == sorted(axes) else seen), tuple(axes)


def back(out: Value, axes: tuple[int, ...]) -> Value:
    """The axes of `last`'s result in their old order."""
    if list(axes) == sorted(axes):
        return out
    order = np.argsort(axes)
    return view(out, tuple(out.shape[i] for i in order), tuple(out.steps[i] for i in order))


@operator("Softmax", "LogSoftmax")
def _softmax(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    if not x.shape:
        raise No(f"{op.type} of a scalar")
    if op.opset < 13:  # over all axes from `axis` on
        axis = op.attr("axis", 1) % len(x.shape)
        flat = r.reshape(x, (prod(x.shape[:axis]), prod(x.shape[axis:])))
        return [r.reshape(softmax(r, flat, -1, op.type.lower()), x.shape)]
    return [softmax(r, x, op.attr("axis", -1), op.type.lower())]


def softmax(r: Reader, x: Value, axis: int, kind: str = "softmax") -> Value:
    """Along one axis."""
    moved, axes = last(x, axis)
    return back(_rows(r, kind, moved, r.new(moved.shape, x.dtype)), axes)


@operator("Hardmax")
def _hardmax(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    axis = op.attr("axis", -1 if op.opset >= 13 else 1) % len(x.shape)
    end = axis + 1 if op.opset >= 13 else len(x.shape)
    length = prod(x.shape[axis:end])
    flat = r.reshape(x, (*x.shape[:axis], length, *x.shape[end:]))
    best = arg(r, flat, axis, high=True)
    places = np.arange(length).reshape(-1, *[1] * (len(flat.shape) - axis - 1))
    out = r.pointwise("(({0}) == ({1}))", best, constant(places), dtype=bool, vector=False)
    return [r.reshape(r.cast(out, x.dtype), x.shape)]


def arg(r: Reader, x: Value, axis: int, *, high: bool, latest: bool = False) -> Value:
    """The place of the highest or lowest element along an axis, kept with length 1."""
    inner = prod(x.shape[axis + 1 :])
    out = r.new((*x.shape[:axis], 1, *x.shape[axis + 1 :]), np.int64)
    kernel = f"arg_best<{str(high).lower()}, {str(latest).lower()}>"
    numbers = (x.shape[axis], inner)
    return r.call("order.hpp", kernel, out, x, units=out.size, numbers=numbers, work=x.size)


@operator("ArgMax", "ArgMin", types=(*NUMBERS, "float16", "bfloat16"))
def _arg(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    axis = op.attr("axis", 0) % len(x.shape)
    latest = bool(op.attr("select_last_index", 0))
    out = arg(r, x, axis, high=op.type == "ArgMax", latest=latest)
    if op.attr("keepdims", 1):
        return [out]
    return [r.reshape(out, (*x.shape[:axis], *x.shape[axis + 1 :]))]


@operator("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _layer_norm(r: Reader, op: Op) -> list[Value]:
    x, axis = op.value(0), op.attr("axis", -1)
    if op.count > 1:
        raise No(f"{op.type} with {op.count} outputs")
    axis %= len(x.shape)
    rest = x.shape[axis:]
    affine = [op.value(i) for i in (1, 2) if op.has(i)]
    if any(value.shape[-len(rest) :] != rest or value.size != prod(rest) for value in affine):
        raise No(f"{op.type} with a scale of shape {list(affine[0].shape)} over {list(rest)}")
    kind = "layernorm" if op.type == "LayerNormalization" else "rmsnorm"
    return [norm(r, x, axis, kind, affine, op.attr("epsilon", 1e-5))]


def norm(r: Reader, x: Value, axis: int, kind: str, affine: list[Value], epsilon: float) -> Value:
    """Layer or RMS normalization over the axes from `axis` on."""
    flat = r.reshape(x, (*x.shape[:axis], prod(x.shape[axis:])))
    out = r.new(flat.shape, x.dtype)
    _rows(r, kind, flat, out, *map(r.dense, affine), epsilon=epsilon)
    return r.reshape(out, x.shape)


def _axes(op: Op, x: Value) -> list[int] | None:
    """The axes that go, in order; None where the operator leaves its input alone."""
    axes = op.ints(1, "axes")
    if not axes:
        if op.attr("noop_with_empty_axes", 0):
            return None
        return list(range(len(x.shape)))
    return sorted(axis % len(x.shape) for axis in axes)


@operator(*_REDUCE, types=(*NUMBERS, "bool"))
def _reduce(r: Reader, op: Op) -> list[Value]:
    x, gone = op.value(0), _axes(op, op.value(0))
    if gone is None:
        return [r.pointwise("({0} * {0})", x) if op.type == "ReduceSumSquare" else x]
    return [reduce(r, x, op.type.lower()[6:], gone, keep=bool(op.attr("keepdims", 1)))]


def reduce(r: Reader, x: Value, mode: str, gone: list[int], *, keep: bool = True) -> Value:
    """Over the given axes; `mode` is sum, mean, max, min, prod or sumsquare."""
    kept = [i for i in range(len(x.shape)) if i not in gone]
    outer = tuple(x.shape[i] for i in kept)
    shape = tuple(1 if i in gone else n for i, n in enumerate(x.shape)) if keep else outer
    if not gone:
        return x if mode != "sumsquare" else r.pointwise("({0} * {0})", x)
    if mode == "mean" and gone == [2, 3] and len(x.shape) == 4 and x.dtype == np.float32 and x.size:
        return r.reshape(global_pool(r, x, "AveragePool"), shape)
    order = kept + gone
    moved = view(x, tuple(x.shape[i] for i in order), tuple(x.steps[i] for i in order))
    if x.dtype != np.float32 or not x.size:
        source = r.copy(x) if x.const is not None else moved
        if source is not moved:
            moved = view(source, moved.shape, tuple(source.steps[i] for i in order))
        out = r.new(outer, x.dtype)
        return r.reshape(r.add("reduce", out, moved, mode=mode, rank=len(kept)), shape)
    flat = r.reshape(
        moved if order != sorted(order) else x, (*outer, prod(x.shape[i] for i in gone))
    )
    return r.reshape(_rows(r, f"reduce{mode}", flat, r.new((*outer, 1), x.dtype)), shape)


@operator("ReduceLogSumExp", types=FLOATS)
def _log_sum_exp(r: Reader, op: Op) -> list[Value]:
    x, gone = op.value(0), _axes(op, op.value(0))
    if gone is None:
        return [x]
    top = reduce(r, x, "max", gone)
    kind = "rl::from_top({0})"
    safe = r.pointwise(kind, top, vector=False)  # 0 for an infinite maximum
    total = reduce(r, r.pointwise("rl::exp({0} - {1})", x, safe), "sum", gone)
    out = r.pointwise("(rl::log({0}) + {1})", total, safe)
    if op.attr("keepdims", 1):
        return [out]
    return [r.reshape(out, tuple(n for i, n in enumerate(x.shape) if i not in gone))]


@operator("LpNormalization", types=FLOATS)
def _lp_norm(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    axis = op.attr("axis", -1) % len(x.shape)
    if op.attr("p", 2) == 1:
        size = reduce(r, r.pointwise("rl::abs({0})", x), "sum", [axis])
    else:
        size = r.pointwise("rl::sqrt({0})", reduce(r, x, "sumsquare", [axis]))
    return [r.pointwise("(({1}) == 0 ? ({1}) : ({0}) / ({1}))", x, size, vector=False)]


@operator("InstanceNormalization")
def _instance_norm(r: Reader, op: Op) -> list[Value]:
    x, gain, bias = op.value(0), op.value(1), op.value(2)
    plain = norm(r, x, 2, "layernorm", [], op.attr("epsilon", 1e-5))
    return [_affine(r, plain, gain, bias)]


@operator("GroupNormalization")
def _group_norm(r: Reader, op: Op) -> list[Value]:
    x, gain, bias = op.value(0), op.value(1), op.value(2)
    groups = op.attr("num_groups")
    split = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    plain = norm(r, r.reshape(x, split), 2, "layernorm", [], op.attr("epsilon", 1e-5))
    if gain.size == groups and op.opset < 21:  # per group in its first version
        each = (groups, *[1] * (len(split) - 2))
        scaled = r.pointwise("({0} * {1})", plain, r.reshape(gain, each))
        return [r.reshape(r.pointwise("({0} + {1})", scaled, r.reshape(bias, each)), x.shape)]
    return [_affine(r, r.reshape(plain, x.shape), gain, bias)]


def _affine(r: Reader, x: Value, gain: Value, bias: Value) -> Value:
    """x * gain + bias, both by channel."""
    each = (x.shape[1], *[1] * (len(x.shape) - 2))
    return r.pointwise("({0} * {1} + {2})", x, r.reshape(gain, each), r.reshape(bias, each))


@operator("LRN")
def _lrn(r: Reader, op: Op) -> list[Value]:
    x, size = op.value(0), op.attr("size")
    numbers = (
        x.shape[1],
        prod(x.shape[2:]),
        (size - 1) // 2,
        size // 2,
        op.attr("alpha", 1e-4) / size,
    )
    out = r.new(x.shape, x.dtype)
    r.call(
        "order.hpp", "window_squares", out, x, units=x.shape[0] * x.shape[1], numbers=numbers,
        work=x.size * size,
    )  # fmt: skip
    bias, beta = literal(op.attr("bias", 1.0)), literal(op.attr("beta", 0.75))
    form = f"({{0}} * rl::exp(-{beta} * rl::log({bias} + {{1}})))"
    return [r.pointwise(form, x, out)]
