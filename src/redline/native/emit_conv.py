"""Convolutions: tiles of pixels by blocks of channels, packed weights, the calls of the kernel."""

from __future__ import annotations

import numpy as np

from redline.native.code import SMALL, Code
from redline.native.emit_anchors import (
    CHUNK,
    Operands,
    balanced,
    chosen_tile,
    lambda_epilogue,
    taken,
)
from redline.native.ir import Node, leaves

_PART = 20 << 10  # bytes of weights that stay in the first-level cache beside a tile's pixels
_FULL = 48 << 10  # bytes that stream well enough from the second-level cache
_WORTH = 0.9  # of the tiles must be left, where pixels have addresses of their own
_PIECES = 16  # of a thread's tiles, of which another may claim the last ones
_MANY = 200  # tiles beside which the first use of a panel costs nothing
_PER_BYTE = 12  # operations that a core does while a byte comes from the third-level cache


def conv(c: Code, node: Node) -> str:
    """Direct convolution: tiles of pixels in a row by blocks of output channels."""
    a, out, operands = node.attrs, node.out, Operands.of(node)
    planar, lanes, groups = a.get("planar", False), c.lanes, a["groups"]
    weights: np.ndarray = a["weights"]
    oc, ic, kh, kw = weights.shape
    n, _, oh, ow = out.shape
    blocks = -(-(oc // groups) // lanes)
    line = _line(c, node, blocks * lanes)  # pixels of a row whose end tiles cross, or 0
    if line or _flat(node):
        oh, ow = 1, oh * ow
    pixels, wide = chosen_tile(c, node, line or ow, blocks * lanes)
    size, many, rest = balanced(ow, pixels)
    a["code"] = f"{'first ' if planar else ''}conv_tile<{size}, {wide}>"
    full, left = divmod(blocks, wide)
    all_widths = widths(wide, full, left)
    at, step = pack_conv(c, weights, groups, wide, planar)
    sh, sw = a["strides"]
    taps, origin, group, row, pixel = _conv_input(c, node)
    (yn, yb, yh, yw, _), units = c.geometry(out), oh * (tiles := many + rest)
    panels, split = full + bool(left), c.threads if node.flops // 2 >= SMALL else 1
    floats = depth(weights, planar, lanes) // operands.together * wide * lanes
    panel = floats * operands.bytes
    by_rows, chunk = _order(c, node, groups * panels, units, panel, split)
    channels = ic if planar else -(-ic // lanes)
    deep = _deep(c, node, wide * lanes, units)
    one, skip = floats // channels // wide, group // channels
    steps, part = (kh if planar else kh * kw) * channels, panel * deep // channels
    dealt = split > 1 and _dealt(c, node, deep < channels)
    ahead = _ahead(panel, steps, units) if chunk == units else 0
    h, v, call = _call(size, line, (sh * row, sw * pixel), (yb, yh, yw), channels)
    lines = [
        f"if (t >= {split}) return;",
        *_conv_weights(c, node, at, all_widths, floats, (panels, split, by_rows or dealt)),
        *_shares(node, (by_rows, dealt), groups * panels, units, split),
        f"for (long b = 0; b < {n}; ++b) {{",
        f"const auto* x = {origin}; auto* y = {c.pointer(out, write=True)} + b * {yn};",
        f"const auto epilogue = {lambda_epilogue(c, node, 'long ob, long h, long v')};",
        f"for (long first = units.first; first < units.last; first += {chunk}) {{",
        f"const long last = first + {chunk} < units.last ? first + {chunk} : units.last;",
        *_part(deep, channels, taps),
        "for (long q = panels.first; q < panels.last; ++q) {",
        f"const long g = q / {panels}, p = q % {panels}, ob = g * {blocks} + p * {wide};",
        f"const auto* const wp = w + g * {step} + p * {floats} + k * (p < {full} ? {wide} : {left}) * {one};",
        *_next(ahead, (floats, one * wide, step), (panels, deep, channels)),
        *_over_tiles(size, many, tiles, (64 * ahead * steps * deep // channels, part)),
        f"const auto* from = x + g * {group} + k * {skip} + {h} * {sh * row} + {v} * {sw * pixel};",
        f"auto* to = y + ob * {yb} + {h} * {yh} + {v} * {yw};",
    ]
    lines += _conv_calls(size, many, rest, all_widths, ahead, call)
    return "\n".join([*lines, "}" * 6, ""])


def _dealt(c: Code, node: Node, parted: bool) -> bool:
    """Whether threads claim their pieces. Sums taken in parts go through the image once for each."""
    x = node.ins[0]
    small = node.attrs["weights"][0, 0].size == 1 or c.floats(x) * x.dtype.itemsize <= CHUNK
    return not c.free and (small or not parted)


def _shares(node: Node, how: tuple[bool, bool], panels: int, units: int, split: int) -> list[str]:
    """Opens a loop over what a thread takes, panels of weights or tiles of the image."""
    by_rows, dealt = how
    if not by_rows:
        mine = f"panels = taken, units = {{0, {units}}};"
        return [taken(node, panels, split, dealt), f"const rl::Span {mine}"]
    grain = max(1, units // (split * _PIECES)) if dealt else 1
    mine = f"panels = {{0, {panels}}}, units = rl::steps(taken, {grain}, {units});"
    return [taken(node, -(-units // grain), split, dealt), f"const rl::Span {mine}"]


def _call(
    size: int, line: int, source: tuple[int, int], out: tuple[int, int, int], channels: int
) -> tuple[str, str, str]:
    """A tile's row, its column, and its call's arguments; `line` if it goes on in the next row."""
    (below, pixel), (block, row, step) = source, out
    h, v, jump, wrap = "h", "v", 0, f"{{{size}, 0, 0, 0}}"
    if line:
        h, v, jump = f"(v / {line})", f"(v % {line})", below - line * pixel
        wrap = f"{{{line} - {v}, {row - line * step}, {line}, {jump}}}"
    sums = f"k == 0, k + taps.blocks == {channels}"
    args = f"from, {pixel}, wp, taps, to, {block}, ob, {h}, {v}, next, epilogue, rl::Wrap{wrap}, {sums}"
    return h, v, f"{', true' if jump else ''}>({args})"


def _deep(c: Code, node: Node, panel: int, tiles: int) -> int:
    """Blocks of channels to sum at a time, so that their weights stay in the first-level cache.

    Each tile reads its panel again, and with few registers it has little to do meanwhile. The sums
    wait in the output from one part to the next.
    """
    _, ic, kh, kw = node.attrs["weights"].shape
    if node.attrs.get("planar"):
        return int(ic)
    operands = Operands.of(node)
    blocks, taps = -(-ic // c.lanes), min(c.lanes, ic) // operands.together * kh * kw
    one = taps * panel * operands.bytes
    if node.attrs["groups"] > 1 or c.isa.registers > 16 or blocks * one <= _FULL or tiles < 4:
        return int(blocks)
    if node.out.dtype != np.float32:  # it has no room for sums
        return int(blocks)
    return int(-(-blocks // -(-blocks // max(1, _PART // one))))


def _part(deep: int, blocks: int, taps: str) -> list[str]:
    """C++ that goes through the parts of the sum, from k on, or opens a block for the only one."""
    if deep == blocks:
        return ["{ constexpr long k = 0;", f"constexpr rl::Taps taps = {taps};"]
    return [
        f"for (long k = 0; k < {blocks}; k += {deep}) {{",
        f"rl::Taps taps = {taps};",
        f"taps.blocks = {blocks} - k < {deep} ? {blocks} - k : {deep};",
    ]


def _conv_weights(
    c: Code,
    node: Node,
    at: int,
    widths: list[tuple[int, str]],
    floats: int,
    shared: tuple[int, int, bool],
) -> list[str]:
    """Where the weights are: in the file, or, if each channel has its scale, in scratch.

    `shared` is how many panels, for how many threads, and whether one reads what others scaled.
    """
    if not node.attrs.get("scaled"):
        kind = Operands.of(node).weights
        return [f"const {kind}* const w = (const {kind}*)(c.weights + {at});"]
    panels, split, meet = shared
    scale, ic = node.ins[1], node.attrs["weights"].shape[1]
    channels = -(-ic // c.lanes) * c.lanes
    step = c.geometry(scale)[1]
    calls = [
        f"{condition}rl::scale_rows<{width}>(plain + p * {floats}, w + p * {floats}, "
        f"{c.pointer(scale)}, {step}, {channels});"
        for width, condition in widths
    ]
    return [
        f"const float* const plain = (const float*)(c.weights + {at});",
        f"float* const w = (float*)(c.arena + {node.attrs['scratch']});",
        f"const rl::Span scaled = rl::share({panels}, t, {split});",
        "for (long p = scaled.first; p < scaled.last; ++p) {",
        *calls,
        "}",
        "rl::barrier(c);" if meet and split > 1 else "",
    ]


def scaled_scratch(c: Code, node: Node) -> int:
    """Bytes of the weights of a 1x1 convolution, scaled by channels at run."""
    oc, ic = (-(-size // c.lanes) * c.lanes for size in node.attrs["weights"].shape[:2])
    return int(oc * ic * 4)


def _order(
    c: Code, node: Node, panels: int, units: int, panel: int, split: int
) -> tuple[bool, int]:
    """(whether threads share pixels instead of panels of weights, tiles at a time).

    Whatever does not fit the second-level cache is read anew: the image for each panel, or, where
    a chunk of it stays there, the weights for each chunk. The smaller sum of the two is taken.
    """
    x = node.ins[0]
    image = c.floats(x) * x.dtype.itemsize // x.shape[0]
    if node.attrs["groups"] > 1:
        return False, units
    ways = []
    wanted = node.attrs.get("way", {}).get("order")
    for by_rows in (False, True) if wanted is None else (wanted == "rows",):
        mine_panels, mine_units = (
            (panels, -(-units // split)) if by_rows else (-(-panels // split), units)
        )
        mine = image * mine_units / units
        busiest = mine_units * mine_panels / (units * panels / split)  # of an even share
        for count in {1, max(1, -(-int(mine) // CHUNK))}:
            again = mine_panels if mine / count > 2 * CHUNK else 1
            traffic = mine * again + panel * mine_panels * count
            ways.append(
                (busiest * node.flops / split / _PER_BYTE + traffic, by_rows, count, mine_units)
            )
    _, by_rows, count, mine_units = min(ways)
    return by_rows, max(1, -(-mine_units // count)) if count > 1 else units


def _next(ahead: int, sizes: tuple[int, int, int], counts: tuple[int, int, int]) -> list[str]:
    """C++ for the weights after panel q's: those of q + 1 or, of sums taken in parts, the next part
    of this piece's first panel.
    """
    (floats, one, step), (panels, deep, channels) = sizes, counts
    if not ahead or deep == channels:
        return [f"const auto* const after = wp + {floats}; (void)after;"]
    first = f"panels.first / {panels} * {step} + panels.first % {panels} * {floats}"
    return [
        f"const auto* const after = q + 1 < panels.last ? wp + {floats} :",
        f"k + {deep} < {channels} ? w + {first} + (k + {deep}) * {one} : wp + {floats} - k * {one};",
    ]


def _over_tiles(size: int, many: int, tiles: int, fetched: tuple[int, int]) -> list[str]:
    """The loop over tiles u: their rows and columns, and what they fetch of the weights after these,
    so many bytes of so many; the last ones may have nothing new to fetch.
    """
    one, most = fetched[0], max(0, fetched[1] - fetched[0])
    mine = f"(const char*)after + ((u - first) * {one} < {most} ? (u - first) * {one} : {most})"
    return [
        "for (long u = first; u < last; ++u) {",
        f"const char* const next = {mine if one else 'nullptr'};",
        f"const long h = u / {tiles}, i = u % {tiles}; (void)h;",
        f"const long v = i < {many} ? i * {size} : {many * size} + (i - {many}) * {size - 1};",
    ]


def _ahead(panel: int, steps: int, tiles: int) -> int:
    """Lines to fetch at each step, so that a panel's tiles fetch the next panel between them."""
    return min(8, -(-panel // (64 * steps * tiles))) if tiles <= _MANY else 0


def _conv_calls(
    size: int,
    many: int,
    rest: int,
    widths: list[tuple[int, str]],
    ahead: int,
    call: str,
) -> list[str]:
    """The kernel's calls: full and narrow panels, by tiles of `size` and of one pixel less."""
    lines = []
    for width, condition in widths:
        first, second = (
            f"rl::conv_tile<{pixels}, {width}, {ahead}{call}" for pixels in (size, size - 1)
        )
        text = f"if (i < {many}) {first}; else {second};" if rest else f"{first};"
        lines.append(f"{condition}{{ {text} }}")
    return lines


def _conv_input(c: Code, node: Node) -> tuple[str, str, int, int, int]:
    """C++ of the taps and of the first pixel; strides of a group, a row and a pixel."""
    a, x = node.attrs, node.ins[0]
    _, ic, kh, kw = a["weights"].shape
    dh, dw = a["dilations"]
    if a.get("planar"):
        _, sc, row, pixel = x.steps
        taps = f"{{{ic}, {sc}, {kh}, {dh * row}, 1, 0, {kw}}}"
        return taps, f"{c.pointer(x)} + b * {x.steps[0]}", ic * sc, row, pixel
    operands = Operands.of(node)
    sn, sc, row, pixel, _ = (step // operands.together for step in c.geometry(x))
    run, blocks = min(c.lanes, ic) // operands.together, -(-ic // c.lanes)
    taps = f"{{{blocks}, {sc}, {kh}, {dh * row}, {kw}, {dw * pixel}, {run}}}"
    pad = a["pads"][0] * row + a["pads"][1] * pixel
    first = f"(const {operands.flows}*){c.pointer(x)} - {pad} + b * {sn}"
    return taps, first, blocks * sc, row, pixel


def widths(wide: int, full: int, left: int) -> list[tuple[int, str]]:
    """Blocks of a panel, and the C++ that says which panels have so many."""
    if not left:
        return [(wide, "")]
    if not full:
        return [(left, "")]
    return [(wide, f"if (p < {full}) "), (left, "else ")]


def depth(weights: np.ndarray, planar: bool, lanes: int) -> int:
    """Taps of one output channel, filled up as they are packed."""
    _, ic, kh, kw = weights.shape
    return int((ic if planar else -(-ic // lanes) * min(lanes, ic)) * kh * kw)


def pack_conv(
    c: Code, weights: np.ndarray, groups: int, wide: int, planar: bool
) -> tuple[int, int]:
    """[groups][panels][taps][wide * lanes], the last panel narrower; floats, or pairs, per group."""
    lanes = c.lanes
    oc, ic, kh, kw = weights.shape
    ocg = oc // groups
    blocks, run = -(-ocg // lanes), ic if planar else min(lanes, ic)
    cb = -(-ic // run)
    full = np.zeros((groups, blocks * lanes, cb * run, kh, kw), weights.dtype)
    full[:, :ocg, :ic] = weights.reshape(groups, ocg, ic, kh, kw)
    together = 2 if weights.dtype == np.int8 else 1
    taps = full.reshape(groups, blocks * lanes, cb, run // together, together, kh, kw)
    order = (0, 2, 3, 4, 5, 6, 1) if planar else (0, 2, 5, 6, 3, 1, 4)
    flat = taps.transpose(order).reshape(groups, -1, blocks * lanes, together)
    panels = []
    for group in flat:
        for start in range(0, blocks * lanes, wide * lanes):
            panel = group[:, start : start + wide * lanes]
            panels.append(panel.reshape(-1))
    packed = np.concatenate(panels)
    at = c.weights.add(packed, weights, f"conv{wide}x{lanes}")
    return at, flat.shape[1] * blocks * lanes


def _one_run(node: Node) -> bool:
    """Each output pixel reads the input's pixel of the same place, and those are one run."""
    a, x = node.attrs, node.ins[0]
    if a.get("planar") or a["weights"].shape[2:] != (1, 1) or a["strides"] != (1, 1):
        return False
    return x.shape[2:] == node.out.shape[2:] and x.layout is not None and not any(x.layout.halo)


def _flat(node: Node) -> bool:
    return _one_run(node) and _no_halo(node)


def _line(c: Code, node: Node, channels: int) -> int:
    """The row's length, where tiles that go on in the next row are fewer; 0 where they are not.

    The output has a halo, or an operand does, or the input's pixels are no run; then each pixel of
    a tile has an address of its own, for which the processor must have registers. A tile meets one
    end of a row at most.
    """
    _, _, oh, ow = node.out.shape
    run = _one_run(node)
    if node.attrs.get("planar") or (_no_halo(node) if run else c.isa.registers > 16):
        return 0
    pixels, _ = chosen_tile(c, node, ow, channels)
    most = oh * -(-ow // pixels) * (1 if run else _WORTH)
    return ow if -(-oh * ow // pixels) < most else 0


def _no_halo(node: Node) -> bool:
    """All images of the node are one run of pixels."""
    images = [node.ins[0], node.out]
    if node.expr is not None:
        images += [leaf.value for leaf in leaves(node.expr)]
    shape = node.out.shape[2:]
    for value in images:
        if value.layout is not None and any(value.layout.halo):
            return False
        if value.size > 1 and value.shape[-2:] != shape and value.shape[-2:] not in ((1, 1),):
            return False
    return node.ins[0].shape[2:] == shape
