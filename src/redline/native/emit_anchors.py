"""Matrix products, convolutions and pooling: tile sizes, packed weights, the calls of kernels."""

from __future__ import annotations

from math import prod

import numpy as np

from redline.native.code import SMALL, Code, scalar, vector_load
from redline.native.fuse import matrix_steps
from redline.native.ir import Node, Value, leaves

_FEW_ROWS = 4  # rows of A that any cache holds, however they lie
_CHUNK = 256 << 10  # bytes of an image that stay in the second-level cache beside the weights
_PER_BYTE = 12  # operations that a core does while a byte comes from the third-level cache
_SKEW = 16  # floats by which a copied row is longer than what it holds


def balanced(total: int, most: int) -> tuple[int, int, int]:
    """(size, how many tiles of it, how many of size - 1): tiles of at most `most`.

    Example:
        >>> balanced(128, 14)
        (13, 8, 2)
    """
    count = -(-total // most)
    size = -(-total // count)
    return size, total - (size - 1) * count, size * count - total


def tile(c: Code, rows: int, columns: int) -> tuple[int, int]:
    """(rows, vectors): as many sums as registers hold, at least two vectors wide."""
    vectors = -(-columns // c.lanes)
    wide = 2
    while rows * 2 * wide <= c.isa.accumulators and wide < 8 and wide < vectors:
        wide *= 2
    wide = min(wide, vectors)
    return min(rows, max(1, c.isa.accumulators // wide)), wide


def _chosen(c: Code, node: Node, rows: int, columns: int) -> tuple[int, int]:
    """The tile that tuning chose, or the default one."""
    wanted = node.attrs.get("way", {}).get("tile")
    if wanted is None and node.attrs.get("planar"):
        wanted = (rows, 4)  # its pixels lie apart: fewer of them, each for more channels
    if wanted is None:
        return tile(c, rows, columns)
    wide = min(wanted[1], -(-columns // c.lanes))
    return min(rows, max(1, c.isa.accumulators // wide)), wide


def lambda_epilogue(c: Code, node: Node, steps: str) -> str:
    """A lambda over a vector of sums; `steps` says how operands are addressed."""
    if node.expr is None:
        return f"[&](rl::vf acc, {steps}) {{ return acc; }}"

    def load(value: Value) -> str:
        known = scalar(value)
        if known is not None:
            return f"rl::set({known})"
        if node.out.layout is not None:
            access = c.access(value, node.out)
            return vector_load(access, ("b", "ob", "h", "v", "0"))
        row, lane = matrix_steps(value, node.out.shape)
        at = f"{c.pointer(value)} + (m0 + m) * {row}"
        if not lane:
            return f"rl::set(*({at}))"
        last = node.out.shape[-1]
        if last % c.lanes == 0:
            return f"rl::load({at} + n)"
        return (
            f"(n + rl::W <= {last} ? rl::load({at} + n) : "
            f"rl::load_first({at} + n, (int)({last} - n)))"
        )

    return f"[&](rl::vf acc, {steps}) {{ return {c.text(node.expr, load, 'acc')}; }}"


def gemm(c: Code, node: Node) -> str:
    """By constant weights: panels of them are shared out among the threads."""
    a = node.attrs
    m, n, k = a["m"], a["n"], a["k"]
    rows, wide = _chosen(c, node, m, n)
    size, many, rest = balanced(m, rows)
    a["code"] = f"gemm_panel<{size}, {wide}>"
    panel = wide * c.lanes
    panels = -(-n // panel)
    packed = np.zeros((panels, k, panel), np.float32)
    padded = np.zeros((k, panels * panel), np.float32)
    padded[:, :n] = a["weights"]
    packed[:] = padded.reshape(k, panels, panel).transpose(1, 0, 2)
    at = c.weights.add(packed, a["weights"], f"panels{panel}")
    split = c.threads if m * n * k >= SMALL and panels >= 2 else 1
    x = node.ins[0]
    pitch, tiles = x.steps[0], many + rest
    copied = bool(gemm_scratch(c, node))
    # Rows that a thread copies for itself need no meeting, if all weights stay in its cache.
    by_rows = copied and tiles >= 2 * split and packed.nbytes <= 4 * _CHUNK
    read = [f"const float* x = {c.pointer(x)};"]
    if copied:
        pitch = k + _SKEW
        mine = "rl::Span{m0, m1}" if by_rows else f"rl::share({m}, t, {split})"
        read = [
            f"float* const x = (float*)(c.arena + {a['scratch']}) + m0 * {pitch};",
            f"const rl::Span lines = {mine};",
            "for (long i = lines.first; i < lines.last; ++i)",
            f"memcpy(x + (i - m0) * {pitch}, {c.pointer(x)} + i * {x.steps[0]}, {k * 4});",
            "rl::barrier(c);" if split > 1 and not by_rows else "",
        ]
    spans = [f"rl::share({panels}, t, {split})", f"rl::Span{{0, {tiles}}}"]
    if by_rows:
        spans = [f"rl::Span{{0, {panels}}}", f"rl::share({tiles}, t, {split})"]
    lines = [
        f"if (t >= {split}) return;",
        f"const rl::Span part = {spans[0]}, rows = {spans[1]};",
        f"const rl::Tiles mine = rl::tiles(rows, {many}, {size});",
        "const long m0 = mine.first, m1 = mine.last; (void)m1;",
        *read,
        f"float* y = {c.pointer(node.out, write=True)} + m0 * {n};",
        f"const float* w = (const float*)(c.weights + {at});",
        f"const auto epilogue = {lambda_epilogue(c, node, 'long m, long n')};",
        "for (long p = part.first; p < part.last; ++p)",
        f"rl::gemm_panel<{size}, {wide}>(x, {pitch}, w + p * {k * panel}, {k}, y, {n}, p * {panel}, {n}, mine.many, mine.rest, epilogue);",
    ]
    return "\n".join([*lines, ""])


def gemm_scratch(c: Code, node: Node) -> int:
    """Bytes for a copy of A whose rows do not fall on the same sets of the first-level cache.

    Rows that lie a multiple of 1 KiB apart share few sets, and a tile reads many rows at once.
    """
    a = node.attrs
    if a["m"] <= _FEW_ROWS or a["k"] < 512 or node.ins[0].steps[0] % 256:
        return 0
    return int(a["m"] * (a["k"] + _SKEW) * 4)


def matmul_scratch(c: Code, node: Node) -> int:
    """Bytes of packed B, one batch entry per thread."""
    a = node.attrs
    _, wide = tile(c, a["m"], a["n"])
    panel = wide * c.lanes
    return int(-(-a["n"] // panel) * panel * a["k"] * 4 * c.threads)


def matmul(c: Code, node: Node) -> str:
    """Batched, B known only at run: each entry's B is packed by the thread that multiplies it."""
    a = node.attrs
    m, n, k = a["m"], a["n"], a["k"]
    x, b = node.ins
    batch = node.out.shape[:-2]
    rows, wide = tile(c, m, n)
    size, many, rest = balanced(m, rows)
    a["code"] = f"batched gemm_panel<{size}, {wide}>"
    panel = wide * c.lanes
    panels = -(-n // panel)
    entries = prod(batch)
    split = c.threads if entries >= c.threads and entries * m * n * k >= SMALL else 1
    offsets = []
    for value in (x, b):
        terms, rest_of = [], "e"
        for axis in reversed(range(len(batch))):
            terms.append(f"({rest_of}) % {batch[axis]} * {value.steps[axis]}")
            rest_of = f"({rest_of}) / {batch[axis]}"
        offsets.append(" + ".join(terms) or "0")
    return (
        f"if (t >= {split}) return;\n"
        f"float* packed = (float*)(c.arena + {a['scratch']}) + t * {panels * panel * k};\n"
        f"const rl::Span part = rl::share({entries}, t, {split});\n"
        f"for (long e = part.first; e < part.last; ++e) {{\n"
        f"const long m0 = e * {m}; (void)m0;\n"
        f"const float* x = {c.pointer(x)} + {offsets[0]}; const float* b = {c.pointer(b)} + {offsets[1]};\n"
        f"float* y = {c.pointer(node.out, write=True)} + e * {m * n};\n"
        f"const auto epilogue = {lambda_epilogue(c, node, 'long m, long n')};\n"
        f"rl::pack<{wide}>(b, {b.steps[-2]}, {b.steps[-1]}, {k}, {n}, packed);\n"
        f"for (long p = 0; p < {panels}; ++p)\n"
        f"rl::gemm_panel<{size}, {wide}>(x, {x.steps[-2]}, packed + p * {k * panel}, {k}, y, {n}, "
        f"p * {panel}, {n}, {many}, {rest}, epilogue);\n}}\n"
    )


def conv(c: Code, node: Node) -> str:
    """Direct convolution: tiles of pixels in a row by blocks of output channels."""
    a, out = node.attrs, node.out
    planar, lanes, groups = a.get("planar", False), c.lanes, a["groups"]
    weights: np.ndarray = a["weights"]
    oc, ic, kh, kw = weights.shape
    n, _, oh, ow = out.shape
    ocg = oc // groups
    blocks = -(-ocg // lanes)
    flat = not planar and kh == kw == 1 and a["strides"] == (1, 1) and _no_halo(node)
    if flat:
        oh, ow = 1, oh * ow
    pixels, wide = _chosen(c, node, ow, blocks * lanes)
    size, many, rest = balanced(ow, pixels)
    a["code"] = f"{'first ' if planar else ''}conv_tile<{size}, {wide}>"
    full, left = divmod(blocks, wide)
    at, step = pack_conv(c, weights, groups, wide, planar)
    sh, sw = a["strides"]
    taps, origin, group, row, pixel = _conv_input(c, node)
    yn, yb, yh, yw, _ = c.geometry(out)
    units = oh * (tiles := many + rest)
    panels = full + (1 if left else 0)
    split = c.threads if node.flops // 2 >= SMALL else 1
    floats = depth(weights, planar, lanes) * wide * lanes
    by_rows, chunk = _order(c, node, groups * panels, units, floats * 4, split)
    steps = (kh if planar else kh * kw) * (ic if planar else -(-ic // lanes))
    ahead = _ahead(floats * 4, steps, units) if chunk == units else 0
    all_panels = f"rl::Span{{0, {groups * panels}}}"
    lines = [
        f"if (t >= {split}) return;",
        f"const float* const w = (const float*)(c.weights + {at});",
        f"constexpr rl::Taps taps = {taps};",
        f"const rl::Span panels = {all_panels if by_rows else f'rl::share({groups * panels}, t, {split})'};",
        f"const rl::Span units = {f'rl::share({units}, t, {split})' if by_rows else f'rl::Span{{0, {units}}}'};",
        f"for (long b = 0; b < {n}; ++b) {{",
        f"const float* x = {origin}; float* y = {c.pointer(out, write=True)} + b * {yn};",
        f"const auto epilogue = {lambda_epilogue(c, node, 'long ob, long h, long v')};",
        f"for (long first = units.first; first < units.last; first += {chunk}) {{",
        f"const long last = first + {chunk} < units.last ? first + {chunk} : units.last;",
        "for (long q = panels.first; q < panels.last; ++q) {",
        f"const long g = q / {panels}, p = q % {panels}, ob = g * {blocks} + p * {wide};",
        f"const float* const wp = w + g * {step} + p * {floats};",
        f"const char* next = (const char*)(wp + {floats});",
        f"for (long u = first; u < last; ++u, next += {64 * ahead * steps}) {{",
        f"const long h = u / {tiles}, i = u % {tiles};",
        f"const long v = i < {many} ? i * {size} : {many * size} + (i - {many}) * {size - 1};",
        f"const float* from = x + g * {group} + h * {sh * row} + v * {sw * pixel};",
        f"float* to = y + ob * {yb} + h * {yh} + v * {yw};",
    ]
    lines += _conv_calls(size, many, rest, widths(wide, full, left), sw * pixel, yb, ahead)
    return "\n".join([*lines, "}\n}\n}\n}\n"])


def _order(
    c: Code, node: Node, panels: int, units: int, panel: int, split: int
) -> tuple[bool, int]:
    """(whether threads share pixels instead of panels of weights, tiles at a time).

    Whatever does not fit the second-level cache is read anew: the image for each panel, or, where
    a chunk of it stays there, the weights for each chunk. The smaller sum of the two is taken.
    """
    image = c.floats(node.ins[0]) * 4 // node.ins[0].shape[0]
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
        for count in {1, max(1, -(-int(mine) // _CHUNK))}:
            again = mine_panels if mine / count > 2 * _CHUNK else 1
            traffic = mine * again + panel * mine_panels * count
            ways.append(
                (busiest * node.flops / split / _PER_BYTE + traffic, by_rows, count, mine_units)
            )
    _, by_rows, count, mine_units = min(ways)
    return by_rows, max(1, -(-mine_units // count)) if count > 1 else units


def _ahead(panel: int, steps: int, tiles: int) -> int:
    """Lines to fetch at each step, so that a panel's tiles fetch the next panel between them.

    With many tiles a panel's first use costs little beside the others.
    """
    return min(8, -(-panel // (64 * steps * tiles))) if tiles <= 32 else 0


def _conv_calls(
    size: int,
    many: int,
    rest: int,
    widths: list[tuple[int, str]],
    pixel: int,
    block: int,
    ahead: int,
) -> list[str]:
    """The kernel's calls: full and narrow panels, by tiles of `size` and of one pixel less."""
    lines = []
    for width, condition in widths:
        first, second = (
            f"rl::conv_tile<{pixels}, {width}, {ahead}>"
            f"(from, {pixel}, wp, taps, to, {block}, ob, h, v, next, epilogue)"
            for pixels in (size, size - 1)
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
    sn, sc, row, pixel, _ = c.geometry(x)
    run, blocks = min(c.lanes, ic), -(-ic // c.lanes)
    taps = f"{{{blocks}, {sc}, {kh}, {dh * row}, {kw}, {dw * pixel}, {run}}}"
    pad = a["pads"][0] * row + a["pads"][1] * pixel
    return taps, f"{c.pointer(x)} - {pad} + b * {sn}", blocks * sc, row, pixel


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
    """[groups][panels][taps][wide * lanes], the last panel narrower; floats per group."""
    lanes = c.lanes
    oc, ic, kh, kw = weights.shape
    ocg = oc // groups
    blocks, run = -(-ocg // lanes), ic if planar else min(lanes, ic)
    cb = -(-ic // run)
    full = np.zeros((groups, blocks * lanes, cb * run, kh, kw), np.float32)
    full[:, :ocg, :ic] = weights.reshape(groups, ocg, ic, kh, kw)
    taps = full.reshape(groups, blocks * lanes, cb, run, kh, kw)
    order = (0, 2, 3, 4, 5, 1) if planar else (0, 2, 4, 5, 3, 1)
    flat = taps.transpose(order).reshape(groups, -1, blocks * lanes)
    panels = []
    for group in flat:
        for start in range(0, blocks * lanes, wide * lanes):
            panel = group[:, start : start + wide * lanes]
            panels.append(panel.reshape(-1))
    packed = np.concatenate(panels)
    at = c.weights.add(packed, weights, f"conv{wide}x{lanes}")
    return at, flat.shape[1] * blocks * lanes


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
