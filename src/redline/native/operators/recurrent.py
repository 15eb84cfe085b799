"""LSTM, GRU, RNN: the input's half as one matrix product, then a kernel over the steps.

The plain LSTM has a fast kernel; every other cell, activation or option goes through one template
that works on a batch entry at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from redline.native.ir import No, Value, contiguous, view
from redline.native.literals import literal
from redline.native.operators.anchors import gemm
from redline.native.operators.movement import permuted
from redline.native.read import Op, Reader, constant, operator

PAD = 16  # hidden units are filled up to this, a multiple of every vector
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULT = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh", "Tanh"),
    "RNN": ("Tanh", "Tanh", "Tanh"),
}
_FORMS = {  # activation -> (C++ over x, default alpha, default beta)
    "Sigmoid": ("rl::sigmoid(x)", None, None),
    "Tanh": ("rl::tanh(x)", None, None),
    "Relu": ("rl::relu(x)", None, None),
    "Softsign": ("x / (1.f + rl::abs(x))", None, None),
    "Softplus": ("rl::softplus(x)", None, None),
    "Affine": ("{a} * x + {b}", 1.0, 0.0),
    "LeakyRelu": ("rl::leaky(x, {a})", 0.01, None),
    "ThresholdedRelu": ("rl::threshold(x, {a})", 1.0, None),
    "ScaledTanh": ("{a} * rl::tanh({b} * x)", 1.0, 1.0),
    "HardSigmoid": ("rl::hard_sigmoid(x, {a}, {b})", 0.2, 0.5),
    "Elu": ("rl::elu(x, {a})", 1.0, None),
}


@operator("LSTM")
def _lstm(r: Reader, op: Op) -> list[Value]:
    if _special(op):
        return _general(r, op)
    x, weights, recurrent = op.value(0), op.const(1), op.const(2)
    steps, batch, _ = x.shape
    directions, _, hidden = recurrent.shape
    bias = op.const(3, np.zeros((directions, 8 * hidden), np.float32))
    zeros = constant(np.zeros((directions, batch, hidden), np.float32))
    h0 = r.dense(op.value(5)) if op.has(5) else zeros
    c0 = r.dense(op.value(6)) if op.has(6) else zeros
    y, cell = _results(r, op, (steps, directions, batch, hidden))
    for d in range(directions):
        reverse = op.attr("direction", "forward") == "reverse" or d == 1
        before = gemm(r, x, _by_gate(weights[d], hidden, 4))
        both = bias[d, : 4 * hidden] + bias[d, 4 * hidden :]
        before = r.pointwise("({0} + {1})", before, constant(_by_gate(both[:, None], hidden, 4)[0]))
        strides = (y.steps[0], *y.steps[2:])
        out = view(y, (steps, batch, hidden), strides, d * batch * hidden)
        attrs = {"recurrent": recurrent[d], "reverse": reverse, "direction": d, "hidden": hidden}
        r.add("lstm", out, before, h0, c0, cell, steps=steps, batch=batch, **attrs)
        r.nodes[-1].flops = 8 * steps * batch * hidden * hidden
    return [y, _last(y, op), cell]


def _results(r: Reader, op: Op, shape: tuple[int, ...]) -> tuple[Value, Value]:
    """Y and the last cells; in one piece where both are read, so that a node makes both."""
    y = r.new(shape, np.float32)
    cell = r.new(shape[1:], np.float32)
    if not op.wants(2):
        return y, cell
    both = r.new((y.size + cell.size,), np.float32)
    return (
        view(both, y.shape, contiguous(y.shape)),
        view(both, cell.shape, contiguous(cell.shape), y.size),
    )


def _special(op: Op) -> bool:
    """Whether the plain kernel cannot take it."""
    options = op.attr("layout", 0) or op.attr("clip") or op.attr("input_forget", 0)
    usual = ("Sigmoid", "Tanh", "Tanh") * 2
    named = tuple(op.attr("activations", ()))
    return bool(op.has(4) or op.has(7) or options or named != usual[: len(named)])


def _by_gate(weights: np.ndarray, hidden: int, gates: int) -> np.ndarray:
    """[gates * hidden, K] -> [K, gates * padded]: each gate filled up with zeros."""
    padded = -(-hidden // PAD) * PAD
    full = np.zeros((gates, padded, weights.shape[1]), np.float32)
    full[:, :hidden] = weights.reshape(gates, hidden, -1)
    return np.ascontiguousarray(full.reshape(gates * padded, -1).T)


def _last(y: Value, op: Op) -> Value:
    """The last state of each direction: of the first step where it runs backwards."""
    steps, directions, batch, hidden = y.shape
    strides = contiguous(y.shape)
    reverse = op.attr("direction", "forward") == "reverse"
    shape = (directions, batch, hidden)
    at = 0 if reverse else (steps - 1) * strides[0]
    jump = strides[1] if directions == 1 else strides[1] - (steps - 1) * strides[0]
    return view(y, shape, (jump, *strides[2:]), at)


@operator("GRU", "RNN")
def _general(r: Reader, op: Op) -> list[Value]:
    gates = _GATES[op.type]
    x, weights, recurrent = op.value(0), op.const(1), op.const(2)
    first = bool(op.attr("layout", 0))  # the batch comes first
    if first:
        x = permuted(x, (1, 0, 2))
    steps, batch, _ = x.shape
    directions, _, hidden = recurrent.shape
    bias = op.const(3, np.zeros((directions, 2 * gates * hidden), np.float32))
    peep = op.const(7, np.zeros((directions, 3 * hidden), np.float32))
    state = (directions, batch, hidden)
    starts = [_start(r, op, i, state, first) for i in (5, 6)]
    lengths = r.cast(op.value(4), np.int32) if op.has(4) else None
    lengths = lengths or constant(np.full(batch, steps, np.int32))
    y_size, s_size = steps * directions * batch * hidden, directions * batch * hidden
    whole = r.new((y_size + 2 * s_size,), np.float32)
    for d in range(directions):
        later = op.attr("linear_before_reset", 0)
        own, back = bias[d, : gates * hidden], bias[d, gates * hidden :].copy()
        after = np.zeros(hidden, np.float32)
        if op.type == "GRU" and later:
            after, back[2 * hidden :] = back[2 * hidden :].copy(), 0
        before = gemm(r, x, _by_gate(weights[d], hidden, gates))
        added = constant(_by_gate((own + back)[:, None], hidden, gates)[0])
        before = r.pointwise("({0} + {1})", before, added)
        packed = constant(_by_gate(recurrent[d], hidden, gates))
        rest = constant(np.concatenate([after, peep[d].reshape(-1)]))
        padded = packed.shape[1] // gates
        numbers = (
            steps, batch, hidden, padded, directions, d,
            int(op.attr("direction", "forward") == "reverse" or d == 1), int(later),
            int(op.attr("input_forget", 0)), float(op.attr("clip") or 0.0),
            *_activations(op, d),
        )  # fmt: skip
        r.call(
            "recurrent.hpp", f"recurrent<{gates}>", whole, before, packed, rest, *starts, lengths,
            units=batch, numbers=numbers, scratch_bytes=4 * (gates + 3) * padded,
            work=2 * steps * batch * gates * hidden * hidden,
        )  # fmt: skip
        r.nodes[-1].flops = 2 * gates * steps * batch * hidden * hidden
    shape = (steps, directions, batch, hidden)
    y = view(whole, shape, contiguous(shape))
    ends = [view(whole, state, contiguous(state), y_size + i * s_size) for i in range(2)]
    if first:
        y, ends = permuted(y, (2, 0, 1, 3)), [permuted(v, (1, 0, 2)) for v in ends]
    return [y, *ends]


def _start(r: Reader, op: Op, index: int, state: tuple[int, ...], first: bool) -> Value:
    if not op.has(index):
        return constant(np.zeros(state, np.float32))
    value = r.copy(op.value(index)) if op.value(index).const is not None else op.value(index)
    return permuted(value, (1, 0, 2)) if first else value


def _activations(op: Op, direction: int) -> list[str]:
    """The cell's functions as C++; alphas and betas go in order to those that have one."""
    usual = _DEFAULT[op.type]
    each = 1 if op.type == "RNN" else 2 if op.type == "GRU" else 3
    named = tuple(op.attr("activations", ())) or usual[:each] * (direction + 1)
    alphas, betas = (list(op.attr(f"activation_{which}", ())) for which in ("alpha", "beta"))
    made: list[str] = []
    for name in named:
        found: Any = {kind.lower(): form for kind, form in _FORMS.items()}.get(name.lower())
        if found is None:
            raise No(f"{op.type} with the activation {name}")
        form, alpha, beta = found
        a = (alphas.pop(0) if alphas else alpha) if alpha is not None else 0.0
        b = (betas.pop(0) if betas else beta) if beta is not None else 0.0
        text = form.format(a=literal(float(a)), b=literal(float(b)))
        made.append(f"[](float x) {{ return {text}; }}")
    chosen = made[direction * each : (direction + 1) * each]
    return (chosen * 3)[:3] if each == 1 else (chosen + chosen[-1:])[:3]
