"""Operators with weights: matrix products, convolutions, pooling."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from redline.native.ir import No, Value, reshaped, view
from redline.native.read import Op, Reader, constant, operator


@operator("MatMul")
def _matmul(r: Reader, op: Op) -> list[Value]:
    a, b = op.value(0), op.value(1)
    if a.dtype != np.float32:
        raise No(f"MatMul of {a.dtype}")
    if b.const is not None and len(b.shape) == 2 and len(a.shape) >= 2:
        return [gemm(r, a, np.asarray(b.const))]
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise No("MatMul of a vector")
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    a, b = _batched(a, batch), _batched(b, batch)
    out = r.new((*batch, m, n), a.dtype)
    r.add("matmul", out, a, b, m=m, n=n, k=k)
    r.nodes[-1].flops = 2 * prod(batch) * m * n * k
    return [out]


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


@operator("Gemm")
def _general(r: Reader, op: Op) -> list[Value]:
    a, b = op.value(0), op.value(1)
    if a.dtype != np.float32 or b.const is None:
        raise No("Gemm without constant weights")
    if op.attr("transA", 0):
        a = view(a, a.shape[::-1], a.steps[::-1])
    weights = np.asarray(b.const).T if op.attr("transB", 0) else np.asarray(b.const)
    out = gemm(r, a, weights * np.float32(op.attr("alpha", 1.0)))
    if op.has(2):
        bias, beta = op.value(2), float(op.attr("beta", 1.0))
        if beta != 1.0:
            bias = r.pointwise("({0} * {1})", bias, constant(np.array(beta, np.float32)))
        out = r.pointwise("({0} + {1})", out, bias)
    return [out]


def _window(op: Op, x: Value, kernel: tuple[int, ...]) -> dict[str, Any]:
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
    pair = rank == 2
    return {
        "kernel": kernel if pair else (1, *kernel),
        "strides": strides if pair else (1, *strides),
        "dilations": dilations if pair else (1, *dilations),
        "pads": tuple(pads) if pair else (0, pads[0], 0, pads[1]),
        "sizes": tuple(sizes) if pair else (1, *sizes),
    }


def _image(r: Reader, x: Value) -> Value:
    """[N, C, L] seen as [N, C, 1, L]."""
    if len(x.shape) == 3:
        return r.reshape(x, (*x.shape[:2], 1, x.shape[2]))
    if len(x.shape) != 4:
        raise No(f"a window over {len(x.shape) - 2} axes")
    return x


@operator("Conv")
def _conv(r: Reader, op: Op) -> list[Value]:
    x, weights = op.value(0), op.const(1)
    if x.dtype != np.float32:
        raise No(f"Conv of {x.dtype}")
    window = _window(op, x, weights.shape[2:])
    image, groups = _image(r, x), op.attr("group", 1)
    if weights.ndim == 3:
        weights = weights[:, :, None, :]
    shape = (image.shape[0], weights.shape[0], *window["sizes"])
    depthwise = groups == image.shape[1] == weights.shape[0] and groups > 1
    kind = "depthwise" if depthwise else "conv"
    out = r.add(kind, r.new(shape, x.dtype), image, weights=weights, groups=groups, **window)
    r.nodes[-1].flops = 2 * prod(shape) * prod(weights.shape[1:])
    if op.has(2):
        bias = constant(op.const(2).reshape(-1, 1, 1))
        out = r.pointwise("({0} + {1})", out, bias)
    return [r.reshape(out, (*shape[:2], shape[3])) if len(x.shape) == 3 else out]


@operator("MaxPool", "AveragePool")
def _pool(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    if x.dtype != np.float32 or op.count > 1:
        raise No(f"{op.type} of {x.dtype} with {op.count} outputs")
    window = _window(op, x, tuple(op.attr("kernel_shape")))
    image = _image(r, x)
    out = r.new((*image.shape[:2], *window["sizes"]), x.dtype)
    counts = bool(op.attr("count_include_pad", 0))
    if op.attr("ceil_mode", 0) and counts:
        raise No("AveragePool that counts its pads, with ceil_mode")
    r.add("pool", out, image, mode=op.type, count_pads=counts, **window)
    return [r.reshape(out, (*out.shape[:2], out.shape[3])) if len(x.shape) == 3 else out]


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    if x.dtype != np.float32 or len(x.shape) != 4:
        raise No(f"{op.type} of {x.dtype}{list(x.shape)}")
    mode = "MaxPool" if op.type == "GlobalMaxPool" else "AveragePool"
    return [global_pool(r, x, mode)]


def global_pool(r: Reader, x: Value, mode: str) -> Value:
    """One window over the whole image."""
    h, w = x.shape[2:]
    window = {"kernel": (h, w), "strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)}
    out = r.new((*x.shape[:2], 1, 1), x.dtype)
    return r.add("pool", out, x, mode=mode, count_pads=False, sizes=(1, 1), **window)
