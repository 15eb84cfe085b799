"""Sliding windows beyond the fast kernels: any type, three axes, Lp norms, transposed."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from redline.native.dtypes import FLOATS
from redline.native.ir import No, Value, contiguous, view
from redline.native.literals import literal
from redline.native.operators.anchors import (
    by_channel,
    convolution,
    geometry,
    window_of,
)
from redline.native.operators.rows import reduce
from redline.native.read import Op, Reader, constant, operator


def general_pool(r: Reader, op: Op, x: Value, window: dict[str, Any]) -> list[Value]:
    """Maximum with its places, mean; over one, two or three axes."""
    if len(x.shape) > 5:
        raise No(f"a window over {len(x.shape) - 2} axes")
    ends = _ends(x.shape[2:], window)
    counted = 1 if op.attr("count_include_pad", 0) else 0
    numbers = (*geometry(x.shape[2:], window), ends, counted)
    shape = (*x.shape[:2], *window["sizes"])
    units, work = x.shape[0] * x.shape[1], prod(shape) * prod(window["kernel"])
    kernel = "max_pool" if op.type == "MaxPool" else "mean_pool"
    out = r.new(shape, x.dtype)
    r.call("windows.hpp", kernel, out, x, units=units, numbers=numbers, work=work)
    if op.count < 2:
        return [out]
    at = r.new(shape, np.int64)
    columns = int(op.attr("storage_order", 0) == 1)
    more = (*numbers[:-1], columns)
    return [out, r.call("windows.hpp", "max_places", at, x, units=units, numbers=more, work=work)]


def _ends(sizes: tuple[int, ...], window: dict[str, Any]) -> tuple[int, ...]:
    """Where each axis ends with its high pad; windows that ceil_mode adds go beyond."""
    rank = len(sizes)
    ends = [n + window["pads"][rank + i] for i, n in enumerate(sizes)]
    return (1,) * (3 - rank) + tuple(ends)


@operator("LpPool")
def _lp_pool(r: Reader, op: Op) -> list[Value]:
    x, p = op.value(0), float(op.attr("p", 2))
    window = window_of(op, x, tuple(op.attr("kernel_shape")))
    if len(x.shape) > 5:
        raise No(f"a window over {len(x.shape) - 2} axes")
    powers = r.pointwise(f"rl::power(rl::abs({{0}}), {literal(p)})", x, vector=False)
    out = r.new((*x.shape[:2], *window["sizes"]), x.dtype)
    numbers = (*geometry(x.shape[2:], window), _ends(x.shape[2:], window), 2)
    units = x.shape[0] * x.shape[1]
    r.call("windows.hpp", "mean_pool", out, powers, units=units, numbers=numbers)
    return [r.pointwise(f"rl::power({{0}}, {literal(1 / p)})", out, vector=False)]


@operator("GlobalLpPool")
def _global_lp_pool(r: Reader, op: Op) -> list[Value]:
    x, p = op.value(0), float(op.attr("p", 2))
    powers = r.pointwise(f"rl::power(rl::abs({{0}}), {literal(p)})", x, vector=False)
    total = reduce(r, powers, "sum", list(range(2, len(x.shape))))
    return [r.pointwise(f"rl::power({{0}}, {literal(1 / p)})", total, vector=False)]


@operator("ConvTranspose", types=FLOATS)
def _conv_transpose(r: Reader, op: Op) -> list[Value]:
    x, w, groups = op.value(0), op.value(1), op.attr("group", 1)
    window = _transposed_window(op, x, w.shape[2:])
    bias = op.value(2) if op.has(2) else None
    simple = all(
        d == 1 or s == 1 for d, s in zip(window["dilations"], window["strides"], strict=True)
    )
    small = len(x.shape) <= 4 and x.dtype == np.float32
    if w.const is not None and simple and small and min(window["pads"]) >= 0 and x.size:
        return [_phases(r, x, w.const, window, groups, bias)]
    if len(x.shape) > 5:
        raise No(f"a transposed convolution over {len(x.shape) - 2} axes")
    channels = w.shape[1] * groups
    out = r.new((x.shape[0], channels, *window["sizes"]), x.dtype)
    numbers = (x.shape[1], channels, groups, *geometry(x.shape[2:], window))
    flops = 2 * x.size * prod(w.shape[1:])
    r.call(
        "windows.hpp", "spread", out, x, w,
        units=x.shape[0] * channels, numbers=numbers, work=flops,
    )  # fmt: skip
    r.nodes[-1].flops = flops
    if bias is not None:
        out = r.pointwise("({0} + {1})", out, by_channel(r, bias, out))
    return [out]


def _transposed_window(op: Op, x: Value, kernel: tuple[int, ...]) -> dict[str, Any]:
    """As window_of, for the convolution that goes the other way."""
    rank = len(kernel)
    strides = tuple(op.attr("strides", (1,) * rank))
    dilations = tuple(op.attr("dilations", (1,) * rank))
    more = tuple(op.attr("output_padding", (0,) * rank))
    pads = list(op.attr("pads", (0,) * (2 * rank)))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto, wanted = op.attr("auto_pad", "NOTSET"), op.attr("output_shape")
    if auto == "VALID":
        pads = [0] * (2 * rank)
    if wanted is None and auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    for i in range(rank if wanted is not None else 0):
        total = strides[i] * (x.shape[2 + i] - 1) + more[i] + reach[i] - wanted[-rank:][i]
        low = total // 2 if auto != "SAME_LOWER" else total - total // 2
        if auto == "NOTSET":
            low = total - total // 2
        pads[i], pads[rank + i] = low, total - low
    sizes = [
        strides[i] * (x.shape[2 + i] - 1) + more[i] + reach[i] - pads[i] - pads[rank + i]
        for i in range(rank)
    ]
    return {
        "kernel": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": tuple(pads),
        "sizes": tuple(sizes),
    }


def _phases(
    r: Reader,
    x: Value,
    weights: np.ndarray,
    window: dict[str, Any],
    groups: int,
    bias: Value | None,
) -> Value:
    """Output pixels that lie a stride apart see the same taps: one convolution for each phase."""
    rank = len(x.shape) - 2
    inner, per = weights.shape[:2]
    kernel = weights.reshape(groups, inner // groups, per, *weights.shape[2:])
    kernel = kernel.swapaxes(1, 2).reshape(groups * per, inner // groups, *weights.shape[2:])
    shape = (x.shape[0], groups * per, *window["sizes"])
    axes = [
        [_phase(window, x.shape[2 + i], i, start) for start in range(window["strides"][i])]
        for i in range(rank)
    ]
    whole = all(n == 1 for n in window["strides"])
    out = None if whole else r.new(shape, x.dtype)
    for parts in _every(axes):
        made = _one_phase(r, x, kernel, parts, groups, bias, shape)
        if out is None:
            return made
        steps = contiguous(shape)
        at = sum(part["start"] * step for part, step in zip(parts, steps[2:], strict=True))
        strides = [n * s for n, s in zip(window["strides"], steps[2:], strict=True)]
        place = view(out, made.shape, (*steps[:2], *strides), at)
        if place.size:
            r.add("loop", place)
            r.nodes[-1].expr = _load(made)
    assert out is not None
    return out


def _load(value: Value) -> Any:
    from redline.native.ir import Load

    return Load(value)


def _every(axes: list[list[dict[str, Any]]]) -> list[tuple[dict[str, Any], ...]]:
    """All combinations of the axes' phases."""
    from itertools import product

    return list(product(*axes))


def _phase(window: dict[str, Any], length: int, axis: int, start: int) -> dict[str, Any]:
    """The taps of outputs start, start + stride, ...: in the order in which they walk the input."""
    stride, dilation = window["strides"][axis], window["dilations"][axis]
    low, size = window["pads"][axis], window["sizes"][axis]
    taps = [k for k in range(window["kernel"][axis]) if (start + low - k * dilation) % stride == 0][
        ::-1
    ]
    first = (start + low - taps[0] * dilation) // stride if taps else 0
    count = max(0, -(-(size - start) // stride))
    step = dilation if stride == 1 else 1
    reach = first + count - 1 + (len(taps) - 1) * step
    return {
        "start": start, "taps": taps, "step": step, "count": count,
        "skip": max(0, first), "low": max(0, -first), "high": max(0, reach - (length - 1)),
    }  # fmt: skip


def _one_phase(
    r: Reader,
    x: Value,
    kernel: np.ndarray,
    parts: tuple[dict[str, Any], ...],
    groups: int,
    bias: Value | None,
    shape: tuple[int, ...],
) -> Value:
    sizes = tuple(part["count"] for part in parts)
    if not all(part["taps"] for part in parts):  # no input reaches these pixels
        full = r.new((*shape[:2], *sizes), x.dtype)
        zero = constant(np.zeros((), x.dtype))
        fill = zero if bias is None else by_channel(r, bias, full)
        return view(fill, full.shape, _repeated(fill, full.shape)) if full.size else full
    chosen = kernel[np.ix_(*map(range, kernel.shape[:2]), *(part["taps"] for part in parts))]
    skips = [part["skip"] for part in parts]
    source = x
    if any(skips):
        lengths = [max(0, n - skip) for n, skip in zip(x.shape[2:], skips, strict=True)]
        offset = sum(skip * step for skip, step in zip(skips, x.steps[2:], strict=True))
        source = view(x, (*x.shape[:2], *lengths), x.steps, offset)
    window = {
        "kernel": chosen.shape[2:],
        "strides": (1,) * len(parts),
        "dilations": tuple(part["step"] for part in parts),
        "pads": (*(part["low"] for part in parts), *(part["high"] for part in parts)),
        "sizes": sizes,
    }
    return convolution(r, source, np.ascontiguousarray(chosen), window, groups, bias)


def _repeated(fill: Value, shape: tuple[int, ...]) -> tuple[int, ...]:
    extra = len(shape) - len(fill.shape)
    pairs = zip((1,) * extra + fill.shape, (0,) * extra + fill.steps, strict=True)
    return tuple(0 if n == 1 else step for n, step in pairs)
