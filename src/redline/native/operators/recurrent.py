"""LSTM: the input's half as one matrix product, then a kernel over the steps."""

from __future__ import annotations

import numpy as np

from redline.native.ir import No, Value, contiguous, view
from redline.native.operators.anchors import gemm
from redline.native.read import Op, Reader, constant, operator

PAD = 16  # hidden units are filled up to this, a multiple of every vector


@operator("LSTM")
def _lstm(r: Reader, op: Op) -> list[Value]:
    x, weights, recurrent = op.value(0), op.const(1), op.const(2)
    _check(op, x)
    steps, batch, _ = x.shape
    directions, _, hidden = recurrent.shape
    bias = op.const(3, np.zeros((directions, 8 * hidden), np.float32))
    zeros = constant(np.zeros((directions, batch, hidden), np.float32))
    h0 = r.dense(op.value(5)) if op.has(5) else zeros
    c0 = r.dense(op.value(6)) if op.has(6) else zeros
    y = r.new((steps, directions, batch, hidden), x.dtype)
    cell = r.new((directions, batch, hidden), x.dtype)
    for d in range(directions):
        reverse = op.attr("direction", "forward") == "reverse" or d == 1
        before = gemm(r, x, _by_gate(weights[d], hidden))
        both = bias[d, : 4 * hidden] + bias[d, 4 * hidden :]
        before = r.pointwise("({0} + {1})", before, constant(_by_gate(both[:, None], hidden)[0]))
        out = view(y, (steps, batch, hidden), _without(contiguous(y.shape)), d * batch * hidden)
        attrs = {"recurrent": recurrent[d], "reverse": reverse, "direction": d, "hidden": hidden}
        r.add("lstm", out, before, h0, c0, cell, steps=steps, batch=batch, **attrs)
        r.nodes[-1].flops = 8 * steps * batch * hidden * hidden
    return [y, _last(y, op), cell]


def _check(op: Op, x: Value) -> None:
    if x.dtype != np.float32 or op.has(4) or op.has(7):
        raise No(f"LSTM of {x.dtype} with sequence lengths or peepholes")
    if op.attr("layout", 0) or op.attr("clip") or op.attr("input_forget", 0):
        raise No("LSTM with layout, clip or input_forget")
    if set(op.attr("activations", ())) - {"Sigmoid", "Tanh"}:
        raise No(f"LSTM with activations {op.attr('activations')}")


def _by_gate(weights: np.ndarray, hidden: int) -> np.ndarray:
    """[4 hidden, K] -> [K, 4 padded]: each gate filled up with zeros."""
    padded = -(-hidden // PAD) * PAD
    full = np.zeros((4, padded, weights.shape[1]), np.float32)
    full[:, :hidden] = weights.reshape(4, hidden, -1)
    return np.ascontiguousarray(full.reshape(4 * padded, -1).T)


def _without(steps: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of [steps, directions, batch, hidden] without the directions."""
    return (steps[0], *steps[2:])


def _last(y: Value, op: Op) -> Value:
    """The last state of each direction: of the first step where it runs backwards."""
    steps, directions, batch, hidden = y.shape
    strides = contiguous(y.shape)
    reverse = op.attr("direction", "forward") == "reverse"
    shape = (directions, batch, hidden)
    at = 0 if reverse else (steps - 1) * strides[0]
    jump = strides[1] if directions == 1 else strides[1] - (steps - 1) * strides[0]
    return view(y, shape, (jump, *strides[2:]), at)
