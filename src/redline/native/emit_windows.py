"""Depthwise convolutions and pooling: windows over each channel for itself."""

from __future__ import annotations

import numpy as np

from redline.native.code import SMALL, Code
from redline.native.emit_anchors import balanced, lambda_epilogue
from redline.native.ir import Node


def depthwise(c: Code, node: Node) -> str:
    """One filter a channel: no sums over channels, so a lane is a channel throughout."""
    a, x, out = node.attrs, node.ins[0], node.out
    kh = a["weights"].shape[2]
    at, blocks = pack_depthwise(c, a["weights"])
    n, _, oh, _ = out.shape
    sn, sc, row, pixel, _ = c.geometry(x)
    yn, yb, yh, _, _ = c.geometry(out)
    pad = a["pads"][0] * row + a["pads"][1] * pixel
    split = c.threads if node.flops // 2 >= SMALL // 4 else 1
    step = a["dilations"][0] * row
    clear, start, end = summing(c, node, split, "q")
    return (
        f"if (t >= {split}) return;\n"
        f"const float* const w = (const float*)(c.weights + {at});\n"
        f"const rl::Span part = rl::share({blocks * oh}, t, {split});\n"
        f"for (long b = 0; b < {n}; ++b) {{\n"
        f"const float* x = {c.pointer(x)} - {pad} + b * {sn}; "
        f"float* y = {c.pointer(out, write=True)} + b * {yn};\n"
        f"{clear}{start}\n"
        f"for (long u = part.first; u < part.last; ++u) {{\n"
        f"const long q = u / {oh}, h = u % {oh};\n"
        f"const float* lines[{kh}];\n"
        f"for (long i = 0; i < {kh}; ++i) lines[i] = x + q * {sc} + h * {a['strides'][0] * row} + i * {step};\n"
        f"float* to = y + q * {yb} + h * {yh};\n{depthwise_line(c, node, 'q', 'lines', '0')}{end}}}\n}}\n"
    )


def summing(c: Code, node: Node, split: int, block: str) -> tuple[str, str, str]:
    """C++ that clears a thread's sums, the epilogue, and what adds a row to the sums.

    Each thread has a vector of sums for each block of channels, and clears those of threads that
    take no part.
    """
    epilogue = lambda_epilogue(c, node, "long ob, long h, long v")
    sums = node.attrs.get("sums")
    if sums is None:
        return "", f"const auto epilogue = {epilogue};", ""
    channels = sums.shape[1]
    sn, sc, _, lane, _ = c.geometry(sums)
    clear = (
        f"float* const sums = {c.pointer(sums, write=True)} + b * {sn};\n"
        f"for (long q = 0; q < {-(-channels // c.lanes)}; ++q) for (long i = t; i < {c.threads}; "
        f"i += {split}) rl::store(sums + q * {sc} + i * {lane}, rl::vf{{}});\n"
    )
    start = (
        f"rl::vf total = {{}};\nconst auto plain = {epilogue};\n"
        "const auto epilogue = [&](rl::vf acc, long ob, long h, long v) { "
        "const rl::vf y = plain(acc, ob, h, v); total += y; return y; };"
    )
    at = f"sums + {block} * {sc} + t * {lane}"
    return clear, start, f"rl::store({at}, rl::load({at}) + total); total = rl::vf{{}};\n"


def pack_depthwise(c: Code, weights: np.ndarray) -> tuple[int, int]:
    """[blocks][taps][lanes]: where they are, how many blocks."""
    channels, lanes = weights.shape[0], c.lanes
    blocks = -(-channels // lanes)
    packed = np.zeros((blocks * lanes, weights[0].size), np.float32)
    packed[:channels] = weights.reshape(channels, -1)
    packed = packed.reshape(blocks, lanes, -1).transpose(0, 2, 1)
    return c.weights.add(packed, weights, f"depthwise{lanes}"), blocks


def depthwise_line(c: Code, node: Node, block: str, lines: str, start: str) -> str:
    """One row of a depthwise output, at `to`: block `block` from `lines`, whose pixels begin at `start`."""
    a, lanes = node.attrs, c.lanes
    _, _, kh, kw = a["weights"].shape
    size, many, rest = balanced(node.out.shape[3], min(14, c.isa.accumulators))
    step = a["strides"][1] * lanes
    call = (
        f"rl::depthwise_tile<{{0}}>({lines}, {start} + v * {step}, {a['dilations'][1] * lanes}, {step}, "
        f"w + {block} * {kh * kw * lanes}, {kh}, {kw}, to + v * {lanes}, {block}, h, v, epilogue)"
    )
    text = f"long v = 0;\nfor (long i = 0; i < {many}; ++i, v += {size}) {call.format(size)};\n"
    if rest and size > 1:
        text += f"for (long i = 0; i < {rest}; ++i, v += {size - 1}) {call.format(size - 1)};\n"
    return text


def pool(c: Code, node: Node) -> str:
    """Each output pixel's window, cut off at the image's edges."""
    a, x, out = node.attrs, node.ins[0], node.out
    (kh, kw), (sh, sw), (dh, dw) = a["kernel"], a["strides"], a["dilations"]
    top, left = a["pads"][:2]
    n, channels, oh, ow = out.shape
    _, _, h, w = x.shape
    sn, sc, row, pixel, _ = c.geometry(x)
    yn, yb, yh, yw, _ = c.geometry(out)
    high = a["mode"] == "MaxPool"
    blocks = -(-channels // c.lanes)
    split = c.threads if n * blocks * oh * ow * kh * kw * c.lanes >= SMALL else 1
    start = "rl::set(-HUGE_VALF)" if high else "rl::vf{}"
    step = "acc = rl::maximum(acc, e);" if high else "acc += e;"
    end = (
        ""
        if high
        else f"acc *= {1 / a['divisor']!r}f;"
        if "divisor" in a
        else (
            "acc /= rl::set((float)count);"
            if not a["count_pads"]
            else f"acc *= {1 / (kh * kw)!r}f;"
        )
    )
    return (
        f"if (t >= {split}) return;\n"
        f"const rl::Span part = rl::share({blocks * oh}, t, {split});\n"
        f"for (long b = 0; b < {n}; ++b) {{\n"
        f"const auto epilogue = {lambda_epilogue(c, node, 'long ob, long h, long v')};\n"
        f"const float* x = {c.pointer(x)} + b * {sn}; float* y = {c.pointer(out, write=True)} + b * {yn};\n"
        f"for (long u = part.first; u < part.last; ++u) for (long v = 0; v < {ow}; ++v) {{\n"
        f"const long q = u / {oh}, h = u % {oh};\n"
        f"rl::vf acc = {start}; long count = 0;\n"
        f"for (long i = 0; i < {kh}; ++i) {{ const long r = h * {sh} - {top} + i * {dh};\n"
        f"if (r < 0 || r >= {h}) continue;\n"
        f"for (long j = 0; j < {kw}; ++j) {{ const long s = v * {sw} - {left} + j * {dw};\n"
        f"if (s < 0 || s >= {w}) continue;\n"
        f"const rl::vf e = rl::load(x + q * {sc} + r * {row} + s * {pixel}); {step} ++count; }} }}\n"
        f"(void)count; {end}\n"
        f"rl::store(y + q * {yb} + h * {yh} + v * {yw}, epilogue(acc, q, h, v)); }} }}\n"
    )
