"""Winograd's F(4x4, 3x3) and F(2x2, 3x3): where they pay, their packed weights, their calls."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from redline.native.code import Code
from redline.native.emit_anchors import balanced, lambda_epilogue
from redline.native.ir import Node, Program

# Weights of F(4x4, 3x3) and F(2x2, 3x3): Lavin and Gray, arXiv 1509.09308.
_G = {
    4: np.array(
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ]
    ),
    2: np.array([[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]),
}
_CACHED = 10 << 20  # bytes of transformed weights that every thread may stream for itself
_INPUT = 4 << 20  # bytes of transformed input that threads share


def choose(program: Program, lanes: int) -> Program:
    """Turns the 3x3 convolutions into Winograd ones where the arithmetic saved outweighs four
    times the weights; reads at the lower and right edge go over the halo's end, so it grows.

    Tuning may choose F(2x2, 3x3), whose weights grow less and whose numbers are better.
    """
    for node in program.nodes:
        a = node.attrs
        if node.kind != "conv" or a["groups"] != 1 or a["weights"].shape[2:] != (3, 3):
            continue
        if a["strides"] != (1, 1) or a["dilations"] != (1, 1) or a["weights"].shape[1] < 2 * lanes:
            continue
        height, width = node.out.shape[2:]
        # With few tiles the weights' way from memory costs more.
        outputs = a.get("way", {}).get("winograd", 4 if min(height, width) >= 12 else 0)
        if not outputs:
            continue
        node.kind = "winograd"
        top, left, bottom, right = a["pads"]
        a["outputs"] = outputs
        a["reach"] = (top, left, bottom + -height % outputs, right + -width % outputs)
    return program


def tolerance_class(nodes: Iterable[Node]) -> str:
    """What the numbers of a program are held to."""
    found = {node.attrs["outputs"] for node in nodes if node.kind == "winograd"}
    return "winograd-f43" if 4 in found else "winograd-f23" if found else "fp32"


def _points(node: Node) -> tuple[int, int]:
    """(outputs in a row of a tile, products of a tile)."""
    outputs = int(node.attrs["outputs"])
    return outputs, (outputs + 2) ** 2


def _shape(c: Code, node: Node) -> tuple[int, int, bool]:
    """(tiles, tiles at a time, whether threads share the input and split the output channels)."""
    height, width = node.out.shape[2:]
    oc, ic = node.attrs["weights"].shape[:2]
    outputs, points = _points(node)
    tiles = -(-height // outputs) * -(-width // outputs)
    rows = c.isa.accumulators // 2
    if tiles >= 2 * rows * c.threads and points * ic * oc * 4 <= _CACHED:
        return tiles, 2 * rows, False
    most = max(rows, _INPUT // (points * ic * 4) // rows * rows)
    return tiles, min(tiles, most), True


def scratch(c: Code, node: Node) -> int:
    """Bytes for the transformed input and the products, of all threads."""
    _, count, shared = _shape(c, node)
    _, points = _points(node)
    blocks = -(-node.attrs["weights"].shape[1] // c.lanes)
    v, m = points * blocks * count * c.lanes, points * 2 * count * c.lanes
    return int(4 * ((1 if shared else c.threads) * v + c.threads * m))


def emit(c: Code, node: Node) -> str:
    """Transforms of the input, the products, transform of the output; panel by panel."""
    a, x, out, lanes = node.attrs, node.ins[0], node.out, c.lanes
    oc, ic = a["weights"].shape[:2]
    blocks, out_blocks = -(-ic // lanes), -(-oc // lanes)
    (tiles, count, shared), (outputs, points) = _shape(c, node), _points(node)
    a["code"] = f"winograd F({outputs}x{outputs}, 3x3)"
    panels, left = -(-out_blocks // 2), out_blocks % 2
    at = c.weights.add(
        _pack(a["weights"], lanes, outputs), a["weights"], f"winograd{outputs}x{lanes}"
    )
    n, _, height, width = out.shape
    (sn, plane, row, pixel, _), (yn, yb, yh, _, _) = c.geometry(x), c.geometry(out)
    pad, threads = a["pads"][0] * row + a["pads"][1] * pixel, c.threads
    v, m = points * blocks * count * lanes, points * 2 * count * lanes
    lines = [
        f"float* const v = (float*)(c.arena + {a['scratch']}) + {0 if shared else f't * {v}'};",
        f"float* const m = (float*)(c.arena + {a['scratch']}) + {(1 if shared else threads) * v} + t * {m};",
        f"const float* const w = (const float*)(c.weights + {at});",
        f"const rl::Winograd g = {{{blocks}, {plane}, {row}, {yb}, {yh}, {height}, {width}, {-(-width // outputs)}}};",
    ]
    lines += _shares(shared, panels, blocks, tiles, threads)
    lines += [
        f"for (long b = 0; b < {n}; ++b) {{",
        f"const float* x = {c.pointer(x)} - {pad} + b * {sn}; float* y = {c.pointer(out, write=True)} + b * {yn};",
        f"const auto epilogue = {lambda_epilogue(c, node, 'long ob, long h, long v')};",
        f"for (long first = tiles.first; first < tiles.last; first += {count}) {{",
        f"const long count = tiles.last - first < {count} ? tiles.last - first : {count};",
        f"rl::winograd_input<{outputs}>(g, x, v, first, count, ours.first, ours.last);",
    ]
    if shared and threads > 1:
        lines.append("rl::barrier(c);")
    lines += [
        "for (long p = panels.first; p < panels.last; ++p) {",
        f"const float* const u = w + p * {points * blocks * lanes * 2 * lanes};",
        f"float* const to = y + p * {2 * yb};",
        *_calls(c, outputs, tiles, count, shared, left, panels),
        "}",
    ]
    if shared and threads > 1 and (tiles > count or n > 1):
        lines.append("rl::barrier(c);")
    return "\n".join([*lines, "}", "}", ""])


def _shares(shared: bool, panels: int, blocks: int, tiles: int, threads: int) -> list[str]:
    """What a thread does: its panels of a shared input, or everything for its tiles."""
    sizes = {"panels": panels, "ours": blocks, "tiles": tiles}
    divided = ("panels", "ours") if shared else ("tiles",)
    return [
        f"const rl::Span {name} = "
        + (f"rl::share({size}, t, {threads});" if name in divided else f"rl::Span{{0, {size}}};")
        for name, size in sizes.items()
    ]


def _calls(
    c: Code, outputs: int, tiles: int, count: int, shared: bool, left: int, panels: int
) -> list[str]:
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
                f"if ({test}) rl::winograd_panel<{outputs}, {tile}, {wide}>(g, v, u, m, to, first, {size}, "
                f"{many}, {rest}, p * 2, epilogue);"
            )
    return lines


def _pack(weights: np.ndarray, lanes: int, outputs: int) -> np.ndarray:
    """[panels][products][channels][2 lanes], transformed in float64; the last panel may be narrower."""
    oc, ic = weights.shape[:2]
    blocks, channels = -(-oc // lanes), -(-ic // lanes) * lanes
    g = _G[outputs]
    full = np.zeros((len(g) ** 2, channels, blocks * lanes), np.float32)
    moved = np.einsum("ai,ocij,bj->abco", g, weights.astype(np.float64), g)
    full[:, :ic, :oc] = moved.reshape(-1, ic, oc)
    parts = [
        np.ascontiguousarray(full[:, :, start : start + 2 * lanes]).reshape(-1)
        for start in range(0, blocks * lanes, 2 * lanes)
    ]
    return np.concatenate(parts)
