"""Control flow whose course is known at build: the branch taken, loops and scans unrolled."""

from __future__ import annotations

from typing import Any

import numpy as np

from redline.native.dtypes import ALL
from redline.native.ir import Load, No, Value, contiguous, view
from redline.native.read import Op, Reader, constant, operator

_TURNS = 64  # turns that are unrolled; each becomes code of its own


@operator("If", types=("bool",), note="a condition known only at run")
def _if(r: Reader, op: Op) -> list[Value]:
    taken = "then_branch" if bool(op.const(0).reshape(-1)[0]) else "else_branch"
    return r.graph(op.attr(taken), dict(op.scope), op.opset)


@operator("Loop", types=ALL, note="a number of turns known only at run")
def _loop(r: Reader, op: Op) -> list[Value]:
    if not op.has(0):
        raise No("Loop without a number of turns")
    turns = int(op.const(0).reshape(-1)[0])
    going = bool(op.const(1, np.array(True)).reshape(-1)[0])
    if turns > _TURNS:
        raise No(f"a Loop of {turns} turns, more than {_TURNS}")
    body = op.attr("body")
    names = [value.name for value in body.inputs]
    state = [op.value(i) for i in range(2, len(op.ins))]
    scans: list[list[Value]] = [[] for _ in body.outputs[1 + len(state) :]]
    for turn in range(turns):
        if not going:
            break
        given = [constant(np.array(turn)), constant(np.array(going)), *state]
        outs = r.graph(body, op.scope | dict(zip(names, given, strict=True)), op.opset)
        if outs[0].const is None:
            raise No("a Loop whose end is known only at run")
        going = bool(outs[0].const.reshape(-1)[0])
        state = outs[1 : 1 + len(state)]
        for kept, value in zip(scans, outs[1 + len(state) :], strict=True):
            kept.append(value)
    if any(not kept for kept in scans):
        raise No("a Loop of no turns that collects values")
    return [*state, *(_stacked(r, kept, 0) for kept in scans)]


@operator("Scan", types=ALL, note="more than 64 turns")
def _scan(r: Reader, op: Op) -> list[Value]:
    body, count = op.attr("body"), op.attr("num_scan_inputs")
    if op.opset < 9:
        raise No("Scan as it was before opset 9")
    values = [op.value(i) for i in range(len(op.ins))]
    state, scanned = values[:-count], values[-count:]
    axes = op.attr("scan_input_axes", (0,) * count)
    back = op.attr("scan_input_directions", (0,) * count)
    turns = scanned[0].shape[axes[0]]
    if not 0 < turns <= _TURNS:
        raise No(f"a Scan of {turns} turns")
    names = [value.name for value in body.inputs]
    kept: list[list[Value]] = [[] for _ in body.outputs[len(state) :]]
    for turn in range(turns):
        parts = [
            _part(x, axis, turns - 1 - turn if reverse else turn)
            for x, axis, reverse in zip(scanned, axes, back, strict=True)
        ]
        given = dict(zip(names, [*state, *parts], strict=True))
        outs = r.graph(body, op.scope | given, op.opset)
        state = outs[: len(state)]
        for found, value in zip(kept, outs[len(state) :], strict=True):
            found.append(value)
    to = op.attr("scan_output_axes", (0,) * len(kept))
    turned = op.attr("scan_output_directions", (0,) * len(kept))
    stacks = [
        _stacked(r, found[::-1] if reverse else found, axis)
        for found, axis, reverse in zip(kept, to, turned, strict=True)
    ]
    return [*state, *stacks]


def _part(x: Value, axis: int, place: int) -> Value:
    axis %= len(x.shape)
    if x.const is not None:
        return constant(np.take(x.const, place, axis))
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    steps = (*x.steps[:axis], *x.steps[axis + 1 :])
    return view(x, shape, steps, place * x.steps[axis])


def _stacked(r: Reader, parts: list[Value], axis: int) -> Value:
    """The parts along a new axis."""
    axis %= len(parts[0].shape) + 1
    shape = (*parts[0].shape[:axis], len(parts), *parts[0].shape[axis:])
    if all(part.const is not None for part in parts):
        return constant(np.stack([_known(part) for part in parts], axis))
    out, steps = r.new(shape, parts[0].dtype), contiguous(shape)
    for i, part in enumerate(parts):
        place = view(out, part.shape, (*steps[:axis], *steps[axis + 1 :]), i * steps[axis])
        r.add("loop", place)
        r.nodes[-1].expr = Load(part)
    return out


def _known(value: Value) -> Any:
    return value.const
