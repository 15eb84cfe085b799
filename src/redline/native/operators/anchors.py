"""Operators with weights: matrix products, convolutions, pooling."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from redline.native import steps
from redline.native.dtypes import FLOATS, NUMBERS
from redline.native.ir import No, Value, reshaped, view
from redline.native.read import Op, Reader, constant, operator

_MANY = 64  # channels that repay one more pass over the pixels
_SHORT = 16  # pixels of a row: tiles end with it, or go on in the next if pixels are neighbours
_WIDEST = 16  # floats in the widest vector: a group of channels starts at a multiple of them


@operator("MatMul", types=NUMBERS)
def _matmul(r: Reader, op: Op) -> list[Value]:
    return [product(r, op.value(0), op.value(1))]


def product(r: Reader, a: Value, b: Value) -> Value:
    """NumPy's matmul: vectors and batch axes as there."""
    if len(a.shape) == 1:
        out = product(r, r.reshape(a, (1, a.size)), b)
        return r.reshape(out, (*out.shape[:-2], *out.shape[-1:]) if len(b.shape) > 1 else ())
    if len(b.shape) == 1:
        out = product(r, a, r.reshape(b, (b.size, 1)))
        return r.reshape(out, out.shape[:-1])
    if a.dtype == np.float32 and b.const is not None and len(b.shape) == 2:
        return steps.product(r, a, b) or gemm(r, a, np.asarray(b.const))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    out = r.new((*batch, m, n), a.dtype)
    flops = 2 * prod(batch) * m * n * k
    if a.dtype == np.float32:
        if a.steps[-1] != 1 and k > 1:  # its rows are read along
            a = r.copy(a)
        r.add("matmul", out, _batched(a, batch), _batched(b, batch), m=m, n=n, k=k)
    else:
        full = [r.copy(v) if v.const is not None and v.shape[:-2] != batch else v for v in (a, b)]
        spread = [v if v.shape[:-2] == batch else _batched(v, batch) for v in full]
        units = prod(batch) * m
        r.call("windows.hpp", "product", out, *spread, units=units, numbers=(m, n, k), work=flops)
    r.nodes[-1].flops = flops
    return out


def _batched(x: Value, batch: tuple[int, ...]) -> Value:
    """The operand seen with all batch axes, stride 0 along those it lacks."""
    if x.const is not None:
        x = Value(x.shape, x.dtype, const=x.const)
    sizes = (1,) * (len(batch) + 2 - len(x.shape)) + x.shape
    steps = (0,) * (len(batch) + 2 - len(x.shape)) + x.steps
    strides = [0 if n == 1 else s for n, s in zip(sizes[:-2], steps[:-2], strict=True)]
    return view(x, (*batch, *sizes[-2:]), (*strides, *steps[-2:]))


def gemm(r: Reader, a: Value, b: np.ndarray) -> Value:
    """a [..., M, K] by constant b [K, N]."""
    k, n = b.shape
    m = prod(a.shape[:-1])
    rows = reshaped(a, (m, k))
    if rows is None or rows.steps[1] != 1:
        rows = reshaped(r.copy(a), (m, k))
        assert rows is not None
    out = r.new((*a.shape[:-1], n), a.dtype)
    r.add("gemm", out, rows, weights=np.ascontiguousarray(b, np.float32), m=m, n=n, k=k)
    r.nodes[-1].flops = 2 * m * n * k
    return out


@operator("Gemm", types=NUMBERS)
def _general(r: Reader, op: Op) -> list[Value]:
    a, b = op.value(0), op.value(1)
    alpha, beta = float(op.attr("alpha", 1.0)), float(op.attr("beta", 1.0))
    if op.attr("transA", 0):
        a = _transposed(r, a)
    if op.attr("transB", 0):
        b = _transposed(r, b)
    whole = steps.product(r, a, b) if alpha == 1.0 else None
    if whole is not None:
        out = whole
    elif b.const is not None and a.dtype == np.float32:
        out = gemm(r, a, np.asarray(b.const) * np.float32(alpha))
    else:
        out = _scaled(r, product(r, a, b), alpha)
    if op.has(2):
        out = r.pointwise("({0} + {1})", out, _scaled(r, op.value(2), beta))
    return [out]


def _transposed(r: Reader, x: Value) -> Value:
    if x.const is None:
        return view(x, x.shape[::-1], x.steps[::-1])
    return steps.transposed(r, x, constant(x.const.T))


def _scaled(r: Reader, x: Value, factor: float) -> Value:
    if factor == 1.0:
        return x
    return r.pointwise("({0} * {1})", x, constant(np.array(factor, x.dtype)))


def window_of(op: Op, x: Value, kernel: tuple[int, ...]) -> dict[str, Any]:
    """Strides, pads and the output's sizes of a sliding window."""
    rank = len(x.shape) - 2
    strides = tuple(op.attr("strides", (1,) * rank))
    dilations = tuple(op.attr("dilations", (1,) * rank))
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(op.attr("pads", (0,) * (2 * rank)))
    auto = op.attr("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        for i in range(rank):
            size = x.shape[2 + i]
            need = max(0, (-(-size // strides[i]) - 1) * strides[i] + reach[i] - size)
            low = need // 2 if auto == "SAME_UPPER" else need - need // 2
            pads[i], pads[rank + i] = low, need - low
    sizes = []
    for i in range(rank):
        room = x.shape[2 + i] + pads[i] + pads[rank + i] - reach[i]
        ceil = op.attr("ceil_mode", 0)
        steps = -(-room // strides[i]) if ceil else room // strides[i]
        if ceil and steps * strides[i] >= x.shape[2 + i] + pads[i]:
            steps -= 1  # a window must start inside the image or its left pad
        sizes.append(steps + 1)
    return {
        "kernel": kernel,
        "strides": strides,
        "dilations": dilations,
        "pads": tuple(pads),
        "sizes": tuple(sizes),
    }


def paired(window: dict[str, Any]) -> dict[str, Any]:
    """A window over [L] as one over [1, L]."""
    if len(window["kernel"]) != 1:
        return window
    pads = (0, window["pads"][0], 0, window["pads"][1])
    return {key: pads if key == "pads" else (1, *value) for key, value in window.items()}


def _image(r: Reader, x: Value) -> Value:
    """[N, C, L] seen as [N, C, 1, L]."""
    if len(x.shape) == 3:
        return r.reshape(x, (*x.shape[:2], 1, x.shape[2]))
    if len(x.shape) != 4:
        raise No(f"a window over {len(x.shape) - 2} axes")
    return x


@operator("Conv", types=FLOATS)
def _conv(r: Reader, op: Op) -> list[Value]:
    x, w = op.value(0), op.value(1)
    kernel, groups = w.shape[2:], op.attr("group", 1)
    window = window_of(op, x, kernel)
    plain = len(kernel) <= 2 and x.dtype == np.float32 and min(window["pads"]) >= 0
    out = steps.convolution(r, x, w, window, groups)
    if out is None and w.const is not None and plain and x.size:
        return [convolution(r, x, w.const, window, groups, op.value(2) if op.has(2) else None)]
    out = out or general_convolution(r, x, w, window, groups)
    if op.has(2):
        out = r.pointwise("({0} + {1})", out, by_channel(r, op.value(2), out))
    return [out]


def by_channel(r: Reader, bias: Value, out: Value) -> Value:
    """[C] seen so that it broadcasts over [N, C, ...]."""
    return r.reshape(bias, (bias.size, *[1] * (len(out.shape) - 2)))


def convolution(
    r: Reader,
    x: Value,
    weights: np.ndarray,
    window: dict[str, Any],
    groups: int,
    bias: Value | None,
) -> Value:
    """One or two axes, float32, weights known at build: the fast kernels."""
    window, image = paired(window), _image(r, x)
    if weights.ndim == 3:
        weights = weights[:, :, None, :]
    if groups == 1 and min(weights.shape[:2]) >= _MANY and _leaves_out(window):
        image, window = _picked(r, image, window)
    shape = (image.shape[0], weights.shape[0], *window["sizes"])
    depthwise = groups == image.shape[1] == weights.shape[0] and groups > 1
    kind, flops = "depthwise" if depthwise else "conv", 2 * prod(shape) * prod(weights.shape[1:])
    if groups > 1 and not depthwise:
        weights, groups = _merged(weights, groups)
    out = r.add(kind, r.new(shape, x.dtype), image, weights=weights, groups=groups, **window)
    r.nodes[-1].flops = flops
    if bias is not None:
        seen = constant(bias.const.reshape(-1, 1, 1)) if bias.const is not None else None
        out = r.pointwise("({0} + {1})", out, seen or r.reshape(bias, (bias.size, 1, 1)))
    return r.reshape(out, (*shape[:2], shape[3])) if len(x.shape) == 3 else out


def _leaves_out(window: dict[str, Any]) -> bool:
    """A 1x1 convolution with strides, and short rows."""
    one = window["kernel"] == (1, 1) != window["strides"]
    return bool(one and not any(window["pads"]) and window["sizes"][1] <= _SHORT)


def _picked(r: Reader, x: Value, window: dict[str, Any]) -> tuple[Value, dict[str, Any]]:
    """The pixels that are read, side by side: all blocks of output channels read them again."""
    picked = r.new((*x.shape[:2], *window["sizes"]), x.dtype)
    r.add("pool", picked, x, mode="AveragePool", count_pads=False, **window)
    return picked, {**window, "strides": (1, 1)}


def _merged(weights: np.ndarray, groups: int) -> tuple[np.ndarray, int]:
    """Neighbouring groups as one with zeros between them, until each fills whole vectors."""
    outer, inner = weights.shape[0] // groups, weights.shape[1]
    fits = (
        n for n in range(1, groups)
        if groups % n == 0 and inner * n % _WIDEST == 0 and outer * n % _WIDEST == 0
    )  # fmt: skip
    count = next(fits, groups)
    if count == 1:
        return weights, groups
    full = np.zeros((weights.shape[0], inner * count, *weights.shape[2:]), weights.dtype)
    for group in range(groups):
        rows, at = slice(group * outer, (group + 1) * outer), group % count * inner
        full[rows, at : at + inner] = weights[rows]
    return full, groups // count


def general_convolution(
    r: Reader, x: Value, w: Value, window: dict[str, Any], groups: int
) -> Value:
    """Any weights, up to three axes, float32 or float64."""
    if len(x.shape) > 5:
        raise No(f"a convolution over {len(x.shape) - 2} axes")
    out = r.new((x.shape[0], w.shape[0], *window["sizes"]), x.dtype)
    flops = 2 * out.size * prod(w.shape[1:])
    numbers = (x.shape[1], w.shape[0], groups, *geometry(x.shape[2:], window))
    r.call(
        "windows.hpp", "convolve", out, x, w,
        units=x.shape[0] * w.shape[0], numbers=numbers, work=flops,
    )  # fmt: skip
    r.nodes[-1].flops = flops
    return out


def geometry(sizes: tuple[int, ...], window: dict[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Input, output, kernel, strides, dilations, low pads: each filled up to three axes."""
    rank = len(sizes)

    def full(numbers: tuple[int, ...], rest: int) -> tuple[int, ...]:
        return (rest,) * (3 - rank) + tuple(numbers)

    return (
        full(sizes, 1), full(window["sizes"], 1), full(window["kernel"], 1),
        full(window["strides"], 1), full(window["dilations"], 1), full(window["pads"][:rank], 0),
    )  # fmt: skip


@operator("MaxPool", "AveragePool", types=(*FLOATS, "int8", "uint8"))
def _pool(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    window = window_of(op, x, tuple(op.attr("kernel_shape")))
    counts = bool(op.attr("count_include_pad", 0))
    ceil = bool(op.attr("ceil_mode", 0)) and counts
    if x.dtype != np.float32 or len(x.shape) > 4 or op.count > 1 or ceil or not x.size:
        from redline.native.operators.windows import general_pool

        return general_pool(r, op, x, window)
    window, image = paired(window), _image(r, x)
    out = r.new((*image.shape[:2], *window["sizes"]), x.dtype)
    r.add("pool", out, image, mode=op.type, count_pads=counts, **window)
    return [r.reshape(out, (*out.shape[:2], out.shape[3])) if len(x.shape) == 3 else out]


@operator("GlobalAveragePool", "GlobalMaxPool", types=FLOATS)
def _global_pool(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    mode = "MaxPool" if op.type == "GlobalMaxPool" else "AveragePool"
    if x.dtype == np.float32 and len(x.shape) == 4:
        return [global_pool(r, x, mode)]
    from redline.native.operators.rows import reduce

    axes = list(range(2, len(x.shape)))
    return [reduce(r, x, "max" if mode == "MaxPool" else "mean", axes)]


def global_pool(r: Reader, x: Value, mode: str) -> Value:
    """One window over the whole image."""
    h, w = x.shape[2:]
    window = {"kernel": (h, w), "strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
    out = r.new((*x.shape[:2], 1, 1), x.dtype)
    return r.add("pool", out, x, mode=mode, count_pads=False, sizes=(1, 1), **window)
