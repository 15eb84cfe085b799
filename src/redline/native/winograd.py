"""Winograd's F(4x4, 3x3) and F(2x2, 3x3): where they pay, their packed weights, their calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
_NEAR = 320 << 10  # bytes of transformed input that stay in the second-level cache
_POINT = 128 << 10  # the same, of one product
_PER_BYTE = 10  # operations that all cores do while a byte comes from memory


def choose(program: Program, lanes: int) -> Program:
    """Turns the 3x3 convolutions into Winograd ones where the arithmetic saved outweighs the larger
    weights; reads at the lower and right edge go over the halo's end, so it grows.

    F(2x2, 3x3), whose weights grow less and whose numbers are better, is for images in between.
    """
    for node in program.nodes:
        a = node.attrs
        if node.kind != "conv" or a["groups"] != 1 or a["weights"].shape[2:] != (3, 3):
            continue
        if a["strides"] != (1, 1) or a["dilations"] != (1, 1) or a["weights"].shape[1] < 2 * lanes:
            continue
        height, width = node.out.shape[2:]
        outputs = a.get("way", {}).get("winograd", _cheapest(height, width))
        if not outputs:
            continue
        node.kind = "winograd"
        top, left, bottom, right = a["pads"]
        a["outputs"] = outputs
        a["reach"] = (top, left, bottom + -height % outputs, right + -width % outputs)
    return program


def _cheapest(height: int, width: int) -> int:
    """4, 2 or 0, whose arithmetic or weights, whichever take longer, take least.

    In operations for a pair of channels. A Winograd product runs at three quarters of the peak, its
    transforms included, a direct one at 85 %.
    """
    costs = [(max(2 * 9 * height * width / 0.85, 9 * 4 * _PER_BYTE), 0)]
    for outputs in (4, 2):
        tiles, points = -(-height // outputs) * -(-width // outputs), (outputs + 2) ** 2
        costs.append((max(2 * tiles * points / 0.75, points * 4 * _PER_BYTE), outputs))
    return min(costs)[1]


def tolerance_class(nodes: Iterable[Node]) -> str:
    """What the numbers of a program are held to."""
    found = {node.attrs["outputs"] for node in nodes if node.kind == "winograd"}
    return "winograd-f43" if 4 in found else "winograd-f23" if found else "fp32"


def _points(node: Node) -> tuple[int, int]:
    """(outputs in a row of a tile, products of a tile)."""
    outputs = int(node.attrs["outputs"])
    return outputs, (outputs + 2) ** 2


@dataclass(frozen=True)
class _Walk:
    """How a convolution walks its tiles.

    Attributes:
        tiles: all of an image's; count: how many at a time.
        shared: threads share the input and split the output channels.
        by_point: every panel of weights for one product, then the next product; else all products
            of a panel. Needed where the input of all products falls out of the cache between two
            panels; costs room for the products of all panels.
        slots: panels whose products are kept at a time.
    """

    tiles: int
    count: int
    shared: bool
    by_point: bool
    slots: int


def _walk(c: Code, node: Node) -> _Walk:
    height, width = node.out.shape[2:]
    oc, ic = node.attrs["weights"].shape[:2]
    outputs, points = _points(node)
    tiles = -(-height // outputs) * -(-width // outputs)
    rows = c.isa.accumulators // 2
    shared = tiles < 2 * rows * c.threads or points * ic * oc * 4 > _CACHED
    mine = tiles if shared else -(-tiles // c.threads)
    panels = -(-oc // (2 * c.lanes))
    slots = -(-panels // c.threads) if shared else panels
    near = _NEAR // (points * ic * 4)
    by_point = near < min(2 * rows, mine) and slots > 1
    most = max(rows, (_POINT // (ic * 4) if by_point else near) // rows * rows)
    count = -(-mine // -(-mine // most))  # passes of the same length
    return _Walk(tiles, count, shared, by_point, slots if by_point else 1)


def scratch(c: Code, node: Node) -> int:
    """Bytes for the transformed input and the products, of all threads."""
    walk, (_, points) = _walk(c, node), _points(node)
    blocks = -(-node.attrs["weights"].shape[1] // c.lanes)
    v = points * blocks * walk.count * c.lanes
    m = points * walk.slots * 2 * walk.count * c.lanes
    return int(4 * ((1 if walk.shared else c.threads) * v + c.threads * m))


def emit(c: Code, node: Node) -> str:
    """Transforms of the input, the products, transform of the output."""
    a, x, out, lanes = node.attrs, node.ins[0], node.out, c.lanes
    oc, ic = a["weights"].shape[:2]
    blocks, out_blocks = -(-ic // lanes), -(-oc // lanes)
    walk, (outputs, points) = _walk(c, node), _points(node)
    a["code"] = f"winograd F({outputs}x{outputs}, 3x3)"
    at = c.weights.add(
        _pack(a["weights"], lanes, outputs), a["weights"], f"winograd{outputs}x{lanes}"
    )
    n, _, height, width = out.shape
    (sn, plane, row, pixel, _), (yn, yb, yh, _, _) = c.geometry(x), c.geometry(out)
    pad, threads = a["pads"][0] * row + a["pads"][1] * pixel, c.threads
    v, m = points * blocks * walk.count * lanes, points * walk.slots * 2 * walk.count * lanes
    images = 1 if walk.shared else threads
    lines = [
        f"float* const v = (float*)(c.arena + {a['scratch']}) + {0 if walk.shared else f't * {v}'};",
        f"float* const m = (float*)(c.arena + {a['scratch']}) + {images * v} + t * {m};",
        f"const float* const w = (const float*)(c.weights + {at});",
        f"const rl::Winograd g = {{{blocks}, {plane}, {row}, {yb}, {yh}, {height}, {width}, {-(-width // outputs)}}};",
        *_shares(walk, -(-out_blocks // 2), blocks, threads),
        f"for (long b = 0; b < {n}; ++b) {{",
        f"const float* x = {c.pointer(x)} - {pad} + b * {sn}; float* y = {c.pointer(out, write=True)} + b * {yn};",
        f"const auto epilogue = {lambda_epilogue(c, node, 'long ob, long h, long v')};",
        f"for (long first = tiles.first; first < tiles.last; first += {walk.count}) {{",
        f"const long count = tiles.last - first < {walk.count} ? tiles.last - first : {walk.count};",
        f"rl::winograd_input<{outputs}>(g, x, v, first, count, ours.first, ours.last);",
    ]
    meet = "rl::barrier(c);" if walk.shared and threads > 1 else ""
    lines += [meet, *_products(c, node, walk, out_blocks, blocks)]
    if walk.tiles > walk.count or n > 1:
        lines.append(meet)
    return "\n".join([*lines, "}", "}", ""])


def _products(c: Code, node: Node, walk: _Walk, out_blocks: int, blocks: int) -> list[str]:
    """The loops over products and panels, and the output of each panel."""
    (outputs, points), lanes = _points(node), c.lanes
    panel = blocks * lanes * 2 * lanes  # floats of one product's weights
    panels, left = -(-out_blocks // 2), out_blocks % 2
    yb = c.geometry(node.out)[1]
    slot = f"(p - panels.first) * 2 * count * {lanes}" if walk.by_point else "0"
    step = f"{walk.slots} * 2 * count * {lanes}"
    last = f"p == {panels - 1}" if left else ""
    size = f"({last} ? {panel // 2} : {panel})" if left else str(panel)
    over_points = f"for (long e = 0; e < {points}; ++e)"
    over_panels = "for (long p = panels.first; p < panels.last; ++p)"
    # Weights are [panels][products]: the next product of this panel lies behind this one.
    following = f"u + {size}"
    if walk.by_point:
        following = (
            f"p + 1 < panels.last ? w + (p + 1) * {points * panel} + e * {panel} : "
            f"w + panels.first * {points * panel} + (e + 1) * {panel}"
        )
    calls = [
        f"const float* const u = w + p * {points * panel} + e * {size};",
        f"const float* const next = {following};",
        *_calls(c, walk, panel, blocks, last),
    ]
    output = [
        f"{{ float* const to = y + p * {2 * yb}; const float* const from = m + {slot};",
        f"if ({last}) rl::winograd_output<{outputs}, 1>(g, from, {step}, to, first, count, p * 2, epilogue); else"
        if left
        else "",
        f"rl::winograd_output<{outputs}, 2>(g, from, {step}, to, first, count, p * 2, epilogue); }}",
    ]
    if walk.by_point:
        return [over_points, over_panels, "{", *calls, "}", over_panels, *output]
    return [over_panels, "{", over_points, "{", *calls, "}", *output, "}"]


def _shares(walk: _Walk, panels: int, blocks: int, threads: int) -> list[str]:
    """What a thread does: its panels of a shared input, or everything for its tiles."""
    sizes = {"panels": panels, "ours": blocks, "tiles": walk.tiles}
    divided = ("panels", "ours") if walk.shared else ("tiles",)
    return [
        f"const rl::Span {name} = "
        + (f"rl::share({size}, t, {threads});" if name in divided else f"rl::Span{{0, {size}}};")
        for name, size in sizes.items()
    ]


def _calls(c: Code, walk: _Walk, panel: int, blocks: int, last: str) -> list[str]:
    """One call for each number of tiles that a pass may have, with its own tile sizes."""
    threads = 1 if walk.shared else c.threads
    spans = [(walk.tiles * t // threads, walk.tiles * (t + 1) // threads) for t in range(threads)]
    sizes = {
        min(walk.count, end - start)
        for begin, end in spans
        for start in range(begin, end, walk.count)
    }
    place = f"m + (e * {walk.slots} + (p - panels.first) * {int(walk.by_point)}) * 2 * count * {c.lanes}"
    lines = []
    for size in sorted(sizes):
        tile, many, rest = balanced(size, c.isa.accumulators // 2)
        ahead = min(8, -(-panel * 4 // (64 * blocks * (many + rest))))
        for wide in (2, 1) if last else (2,):
            test = f"count == {size}" + (f" && {'!' * (wide - 1)}({last})" if last else "")
            lines.append(
                f"if ({test}) rl::winograd_product<{tile}, {wide}, {ahead}>(g, "
                f"v + e * {blocks * c.lanes} * count, u, {place}, {size}, {many}, {rest}, next);"
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
