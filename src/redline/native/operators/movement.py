"""Operators that move data: views where strides allow it, loops where not."""

from __future__ import annotations

from math import prod

import numpy as np

from redline.native.dtypes import ALL
from redline.native.ir import Load, No, Value, contiguous, view
from redline.native.read import Op, Reader, constant, operator
from redline.native.steps import Weights


@operator("Reshape", types=ALL, note="a shape known only at run")
def _reshape(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    shape = [int(n) for n in op.const(1)]
    if not op.attr("allowzero", 0):
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(shape)]
    if -1 in shape:
        shape[shape.index(-1)] = x.size // max(1, -prod(shape))
    return [r.reshape(x, tuple(shape))]


@operator("Flatten", types=ALL)
def _flatten(r: Reader, op: Op) -> list[Value]:
    x, axis = op.value(0), op.attr("axis", 1)
    axis += len(x.shape) if axis < 0 else 0
    return [r.reshape(x, (prod(x.shape[:axis]), prod(x.shape[axis:])))]


@operator("Squeeze", types=ALL)
def _squeeze(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    axes = op.ints(1, "axes") or [i for i, n in enumerate(x.shape) if n == 1]
    drop = {axis % len(x.shape) for axis in axes}
    return [r.reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in drop))]


@operator("Unsqueeze", types=ALL)
def _unsqueeze(r: Reader, op: Op) -> list[Value]:
    x, axes = op.value(0), op.ints(1, "axes")
    rank = len(x.shape) + len(axes)
    ones, sizes = {axis % rank for axis in axes}, iter(x.shape)
    return [r.reshape(x, tuple(1 if i in ones else next(sizes) for i in range(rank)))]


@operator("Transpose", types=ALL)
def _transpose(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    perm = op.attr("perm", tuple(reversed(range(len(x.shape)))))
    shape, steps = [x.shape[i] for i in perm], [x.steps[i] for i in perm]
    return [view(x, tuple(shape), tuple(steps))]


@operator("Expand", types=ALL)
def _expand(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    shape = np.broadcast_shapes(x.shape, tuple(int(n) for n in op.const(1)))
    return [_broadcast(x, shape)]


def _broadcast(x: Value, shape: tuple[int, ...]) -> Value:
    """A view with stride 0 along what is repeated."""
    sizes = (1,) * (len(shape) - len(x.shape)) + x.shape
    steps = (0,) * (len(shape) - len(x.shape)) + x.steps
    pairs = zip(sizes, steps, shape, strict=True)
    return view(x, shape, tuple(0 if n == 1 and want != 1 else s for n, s, want in pairs))


@operator("Slice", types=ALL)
def _slice(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    starts, ends = op.ints(1, "starts"), op.ints(2, "ends")
    axes = op.ints(3, "axes") or tuple(range(len(starts)))
    strides = op.ints(4) or (1,) * len(starts)
    shape, steps, offset = list(x.shape), list(x.steps), 0
    for start, end, axis, step in zip(starts, ends, axes, strides, strict=True):
        axis %= len(shape)
        places = range(x.shape[axis])[slice(start, end if end > -(2**31) else None, step)]
        shape[axis] = len(places)
        offset += (places.start if len(places) else 0) * x.steps[axis]
        steps[axis] *= step
    return [view(x, tuple(shape), tuple(steps), offset)]


@operator("Split", types=ALL)
def _split(r: Reader, op: Op) -> list[Value]:
    x, axis = op.value(0), op.attr("axis", 0) % len(op.value(0).shape)
    total, count = x.shape[axis], op.attr("num_outputs", op.count)
    each = -(-total // count)
    sizes = op.ints(1, "split") or [min(each, total - i * each) for i in range(count)]
    found, start = [], 0
    for size in sizes:
        shape = (*x.shape[:axis], size, *x.shape[axis + 1 :])
        found.append(view(x, shape, x.steps, start * x.steps[axis]))
        start += size
    return found


@operator("Concat", types=ALL)
def _concat(r: Reader, op: Op) -> list[Value]:
    given = [value for value in op.ins if value is not None]
    parts = [value for value in given if value.size] or given
    axis = op.attr("axis") % len(parts[0].shape)
    total = sum(part.shape[axis] for part in parts)
    shape = (*parts[0].shape[:axis], total, *parts[0].shape[axis + 1 :])
    out, start = r.new(shape, parts[0].dtype), 0
    for part in parts:
        steps = contiguous(shape)
        place = view(out, part.shape, steps, start * steps[axis])
        r.add("loop", place)
        r.nodes[-1].expr = Load(part)
        start += part.shape[axis]
    return [out]


@operator("Gather", types=ALL)
def _gather(r: Reader, op: Op) -> list[Value]:
    x, index = op.value(0), op.value(1)
    axis = op.attr("axis", 0) % len(x.shape)
    if index.const is not None and index.size == 1:  # one place: a view
        place = int(index.const.reshape(-1)[0]) % x.shape[axis]
        rest = view(
            x,
            (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]),
            (*x.steps[:axis], *(0 for _ in index.shape), *x.steps[axis + 1 :]),
            place * x.steps[axis],
        )
        return [rest if x.const is None else constant(np.take(x.const, index.const, axis))]
    if index.dtype not in (np.int64, np.int32):
        raise No(f"Gather by {index.dtype}")
    table = r.steps.get(x)
    if isinstance(table, Weights):
        return [_dequantized(r, table, index, axis)]
    return [_taken(r, x, index, axis)]


def _taken(r: Reader, x: Value, index: Value, axis: int) -> Value:
    x, index = r.dense(x), r.dense(index)
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    sizes = {"outer": prod(x.shape[:axis]), "inner": prod(x.shape[axis + 1 :])}
    out = r.new(shape, x.dtype)
    return r.add("gather", out, x, index, length=x.shape[axis], count=index.size, **sizes)


def _dequantized(r: Reader, table: Weights, index: Value, axis: int) -> Value:
    """From a table in whole numbers, which stays a quarter as large."""
    whole, scale = _taken(r, constant(table.whole), index, axis), table.scale
    if scale.size == 1:
        steps = constant(scale.reshape(()))
    elif scale.shape[axis] > 1:
        steps = _taken(r, constant(scale), index, axis)
    else:
        ones = (1,) * len(index.shape)
        steps = constant(scale.reshape(*scale.shape[:axis], *ones, *scale.shape[axis + 1 :]))
    return r.pointwise("((float)({0}) * ({1}))", whole, steps, dtype=np.float32, vector=False)


@operator("Shape", types=ALL)
def _shape(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    return [constant(np.array(x.shape[op.attr("start", 0) : op.attr("end")], np.int64))]


@operator("Size", types=ALL)
def _size(r: Reader, op: Op) -> list[Value]:
    return [constant(np.array(op.value(0).size, np.int64))]


@operator("DepthToSpace", types=ALL)
def _depth_to_space(r: Reader, op: Op) -> list[Value]:
    x, block = op.value(0), op.attr("blocksize")
    n, c, h, w = x.shape
    c //= block * block
    if op.attr("mode", "DCR") == "DCR":
        split, order = (n, block, block, c, h, w), (0, 3, 4, 1, 5, 2)
    else:
        split, order = (n, c, block, block, h, w), (0, 1, 4, 2, 5, 3)
    moved = permuted(r.reshape(x, split), order)
    return [r.reshape(moved, (n, c, h * block, w * block))]


@operator("SpaceToDepth", types=ALL)
def _space_to_depth(r: Reader, op: Op) -> list[Value]:
    x, block = op.value(0), op.attr("blocksize")
    n, c, h, w = x.shape
    h, w = h // block, w // block
    order = (0, 3, 5, 1, 2, 4) if op.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    moved = permuted(r.reshape(x, (n, c, h, block, w, block)), order)
    return [r.reshape(moved, (n, c * block * block, h, w))]


def permuted(x: Value, order: tuple[int, ...]) -> Value:
    """A view with the axes in another order."""
    return view(x, tuple(x.shape[i] for i in order), tuple(x.steps[i] for i in order))


@operator("Tile", types=ALL)
def _tile(r: Reader, op: Op) -> list[Value]:
    x, repeats = op.value(0), op.ints(1)
    pairs = list(zip(repeats, x.shape, strict=True))
    shape = tuple(n for pair in pairs for n in pair)
    steps = tuple(n for step in x.steps for n in (0, step))
    return [r.reshape(view(x, shape, steps), tuple(k * n for k, n in pairs))]


@operator("Trilu", types=ALL)
def _trilu(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    sign = ">=" if op.attr("upper", 1) else "<="
    k = op.value(1) if op.has(1) else constant(np.zeros((), np.int64))
    form = f"(({{2}}) - ({{1}}) {sign} ({{3}}) ? ({{0}}) : 0)"
    places = [constant(np.asarray(n, np.int64)) for n in (rows, columns)]
    return [r.pointwise(form, x, *places, r.reshape(k, ()), vector=False)]


@operator("EyeLike", types=ALL)
def _eye(r: Reader, op: Op) -> list[Value]:
    import onnx_ir

    x = op.value(0)
    dtype = onnx_ir.DataType(op.attr("dtype")).numpy() if op.attr("dtype") else x.dtype
    rows, columns = x.shape
    return [constant(np.eye(rows, columns, op.attr("k", 0)).astype(dtype))]


@operator("Constant", types=ALL)
def _constant(r: Reader, op: Op) -> list[Value]:
    raise No("Constant of strings or sparse values")


@operator("ConstantOfShape", types=("int64",), note="a shape known only at run")
def _filled(r: Reader, op: Op) -> list[Value]:
    fill = np.asarray(op.attr("value", np.zeros(1, np.float32))).reshape(-1)[0]
    return [constant(np.full(tuple(int(n) for n in op.const(0)), fill))]


@operator("Range", types=("float32", "float64", "int64", "int32", "int16"), note="at run")
def _range(r: Reader, op: Op) -> list[Value]:
    start, limit, step = (op.const(i).reshape(()) for i in range(3))
    return [constant(np.arange(start, limit, step, dtype=op.value(0).dtype))]
