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
_LINE = 16  # floats
_PASS = 64  # tiles for which filters are transformed once
_PER_BYTE = 10  # operations that all cores do while a byte comes from memory
_FILTERS = {4: 240, 2: 100}  # operations that would take as long as to transform a pair's filter


def choose(program: Program, lanes: int) -> Program:
    """Turns the 3x3 convolutions into Winograd ones where the arithmetic saved outweighs the larger
    weights; reads at the lower and right edge go over the halo's end, so it grows.

    F(2x2, 3x3), whose weights grow less and whose numbers are better, is for images in between.
    """
    for node in program.nodes:
        a = node.attrs
        if node.kind != "conv" or a["groups"] != 1 or a["weights"].shape[2:] != (3, 3):
            continue
        if a["strides"] != (1, 1) or a["dilations"] != (1, 1) or not node.floating:
            continue
        if a["weights"].shape[1] < 2 * lanes:
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

    In operations for a pair of channels. A Winograd product runs at three quarters of the peak, the
    transforms of images included, a direct one at 85 %; filters are transformed, too.
    """
    weights = 9 * 4 * _PER_BYTE
    costs = [(max(2 * 9 * height * width / 0.85, weights), 0)]
    for outputs, filters in _FILTERS.items():
        tiles, points = -(-height // outputs) * -(-width // outputs), (outputs + 2) ** 2
        costs.append((max(2 * tiles * points / 0.75 + filters, weights), outputs))
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
        depth: input channel blocks whose filters are transformed at a time, during the call; 0
            where they were at the build.
        by_point: every panel of weights for one product, then the next product; else all products
            of a panel. Needed where the input of all products falls out of the cache between two
            panels; costs room for the products of all panels.
        slots: panels whose products are kept at a time.
    """

    tiles: int
    count: int
    shared: bool
    depth: int
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
    if shared:
        count = -(-mine // -(-mine // _PASS))  # passes of the same length
        blocks = -(-ic // c.lanes)
        most = max(1, _NEAR // (points * c.lanes * 4 * (count + 2 * c.lanes)))
        depth = -(-blocks // -(-blocks // most))
        slots = 1 if depth == blocks else -(-panels // c.threads)
        return _Walk(tiles, count, shared, depth, False, slots)
    near = _NEAR // (points * ic * 4)
    by_point = near < min(2 * rows, mine) and panels > 1
    most = max(rows, (_POINT // (ic * 4) if by_point else near) // rows * rows)
    count = -(-mine // -(-mine // most))
    return _Walk(tiles, count, shared, 0, by_point, panels if by_point else 1)


@dataclass(frozen=True)
class _Rooms:
    """Floats of memory, and those that keep one product's numbers out of the next one's cache sets.

    Attributes:
        v, m, u: the transformed input, a thread's products, its transformed filters.
        v_gap, m_gap: floats between two products' numbers there.
    """

    v: int
    m: int
    u: int
    v_gap: int
    m_gap: int


def _rooms(c: Code, node: Node, walk: _Walk) -> _Rooms:
    _, points = _points(node)
    blocks = -(-node.attrs["weights"].shape[1] // c.lanes)
    depth = walk.depth or blocks
    v, m = depth * walk.count * c.lanes, 2 * walk.count * c.lanes
    u = _apart(depth * c.lanes * 2 * c.lanes)
    return _Rooms(
        points * -(-blocks // depth) * _apart(v), points * walk.slots * _apart(m),
        points * u if walk.depth else 0, _apart(v) - v, _apart(m) - m,
    )  # fmt: skip


def _apart(floats: int) -> int:
    """Room for so many floats, a line more where numbers at this distance would share few sets."""
    return floats + (_LINE if floats % (16 * _LINE) == 0 else 0)


def scratch(c: Code, node: Node) -> int:
    """Bytes for the transformed input, the products and the filters, of all threads."""
    walk = _walk(c, node)
    room = _rooms(c, node, walk)
    return 4 * ((1 if walk.shared else c.threads) * room.v + c.threads * (room.m + room.u))


def emit(c: Code, node: Node) -> str:
    """Transforms of the input, the products, transform of the output."""
    a, x, out, lanes = node.attrs, node.ins[0], node.out, c.lanes
    oc, ic = a["weights"].shape[:2]
    blocks, out_blocks = -(-ic // lanes), -(-oc // lanes)
    walk, outputs = _walk(c, node), int(a["outputs"])
    a["code"] = f"winograd F({outputs}x{outputs}, 3x3)"
    how = outputs if not walk.depth else 0
    at = c.weights.add(_pack(a["weights"], lanes, how), a["weights"], f"winograd{how}x{lanes}")
    n, _, height, width = out.shape
    (sn, plane, row, pixel, _), (yn, yb, yh, _, _) = c.geometry(x), c.geometry(out)
    pad, threads = a["pads"][0] * row + a["pads"][1] * pixel, c.threads
    room, depth = _rooms(c, node, walk), walk.depth or blocks
    images = 1 if walk.shared else threads
    lines = [
        f"float* const v = (float*)(c.arena + {a['scratch']}) + {0 if walk.shared else f't * {room.v}'};",
        f"float* const m = (float*)(c.arena + {a['scratch']}) + {images * room.v} + t * {room.m + room.u};",
        f"const float* const w = (const float*)(c.weights + {at});",
        f"const rl::Winograd g = {{{plane}, {row}, {yb}, {yh}, {height}, {width}, {-(-width // outputs)}}};",
        *_shares(walk, -(-out_blocks // 2), blocks, threads),
        f"for (long b = 0; b < {n}; ++b) {{",
        f"const float* x = {c.pointer(x)} - {pad} + b * {sn}; float* y = {c.pointer(out, write=True)} + b * {yn};",
        f"const auto epilogue = {lambda_epilogue(c, node, 'long ob, long h, long v')};",
        f"for (long first = tiles.first; first < tiles.last; first += {walk.count}) {{",
        f"const long count = tiles.last - first < {walk.count} ? tiles.last - first : {walk.count};",
        f"const long v_step = {depth * lanes} * count + {room.v_gap}, m_step = {2 * lanes} * count + {room.m_gap};",
        f"rl::winograd_input<{outputs}>(g, x, v, {depth}, v_step, first, count, ours.first, ours.last);",
    ]
    meet = "rl::barrier(c);" if walk.shared and threads > 1 else ""
    products = _fresh_products if walk.depth else _products
    lines += [meet, *products(c, node, walk, out_blocks, blocks)]
    if walk.tiles > walk.count or n > 1:
        lines.append(meet)
    return "\n".join([*lines, "}", "}", ""])


def _products(c: Code, node: Node, walk: _Walk, out_blocks: int, blocks: int) -> list[str]:
    """The loops over products and panels, and the output of each panel."""
    (_, points), lanes = _points(node), c.lanes
    panel = blocks * lanes * 2 * lanes  # floats of one product's weights
    panels, left = -(-out_blocks // 2), out_blocks % 2
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
        *_calls(c, node, walk, blocks, panel * 4 // 64, last),
    ]
    output = _output(c, node, walk, last)
    if walk.by_point:
        return [over_points, over_panels, "{", *calls, "}", over_panels, *output]
    return [over_panels, "{", over_points, "{", *calls, "}", *output, "}"]


def _fresh_products(c: Code, node: Node, walk: _Walk, out_blocks: int, blocks: int) -> list[str]:
    """The same where filters are transformed during the call: for some input channels at a time,
    so that they and the input of those stay in the second-level cache.
    """
    (outputs, points), lanes = _points(node), c.lanes
    block = 9 * lanes * lanes  # floats of a channel block's filters, for each output block
    panels, left = -(-out_blocks // 2), out_blocks % 2
    last = f"p == {panels - 1}" if left else ""
    wide = f"({last} ? 1 : 2)" if left else "2"
    here = -(-2 * block * walk.depth * 4 // (64 * points))  # lines to fetch during a product
    step = _apart(walk.depth * lanes * 2 * lanes)
    filters = [
        f"{f'if ({test}) ' if test else ''}rl::winograd_filters<{outputs}, {number}>(from, deep * {lanes}, f, {step});"
        for number, test in ((1, last), (2, last and f"!({last})"))
        if number == 2 or last
    ]
    return [
        f"float* const f = m + {_rooms(c, node, walk).m};",
        f"for (long k = 0; k < {blocks}; k += {walk.depth}) {{",
        f"const long deep = {blocks} - k < {walk.depth} ? {blocks} - k : {walk.depth};",
        "for (long p = panels.first; p < panels.last; ++p) {",
        f"const float* const from = w + p * {2 * block * blocks} + k * {block} * {wide};",
        f"const float* const following = p + 1 < panels.last ? from + {2 * block * blocks} :",
        f"k + deep < {blocks} ? w + panels.first * {2 * block * blocks} + (k + deep) * {2 * block} : from;",
        *filters,
        f"for (long e = 0; e < {points}; ++e) {{",
        f"const float* const u = f + e * {step};",
        f"const float* const next = following + e * {here * 16};",
        *_calls(c, node, walk, walk.depth, here, last),
        "}",
        f"if (k + deep == {blocks})",
        *_output(c, node, walk, last),
        "}",
        "}",
    ]


def _output(c: Code, node: Node, walk: _Walk, last: str) -> list[str]:
    """The output of panel p."""
    outputs, yb = int(node.attrs["outputs"]), c.geometry(node.out)[1]
    _, points = _points(node)
    slot = f"(p - panels.first) * {points} * m_step" if walk.slots > 1 else "0"
    return [
        f"{{ float* const to = y + p * {2 * yb}; const float* const from = m + {slot};",
        f"if ({last}) rl::winograd_output<{outputs}, 1>(g, from, m_step, to, first, count, p * 2, epilogue); else"
        if last
        else "",
        f"rl::winograd_output<{outputs}, 2>(g, from, m_step, to, first, count, p * 2, epilogue); }}",
    ]


def _shares(walk: _Walk, panels: int, blocks: int, threads: int) -> list[str]:
    """What a thread does: its panels of a shared input, or everything for its tiles."""
    sizes = {"panels": panels, "ours": blocks, "tiles": walk.tiles}
    divided = ("panels", "ours") if walk.shared else ("tiles",)
    return [
        f"const rl::Span {name} = "
        + (f"rl::share({size}, t, {threads});" if name in divided else f"rl::Span{{0, {size}}};")
        for name, size in sizes.items()
    ]


def _calls(c: Code, node: Node, walk: _Walk, blocks: int, fetched: int, last: str) -> list[str]:
    """One call for each number of tiles that a pass may have, with its own tile sizes, which fetches
    so many lines of memory.
    """
    threads = 1 if walk.shared else c.threads
    spans = [(walk.tiles * t // threads, walk.tiles * (t + 1) // threads) for t in range(threads)]
    sizes = {
        min(walk.count, end - start)
        for begin, end in spans
        for start in range(begin, end, walk.count)
    }
    _, points = _points(node)
    slot = f"(p - panels.first) * {points} + " if walk.slots > 1 else ""
    deep, chunk, more = "deep", f"k / {walk.depth} * {points} + ", "k != 0"
    if not walk.depth:
        deep, chunk, more = str(blocks), "", "false"
    lines = []
    for size in sorted(sizes):
        tile, many, rest = balanced(size, c.isa.accumulators // 2)
        ahead = min(8, -(-fetched // (blocks * (many + rest))))
        for wide in (2, 1) if last else (2,):
            test = f"count == {size}" + (f" && {'!' * (wide - 1)}({last})" if last else "")
            lines.append(
                f"if ({test}) rl::winograd_product<{tile}, {wide}, {ahead}>("
                f"v + ({chunk}e) * v_step, {deep}, u, m + ({slot}e) * m_step, {size}, {many}, {rest}, "
                f"next, {more});"
            )
    return lines


def _pack(weights: np.ndarray, lanes: int, outputs: int) -> np.ndarray:
    """[panels][products][channels][2 lanes], transformed in float64; or, for 0 outputs, filters as
    they are, [panels][channels][3 x 3][2 lanes]. The last panel may be narrower.
    """
    oc, ic = weights.shape[:2]
    channels = -(-ic // lanes) * lanes
    g = _G.get(outputs, np.eye(3))
    full = np.zeros((len(g) ** 2, channels, -(-oc // lanes) * lanes), np.float32)
    moved = np.einsum("ai,ocij,bj->abco", g, weights.astype(np.float64), g)
    full[:, :ic, :oc] = moved.reshape(-1, ic, oc)
    if not outputs:
        full = full.transpose(1, 0, 2)
    parts = [
        np.ascontiguousarray(full[:, :, start : start + 2 * lanes]).reshape(-1)
        for start in range(0, full.shape[2], 2 * lanes)
    ]
    return np.concatenate(parts)
