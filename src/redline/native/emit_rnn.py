"""Recurrent kernels: threads split the hidden units and meet after each step."""

from __future__ import annotations

import numpy as np

from redline.native.code import Code
from redline.native.ir import Node

_BUSY = 16_000  # multiplications in a step from which a barrier costs less than it brings


def lstm(c: Code, node: Node) -> str:
    """All steps of one direction."""
    a = node.attrs
    before, h0, c0, cell = node.ins
    hidden, batch, steps, lanes = a["hidden"], a["batch"], a["steps"], c.lanes
    units = -(-hidden // lanes)
    wide = 2 if units % 2 == 0 and units >= 2 * c.threads else 1
    panels = units // wide
    at = c.weights.add(_pack(a["recurrent"], hidden, lanes, wide), a["recurrent"], f"lstm{lanes}")
    size = hidden * wide * 4 * lanes
    padded = before.shape[-1] // 4
    state = a["direction"] * batch * hidden
    step = node.out.steps[0]
    split = c.threads if 4 * hidden * hidden * batch >= _BUSY and panels >= c.threads else 1
    when = f"{steps - 1} - s" if a["reverse"] else "s"
    back = "+" if a["reverse"] else "-"
    meet = "rl::barrier(c);" if split > 1 else ""
    return (
        f"if (t >= {split}) return;\n"
        f"const float* const x = {c.pointer(before)}; const float* const h0 = {c.pointer(h0)} + {state};\n"
        f"const float* const c0 = {c.pointer(c0)} + {state};\n"
        f"float* const cell = {c.pointer(cell, write=True)} + {state};\n"
        f"float* const y = {c.pointer(node.out, write=True)};\n"
        f"const float* const r = (const float*)(c.weights + {at});\n"
        f"const rl::Span part = rl::share({panels}, t, {split});\n"
        f"const long low = part.first * {wide * lanes};\n"
        f"const long high = part.last * {wide * lanes} < {hidden} ? part.last * {wide * lanes} : {hidden};\n"
        f"for (long b = 0; b < {batch}; ++b)\n"
        f"for (long i = low; i < high; ++i) cell[b * {hidden} + i] = c0[b * {hidden} + i];\n"
        f"for (long s = 0; s < {steps}; ++s) {{\n"
        f"const long now = {when};\n"
        f"for (long b = 0; b < {batch}; ++b) {{\n"
        f"const float* h = s ? y + (now {back} 1) * {step} + b * {hidden} : h0 + b * {hidden};\n"
        f"for (long p = part.first; p < part.last; ++p)\n"
        f"rl::lstm_step<{wide}>(x + (now * {batch} + b) * {4 * padded}, h, r + p * {size}, "
        f"y + now * {step} + b * {hidden}, cell + b * {hidden}, {hidden}, {padded}, p * {wide * lanes}); }}\n"
        f"{meet} }}\n"
    )


def _pack(recurrent: np.ndarray, hidden: int, lanes: int, wide: int) -> np.ndarray:
    """[4 hidden, hidden] -> [panels][hidden][wide][4][lanes], units filled up with zeros."""
    units = -(-hidden // lanes)
    full = np.zeros((4, units * lanes, hidden), np.float32)
    full[:, :hidden] = recurrent.reshape(4, hidden, hidden)
    parts = full.reshape(4, units // wide, wide, lanes, hidden)
    return np.ascontiguousarray(parts.transpose(1, 4, 2, 0, 3)).reshape(-1)
