"""Einsum as products, and products of quantized whole numbers."""

from __future__ import annotations

from math import prod

import numpy as np

from redline.native.dtypes import NUMBERS, ctype
from redline.native.ir import No, Value, view
from redline.native.operators.anchors import product
from redline.native.operators.rows import reduce
from redline.native.read import Op, Reader, constant, operator


@operator("Einsum", types=NUMBERS)
def _einsum(r: Reader, op: Op) -> list[Value]:
    values = [r.copy(v) if v.const is not None else v for v in op.ins if v is not None]
    terms, out = _labels(op.attr("equation"), values)
    merged, names = _diagonal(values[0], terms[0])
    for i in range(1, len(values)):
        other, others = _diagonal(values[i], terms[i])
        later = {c for term in terms[i + 1 :] for c in term} | set(out)
        merged, names = _pair(r, merged, names, other, others, later)
    gone = [i for i, name in enumerate(names) if name not in out]
    merged = reduce(r, merged, "sum", gone, keep=False)
    names = [name for name in names if name in out]
    order = [names.index(name) for name in out]
    return [
        view(merged, tuple(merged.shape[i] for i in order), tuple(merged.steps[i] for i in order))
    ]


def _labels(equation: str, values: list[Value]) -> tuple[list[list[str]], list[str]]:
    """A label for each axis; those that an ellipsis stands for are numbers."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(values):
        raise No(f"Einsum {equation!r} of {len(values)} operands")
    hidden = [len(v.shape) - len(t.replace("...", "")) for v, t in zip(values, terms, strict=True)]
    most = max([n for n, t in zip(hidden, terms, strict=True) if "..." in t], default=0)

    def spread(term: str, count: int) -> list[str]:
        if "..." not in term:
            return list(term)
        head, tail = term.split("...")
        return [*head, *(str(i) for i in range(most - count, most)), *tail]

    full = [spread(term, count) for term, count in zip(terms, hidden, strict=True)]
    if arrow:
        return full, spread(right, most)
    every = [c for term in full for c in term]
    once = sorted(c for c in set(every) if every.count(c) == 1 and not c.isdigit())
    return full, [*(str(i) for i in range(most)), *once]


def _diagonal(x: Value, labels: list[str]) -> tuple[Value, list[str]]:
    """A label that comes twice is one axis along the diagonal: strides add up."""
    names = list(dict.fromkeys(labels))
    shape = [max(n for n, c in zip(x.shape, labels, strict=True) if c == name) for name in names]
    steps = [
        sum(s for n, s, c in zip(x.shape, x.steps, labels, strict=True) if c == name and n != 1)
        for name in names
    ]
    return view(x, tuple(shape), tuple(steps)), names


def _pair(
    r: Reader, a: Value, left: list[str], b: Value, right: list[str], later: set[str]
) -> tuple[Value, list[str]]:
    """Two operands as one batched product; labels that nobody needs later are summed up."""
    for _ in range(2):
        mine = [i for i, name in enumerate(left) if name not in right and name not in later]
        a = reduce(r, a, "sum", mine, keep=False)
        left = [name for i, name in enumerate(left) if i not in mine]
        a, left, b, right = b, right, a, left
    both = [name for name in left if name in right]
    batch = [name for name in both if name in later]
    inner = [name for name in both if name not in later]
    rows, columns = ([n for n in names if n not in both] for names in (left, right))
    size = {name: max(n, 1) for name, n in zip(left, a.shape, strict=True)}
    for name, n in zip(right, b.shape, strict=True):
        size[name] = max(size.get(name, 1), n)

    def matrix(x: Value, names: list[str], first: list[str], second: list[str]) -> Value:
        steps = dict(zip(names, zip(x.shape, x.steps, strict=True), strict=True))
        order = [*batch, *first, *second]
        shape = tuple(size[name] for name in order)
        strides = tuple(0 if steps[n][0] == 1 and size[n] != 1 else steps[n][1] for n in order)
        lengths = [prod(size[n] for n in part) for part in (first, second)]
        return r.reshape(view(x, shape, strides), (*(size[n] for n in batch), *lengths))

    out = product(r, matrix(a, left, rows, inner), matrix(b, right, inner, columns))
    names = [*batch, *rows, *columns]
    return r.reshape(out, tuple(size[name] for name in names)), names


def _shifted(r: Reader, x: Value, zero: Value | None) -> Value:
    """Whole numbers less their zero point, as int32."""
    wide = r.cast(x, np.int32)
    return wide if zero is None else r.pointwise("({0} - {1})", wide, r.cast(zero, np.int32))


def _zero(r: Reader, op: Op, index: int, rank: int, axis: int) -> Value | None:
    """A zero point seen so that it broadcasts along one axis."""
    if not op.has(index):
        return None
    value = op.value(index)
    if value.size == 1:
        return r.reshape(value, (1,) * rank)
    if len(value.shape) > 1:
        return value
    shape = [1] * rank
    shape[axis] = value.size
    return r.reshape(value, tuple(shape))


@operator("MatMulInteger", types=("uint8", "int8"))
def _matmul_integer(r: Reader, op: Op) -> list[Value]:
    a, b = op.value(0), op.value(1)
    left = _shifted(r, a, _zero(r, op, 2, len(a.shape), -2))
    return [product(r, left, _shifted(r, b, _zero(r, op, 3, len(b.shape), -1)))]


@operator("ConvInteger", types=("uint8", "int8"))
def _conv_integer(r: Reader, op: Op) -> list[Value]:
    return [_convolved(r, op, op.value(0), op.value(1), 2, 3)]


def _convolved(r: Reader, op: Op, x: Value, w: Value, zero: int, zero_w: int) -> Value:
    from redline.native.operators.anchors import general_convolution, window_of

    left = _shifted(r, x, _zero(r, op, zero, len(x.shape), 1))
    right = _shifted(r, w, _zero(r, op, zero_w, len(w.shape), 0))
    window = window_of(op, x, w.shape[2:])
    return general_convolution(r, left, right, window, op.attr("group", 1))


def _requantized(r: Reader, sums: Value, scales: tuple[Value, Value, Value], zero: Value) -> Value:
    """Sums of products back to small whole numbers."""
    dtype = zero.dtype
    form = (
        f"rl::quantized<{ctype(dtype)}>((float)((double)({{0}}) * (double)({{1}}) * "
        f"(double)({{2}}) / (double)({{3}})), (int64_t)({{4}}))"
    )
    return r.pointwise(form, sums, *scales, zero, dtype=dtype, vector=False)


@operator("QLinearMatMul", types=("uint8", "int8"))
def _qlinear_matmul(r: Reader, op: Op) -> list[Value]:
    a, b = op.value(0), op.value(3)
    left = _shifted(r, a, _zero(r, op, 2, len(a.shape), -2))
    right = _shifted(r, b, _zero(r, op, 5, len(b.shape), -1))
    sums = product(r, left, right)
    rank = len(sums.shape)
    given = [_zero(r, op, i, rank, axis) for i, axis in ((1, -2), (4, -1), (6, -2), (7, -2))]
    scale_a, scale_b, scale, zero = (v or constant(np.ones(())) for v in given)
    return [_requantized(r, sums, (scale_a, scale_b, scale), zero)]


@operator("QLinearConv", types=("uint8", "int8"))
def _qlinear_conv(r: Reader, op: Op) -> list[Value]:
    sums = _convolved(r, op, op.value(0), op.value(3), 2, 5)
    rank = len(sums.shape)
    if op.has(8):
        bias = r.reshape(op.value(8), (op.value(8).size, *[1] * (rank - 2)))
        sums = r.pointwise("({0} + {1})", sums, bias)
    given = [_zero(r, op, i, rank, 1) for i in (1, 4, 6, 7)]
    scale_x, scale_w, scale, zero = (v or constant(np.ones(())) for v in given)
    return [_requantized(r, sums, (scale_x, scale_w, scale), zero)]
