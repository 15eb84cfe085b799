"""Operators that reduce: over the last axis by a row kernel, over others after a transpose."""

from __future__ import annotations

from math import prod

import numpy as np

from redline.native.ir import Load, No, Node, Value, view
from redline.native.operators.anchors import global_pool
from redline.native.read import Op, Reader, operator

_REDUCE = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare")


def _rows(r: Reader, kind: str, x: Value, out: Value, *ins: Value, **attrs: object) -> Value:
    r.nodes.append(Node(kind, out, list(ins), Load(x), dict(attrs), [out.name]))
    return out


def _last(x: Value, axis: int) -> tuple[Value, tuple[int, ...]]:
    """x with `axis` moved to the end, and the permutation that moved it."""
    axes = [i for i in range(len(x.shape)) if i != axis % len(x.shape)] + [axis % len(x.shape)]
    seen = view(x, tuple(x.shape[i] for i in axes), tuple(x.steps[i] for i in axes))
    return (x if axes == sorted(axes) else seen), tuple(axes)


@operator("Softmax", "LogSoftmax")
def _softmax(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    if x.dtype != np.float32 or op.opset < 13:
        raise No(f"{op.type} of {x.dtype} in opset {op.opset}")
    moved, axes = _last(x, op.attr("axis", -1))
    out = _rows(r, op.type.lower(), moved, r.new(moved.shape, x.dtype))
    back = np.argsort(axes)
    if list(axes) == sorted(axes):
        return [out]
    return [view(out, x.shape, tuple(out.steps[i] for i in back))]


@operator("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def _layer_norm(r: Reader, op: Op) -> list[Value]:
    x, axis = op.value(0), op.attr("axis", -1)
    if x.dtype != np.float32 or op.count > 1:
        raise No(f"{op.type} of {x.dtype} with {op.count} outputs")
    axis %= len(x.shape)
    flat = r.reshape(x, (*x.shape[:axis], prod(x.shape[axis:])))
    affine = [r.dense(op.value(i)) for i in (1, 2) if op.has(i)]
    kind = "layernorm" if op.type == "LayerNormalization" else "rmsnorm"
    out = r.new(flat.shape, x.dtype)
    _rows(r, kind, flat, out, *affine, epsilon=op.attr("epsilon", 1e-5))
    return [r.reshape(out, x.shape)]


@operator(*_REDUCE)
def _reduce(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    if x.dtype != np.float32:
        raise No(f"{op.type} of {x.dtype}")
    axes = op.ints(1, "axes")
    if axes is None:
        if op.attr("noop_with_empty_axes", 0):
            return [x]
        axes = tuple(range(len(x.shape)))
    gone = sorted(axis % len(x.shape) for axis in axes)
    if op.type == "ReduceMean" and gone == [2, 3] and len(x.shape) == 4:
        pooled = global_pool(r, x, "AveragePool")
        return [pooled if op.attr("keepdims", 1) else r.reshape(pooled, x.shape[:2])]
    kept = [i for i in range(len(x.shape)) if i not in gone]
    order = kept + gone
    moved = view(x, tuple(x.shape[i] for i in order), tuple(x.steps[i] for i in order))
    outer = tuple(x.shape[i] for i in kept)
    flat = r.reshape(
        moved if order != sorted(order) else x, (*outer, prod(x.shape) // max(1, prod(outer)))
    )
    out = _rows(r, op.type.lower(), flat, r.new((*outer, 1), x.dtype))
    keep = op.attr("keepdims", 1)
    shape = [1 if i in gone else n for i, n in enumerate(x.shape)] if keep else list(outer)
    return [r.reshape(out, tuple(shape))]
