"""Q/DQ pairs: values that are whole steps of a scale, and their products in whole numbers.

QuantizeLinear and DequantizeLinear around a layer say that its operands are whole numbers times a
scale (ONNX's Q/DQ form; Jacob et al., arXiv 1712.05877, section 2). The product of the whole
numbers is exact in int32, and its scale is the product of both: what the pairs give in float,
without float's roundings. Everything else reads the rounded float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from redline.native.ir import Apply, Load, Value, reshaped, view
from redline.native.literals import literal

if TYPE_CHECKING:
    from redline.native.read import Reader

_BYTES = (np.dtype("int8"), np.dtype("uint8"))
_MOVING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice")
_BLOCK = 16  # channels that fill a vector's block on every machine
_DEEPEST = 1 << 16  # products of int16 by int8 that int32 holds: 2 * 255 * 128 * 2^15 < 2^31


@dataclass(frozen=True)
class Weights:
    """A constant in whole numbers: `whole` (int8) times `scale`, which broadcasts over it."""

    whole: np.ndarray
    scale: np.ndarray


@dataclass
class Rounded:
    """x rounded to steps of `scale`, from `low` to `high` of them, the zero point taken off.

    Attributes:
        kept: the whole numbers (int16), once a product has asked for them.
    """

    x: Value
    scale: np.float32
    zero: int
    low: int
    high: int
    kept: Value | None = None

    @property
    def steps(self) -> Apply:
        """How many steps each element is, as floats."""
        form = f"rl::steps_of({{0}}, {literal(float(self.scale))}, {self.low}.f, {self.high}.f)"
        return Apply(form, (Load(self.x),), np.dtype("float32"))

    def whole(self, r: Reader) -> Value:
        if self.kept is None:
            self.kept = r.loop(self.steps, self.x.shape, np.int16)
        return self.kept


def rounded(x: Value, scale: Value, zero: Value | None, dtype: np.dtype) -> Rounded | None:
    """What QuantizeLinear makes of floats, where one known scale and zero point are for all."""
    if x.dtype != np.float32 or dtype not in _BYTES:
        return None
    if scale.const is None or scale.size != 1 or scale.dtype != np.float32:
        return None
    if zero is not None and (zero.const is None or zero.size != 1):
        return None
    at = 0 if zero is None or zero.const is None else int(zero.const.reshape(-1)[0])
    limits = np.iinfo(dtype)
    step = np.float32(scale.const.reshape(-1)[0])
    return Rounded(x, step, at, int(limits.min) - at, int(limits.max) - at)


def dequantized(r: Reader, source: Rounded, scale: Value, zero: Value | None) -> Value | None:
    """DequantizeLinear of what was quantized by the same scale: floats again, in one pass."""
    same = rounded(source.x, scale, zero, np.dtype("int8"))
    if same is None or (same.scale, same.zero) != (source.scale, source.zero):
        return None
    expr = Apply(f"({{0}} * {literal(float(source.scale))})", (source.steps,), np.dtype("float32"))
    out = r.loop(expr, source.x.shape, np.float32)
    r.steps[out] = source
    return out


def moved(r: Reader, kind: str, ins: Sequence[Value | None], outs: list[Value]) -> list[Value]:
    """What takes or moves elements as they are leaves whole numbers whole."""
    source = r.steps.get(ins[0]) if ins and ins[0] is not None else None
    if kind in _MOVING and isinstance(source, Rounded) and outs[0] not in r.steps:
        x, first = outs[0], r.steps.get(outs[0].root)
        if isinstance(first, Rounded) and first.x.base is None:  # a view: of what was rounded
            x = view(first.x, x.shape, x.steps, x.offset)
        r.steps[outs[0]] = replace(source, x=x, kept=None)
    return outs


def weights(parts: Sequence[np.ndarray], axis: int) -> Weights | None:
    """DequantizeLinear's constants (x, scale, zero point): int8 for all or along an axis."""
    whole, scale, zero = (*parts, np.zeros(1, np.int8))[:3]
    if whole.dtype not in _BYTES or scale.dtype != np.float32 or scale.ndim > 1 or not whole.size:
        return None
    if scale.size > 1:
        along = [1] * whole.ndim
        along[axis] = scale.size
        scale, zero = scale.reshape(along), zero.reshape(along if zero.size > 1 else (1,))
    shifted = whole.astype(np.int16) - zero.astype(np.int16)
    if shifted.min() < -128 or shifted.max() > 127:
        return None
    return Weights(shifted.astype(np.int8), scale)


def transposed(r: Reader, x: Value, out: Value) -> Value:
    """Tells of the constant x's transpose what is known of x."""
    known = r.steps.get(x)
    if isinstance(known, Weights):
        scale = known.scale.T if known.scale.ndim == 2 else known.scale
        r.steps[out] = Weights(known.whole.T, scale)
    return out


def convolution(r: Reader, x: Value, w: Value, window: dict[str, Any], groups: int) -> Value | None:
    """x [N, C, H, W] by constant w [O, C, kh, kw] in whole numbers, or None as in product()."""
    flows, fixed = r.steps.get(x), r.steps.get(w)
    if not isinstance(flows, Rounded) or not isinstance(fixed, Weights) or groups != 1:
        return None
    if len(x.shape) != 4 or not x.size or min(window["pads"]) < 0:
        return None
    outs, ins, kh, kw = w.shape
    scale = np.broadcast_to(fixed.scale, w.shape)
    deep = ins * kh * kw
    if ins % _BLOCK or deep > _DEEPEST or (scale != scale[:, :1, :1, :1]).any():
        return None
    out = r.new((x.shape[0], outs, *window["sizes"]), np.float32)
    r.add("conv", out, flows.whole(r), weights=fixed.whole, groups=1, **window)
    r.nodes[-1].flops = 2 * out.size * deep
    return _scaled(r, out, (scale[:, :1, 0, 0] * flows.scale).reshape(outs, 1, 1))


def _scaled(r: Reader, sums: Value, scale: np.ndarray) -> Value:
    return r.pointwise("({0} * {1})", sums, Value(scale.shape, scale.dtype, const=scale))


def product(r: Reader, a: Value, b: Value) -> Value | None:
    """a [..., M, K] by constant b [K, N] in whole numbers, or None where they are not known."""
    flows, fixed = r.steps.get(a), r.steps.get(b)
    if not isinstance(flows, Rounded) or not isinstance(fixed, Weights):
        return None
    k, n = b.shape
    scale = np.broadcast_to(fixed.scale, (k, n))
    if k % 2 or k > _DEEPEST or (scale != scale[:1]).any():
        return None
    m = a.size // k
    rows = reshaped(flows.whole(r), (m, k))
    assert rows is not None, "whole numbers are row-major"
    out = r.new((*a.shape[:-1], n), np.float32)
    r.add("gemm", out, rows, weights=fixed.whole, m=m, n=n, k=k)
    r.nodes[-1].flops = 2 * m * n * k
    return _scaled(r, out, scale[0] * flows.scale)
