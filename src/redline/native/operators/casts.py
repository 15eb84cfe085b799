"""Operators between element types: casts, and the affine maps between floats and whole numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from redline.native import steps
from redline.native.dtypes import ALL, CTYPES, ctype, half
from redline.native.ir import Apply, Load, No, Value, view
from redline.native.read import Op, Reader, constant, operator


@operator("Cast", types=ALL, note="strings; types of less than eight bits, float8")
def _cast(r: Reader, op: Op) -> list[Value]:
    return [r.cast(op.value(0), _target(onnx_ir.DataType(op.attr("to"))))]


@operator("CastLike", types=ALL, note="strings; types of less than eight bits, float8")
def _cast_like(r: Reader, op: Op) -> list[Value]:
    return [r.cast(op.value(0), op.value(1).dtype)]


@operator("BitCast", types=ALL, note="types of different size")
def _bit_cast(r: Reader, op: Op) -> list[Value]:
    x, dtype = op.value(0), _target(onnx_ir.DataType(op.attr("to")))
    if dtype.itemsize != x.dtype.itemsize:
        raise No(f"BitCast from {x.dtype} to {dtype}")
    expr = Apply(f"rl::same_bits<{ctype(dtype)}>({{0}})", (Load(x),), dtype, vector=False)
    return [r.loop(expr, x.shape, dtype)]


def _target(to: onnx_ir.DataType) -> np.dtype:
    try:
        found = np.dtype(to.numpy())
    except TypeError:
        raise No(f"elements of type {to.name.lower()}") from None
    if found.name not in CTYPES:
        raise No(f"elements of type {to.name.lower()}")
    return found


_QUANTIZED = ("uint8", "int8", "uint16", "int16", "int32")


def _along(r: Reader, op: Op, parameter: Value, x: Value) -> Value:
    """A scale or zero point seen so that it broadcasts over x: for all, for an axis, for blocks."""
    if parameter.size == 1:
        return r.reshape(parameter, (1,) * len(x.shape))
    axis = op.attr("axis", 1) % len(x.shape)
    if len(parameter.shape) == 1:
        ones = (1,) * len(x.shape)
        return r.reshape(parameter, (*ones[:axis], parameter.size, *ones[axis + 1 :]))
    block = op.attr("block_size", 0)
    wide = r.reshape(parameter, (*parameter.shape[: axis + 1], 1, *parameter.shape[axis + 1 :]))
    if parameter.const is not None:
        repeated = np.repeat(parameter.const, block, axis)
        return constant(repeated[tuple(slice(0, n) for n in x.shape)])
    shape = (*parameter.shape[: axis + 1], block, *parameter.shape[axis + 1 :])
    steps = list(wide.steps)
    steps[axis + 1] = 0
    merged = list(parameter.shape)
    merged[axis] *= block
    seen = r.reshape(view(wide, shape, tuple(steps)), tuple(merged))
    return view(seen, x.shape, seen.steps)


@operator("DequantizeLinear", types=_QUANTIZED, note="types of four bits, float8")
def _dequantize(r: Reader, op: Op) -> list[Value]:
    x, scale = op.value(0), _along(r, op, op.value(1), op.value(0))
    source = r.steps.get(x)
    if isinstance(source, steps.Rounded) and not op.attr("output_dtype", 0):
        again = steps.dequantized(r, source, op.value(1), op.value(2) if op.has(2) else None)
        if again is not None:
            return [again]
    to: Any = np.float32 if half(scale.dtype) else scale.dtype
    wanted = op.attr("output_dtype", 0)
    out = _target(onnx_ir.DataType(wanted)) if wanted else scale.dtype
    zero = _along(r, op, op.value(2), x) if op.has(2) else constant(np.zeros((), np.int64))
    form = "((float)((int64_t)({0}) - (int64_t)({1})) * ({2}))"
    return [r.cast(r.pointwise(form, x, zero, scale, dtype=to, vector=False), out)]


@operator("QuantizeLinear", types=("float32", "int32"), note="types of four bits, float8")
def _quantize(r: Reader, op: Op) -> list[Value]:
    x, scale = op.value(0), _along(r, op, op.value(1), op.value(0))
    wanted = op.attr("output_dtype", 0)
    dtype = _target(onnx_ir.DataType(wanted)) if wanted else np.dtype(np.uint8)
    zero = constant(np.zeros((), np.int64))
    if op.has(2):
        dtype, zero = op.value(2).dtype, _along(r, op, op.value(2), x)
    if dtype.kind not in "iu":
        raise No(f"QuantizeLinear to {dtype}")
    form = f"rl::quantized<{ctype(dtype)}>((float)({{0}}) / (float)({{1}}), (int64_t)({{2}}))"
    out = r.pointwise(form, x, scale, zero, dtype=dtype, vector=False)
    found = steps.rounded(x, op.value(1), op.value(2) if op.has(2) else None, dtype)
    if found is not None:
        r.steps[out] = found
    return [out]
