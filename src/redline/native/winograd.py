"""Winograd's F(4x4, 3x3): where it pays, how its weights are packed, how it is called."""

from __future__ import annotations

import numpy as np

from redline.native.code import Code
from redline.native.emit_anchors import balanced, lambda_epilogue
from redline.native.ir import Node, Program

# Weights of F(4x4, 3x3): Lavin and Gray, arXiv 1509.09308.
_G = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_CACHED = 10 << 20  # bytes of transformed weights that every thread may stream for itself
_INPUT = 4 << 20  # bytes of transformed input that threads share


def choose(program: Program, lanes: int) -> Program:
    """Turns the 3x3 convolutions into Winograd ones where the arithmetic saved outweighs four
    times the weights; reads at the lower and right edge go over the halo's end, so it grows.
    """
    for node in program.nodes:
        a = node.attrs
        if node.kind != "conv" or a["groups"] != 1 or a["weights"].shape[2:] != (3, 3):
            continue
        if a["strides"] != (1, 1) or a["dilations"] != (1, 1) or a["weights"].shape[1] < 2 * lanes:
            continue
        height, width = node.out.shape[2:]
        # With few tiles the weights' way from memory costs more.
        if not a.get("way", {}).get("winograd", min(height, width) >= 12):
            continue
        node.kind = "winograd"
        top, left, bottom, right = a["pads"]
        a["reach"] = (top, left, bottom + -height % 4, right + -width % 4)
    return program


def _shape(c: Code, node: Node) -> tuple[int, int, bool]:
    """(tiles, tiles at a time, whether threads share the input and split the output channels)."""
    height, width = node.out.shape[2:]
    oc, ic = node.attrs["weights"].shape[:2]
    tiles = -(-height // 4) * -(-width // 4)
    rows = c.isa.accumulators // 2
    if tiles >= 2 * rows * c.threads and 36 * ic * oc * 4 <= _CACHED:
        return tiles, 2 * rows, False
    most = max(rows, _INPUT // (36 * ic * 4) // rows * rows)
    return tiles, min(tiles, most), True


def scratch(c: Code, node: Node) -> int:
    """Bytes for the transformed input and the products, of all threads."""
    _, count, shared = _shape(c, node)
    blocks = -(-node.attrs["weights"].shape[1] // c.lanes)
    v, m = 36 * blocks * count * c.lanes, 36 * 2 * count * c.lanes
    return int(4 * ((1 if shared else c.threads) * v + c.threads * m))


def emit(c: Code, node: Node) -> str:
    """Transforms of the input, 36 products, transform of the output; panel by panel."""
    a, x, out, lanes = node.attrs, node.ins[0], node.out, c.lanes
    oc, ic = a["weights"].shape[:2]
    blocks, out_blocks = -(-ic // lanes), -(-oc // lanes)
    tiles, count, shared = _shape(c, node)
    a["code"] = "winograd F(4x4, 3x3)"
    panels, left = -(-out_blocks // 2), out_blocks % 2
    at = c.weights.add(_pack(a["weights"], lanes), a["weights"], f"winograd{lanes}")
    n, _, height, width = out.shape
    (sn, plane, row, pixel, _), (yn, yb, yh, _, _) = c.geometry(x), c.geometry(out)
    pad = a["pads"][0] * row + a["pads"][1] * pixel
    v, m, threads = 36 * blocks * count * lanes, 36 * 2 * count * lanes, c.threads
    lines = [
        f"float* const v = (float*)(c.arena + {a['scratch']}) + {0 if shared else f't * {v}'};",
        f"float* const m = (float*)(c.arena + {a['scratch']}) + {(1 if shared else threads) * v} + t * {m};",
        f"const float* const w = (const float*)(c.weights + {at});",
        f"const rl::Winograd g = {{{blocks}, {plane}, {row}, {yb}, {yh}, {height}, {width}, {-(-width // 4)}}};",
    ]
    whole = (
        f"rl::share({panels}, t, {threads})",
        f"rl::share({blocks}, t, {threads})",
        f"rl::Span{{0, {tiles}}}",
    )
    parts = (
        f"rl::Span{{0, {panels}}}",
        f"rl::Span{{0, {blocks}}}",
        f"rl::share({tiles}, t, {threads})",
    )
    for name, span in zip(("panels", "ours", "tiles"), whole if shared else parts, strict=True):
        lines.append(f"const rl::Span {name} = {span};")
    lines += [
        f"for (long b = 0; b < {n}; ++b) {{",
        f"const float* x = {c.pointer(x)} - {pad} + b * {sn}; float* y = {c.pointer(out, write=True)} + b * {yn};",
        f"const auto epilogue = {lambda_epilogue(c, node, 'long ob, long h, long v')};",
        f"for (long first = tiles.first; first < tiles.last; first += {count}) {{",
        f"const long count = tiles.last - first < {count} ? tiles.last - first : {count};",
        "rl::winograd_input(g, x, v, first, count, ours.first, ours.last);",
    ]
    if shared and threads > 1:
        lines.append("rl::barrier(c);")
    lines += [
        "for (long p = panels.first; p < panels.last; ++p) {",
        f"const float* const u = w + p * {36 * blocks * lanes * 2 * lanes};",
        f"float* const to = y + p * {2 * yb};",
        *_calls(c, tiles, count, shared, left, panels),
        "}",
    ]
    if shared and threads > 1 and (tiles > count or n > 1):
        lines.append("rl::barrier(c);")
    return "\n".join([*lines, "}", "}", ""])


def _calls(c: Code, tiles: int, count: int, shared: bool, left: int, panels: int) -> list[str]:
    """One call for each number of tiles that a pass may have, with its own tile sizes."""
    sizes = set()
    spans = (
        [(0, tiles)]
        if shared
        else [(tiles * t // c.threads, tiles * (t + 1) // c.threads) for t in range(c.threads)]
    )
    for first, last in spans:
        for start in range(first, last, count):
            sizes.add(min(count, last - start))
    lines = []
    for size in sorted(sizes):
        tile, many, rest = balanced(size, c.isa.accumulators // 2)
        for wide in (2, 1) if left else (2,):
            test = f"count == {size}" + (
                f" && {'p < ' if wide == 2 else 'p == '}{panels - 1}" if left else ""
            )
            lines.append(
                f"if ({test}) rl::winograd_panel<{tile}, {wide}>(g, v, u, m, to, first, {size}, "
                f"{many}, {rest}, p * 2, epilogue);"
            )
    return lines


def _pack(weights: np.ndarray, lanes: int) -> np.ndarray:
    """[panels][36][channels][2 lanes], transformed in float64; the last panel may be narrower."""
    oc, ic = weights.shape[:2]
    blocks, channels = -(-oc // lanes), -(-ic // lanes) * lanes
    full = np.zeros((36, channels, blocks * lanes), np.float32)
    moved = np.einsum("ai,ocij,bj->abco", _G, weights.astype(np.float64), _G)
    full[:, :ic, :oc] = moved.reshape(36, ic, oc)
    parts = [
        np.ascontiguousarray(full[:, :, start : start + 2 * lanes]).reshape(-1)
        for start in range(0, blocks * lanes, 2 * lanes)
    ]
    return np.concatenate(parts)
