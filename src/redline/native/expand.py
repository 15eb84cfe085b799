"""A 1x1 convolution computed row by row inside the depthwise one that alone reads it.

Inverted residuals widen an image four to six times only to filter it: between the two layers lies
the largest array of the network. Here its rows live in a ring of as many rows as the kernel is
high, which stays in the second-level cache, and the array is never made.
"""

from __future__ import annotations

from redline.native.code import SMALL, Code
from redline.native.emit_anchors import balanced, lambda_epilogue, tile
from redline.native.emit_conv import depth, pack_conv, widths
from redline.native.emit_windows import depthwise_line, pack_depthwise, summing
from redline.native.ir import Blocked, Node, Program, leaves

_PAYS = 14  # rows of the widened image: below, it fits the cache anyway


def choose(program: Program, lanes: int) -> Program:
    """Turns (1x1 convolution, depthwise convolution) into one node of kind "expand"."""
    uses = program.uses()
    makers = {node.out: node for node in program.nodes}
    for node in [node for node in program.nodes if node.kind == "depthwise"]:
        first = makers.get(node.ins[0])
        if first is None or first.kind != "conv" or uses[first.out] != 1:
            continue
        if first.out in program.outputs or not _plain(first, lanes):
            continue
        pays = node.attrs.get("way", {}).get("expand", first.out.shape[2] >= _PAYS)
        if node.attrs["dilations"] != (1, 1) or not pays:
            continue
        first.out.layout = Blocked()
        node.kind, node.ins = "expand", first.ins
        node.attrs |= {"expand": first, "reach": (0, 0, 0, 0)}
        node.names, node.flops = first.names + node.names, first.flops + node.flops
        program.nodes.remove(first)
    return program


def _plain(node: Node, lanes: int) -> bool:
    """A 1x1 convolution at every pixel, whose epilogue reads constants only."""
    a = node.attrs
    if not node.floating:
        return False
    if a["groups"] != 1 or a["weights"].shape[2:] != (1, 1) or a["strides"] != (1, 1):
        return False
    if any(a["pads"]) or node.ins[0].base is not None or a["weights"].shape[1] < lanes:
        return False
    return node.expr is None or all(leaf.value.const is not None for leaf in leaves(node.expr))


def _line(c: Code, node: Node) -> int:
    """Floats of one row of one block in the ring, with room for the kernel's reach."""
    first, a = node.attrs["expand"], node.attrs
    width = first.out.shape[3]
    reach = (node.out.shape[3] - 1) * a["strides"][1] + a["weights"].shape[3]
    return int(max(width + a["pads"][1] + a["pads"][3], reach) * c.lanes)


def _panel(c: Code, node: Node) -> tuple[int, int, int]:
    """(pixels, blocks of a panel, blocks of all) of the 1x1 convolution."""
    first = node.attrs["expand"]
    blocks = -(-first.attrs["weights"].shape[0] // c.lanes)
    pixels, wide = tile(c, first.out.shape[3], blocks * c.lanes)
    return pixels, wide, blocks


def scratch(c: Code, node: Node) -> int:
    """Bytes of the rings of all threads; the last row of each is zero."""
    _, wide, _ = _panel(c, node)
    return int(c.threads * (node.attrs["weights"].shape[2] + 1) * wide * _line(c, node) * 4)


def _by_rows(c: Code, node: Node, panels: int) -> bool:
    """Whether threads share rows (some are computed twice) or panels (some get one more)."""
    kh, sh, rows = node.attrs["weights"].shape[2], node.attrs["strides"][0], node.out.shape[2]
    mine = -(-rows // c.threads)
    again = (mine * sh + max(0, kh - sh)) * c.threads / (rows * sh)
    return bool(again < -(-panels // c.threads) * c.threads / panels)


def emit(c: Code, node: Node) -> str:
    """Panel by panel, output row by output row; each first computes the rows that it lacks."""
    first, a, x, out, lanes = node.attrs["expand"], node.attrs, node.ins[0], node.out, c.lanes
    weights = first.attrs["weights"]
    pixels, wide, blocks = _panel(c, node)
    a["code"] = f"conv_tile<{pixels}, {wide}> into depthwise_tile"
    full, left = divmod(blocks, wide)
    panels = full + bool(left)
    at, _ = pack_conv(c, weights, 1, wide, False)
    filters, _ = pack_depthwise(c, a["weights"])
    kh, sh, top, line = a["weights"].shape[2], a["strides"][0], a["pads"][0], _line(c, node)
    n, _, oh, _ = out.shape
    height, width = first.out.shape[2:]
    (sn, sc, row, pixel, _), (yn, yb, yh, _, _) = c.geometry(x), c.geometry(out)
    split = c.threads if node.flops // 2 >= SMALL else 1
    clear, start, add = summing(c, node, split, "q")
    ring = (kh + 1) * wide * line
    shares = (f"rl::Span{{0, {panels}}}", f"rl::share({oh}, t, {split})")
    if not _by_rows(c, node, panels):
        shares = (f"rl::share({panels}, t, {split})", f"rl::Span{{0, {oh}}}")
    lines = [
        f"if (t >= {split}) return;",
        f"float* const ring = (float*)(c.arena + {a['scratch']}) + t * {ring};",
        f"memset(ring, 0, {ring * 4});",
        f"const float* const widen = (const float*)(c.weights + {at});",
        f"const float* const w = (const float*)(c.weights + {filters});",
        f"constexpr rl::Taps taps = {{{-(-weights.shape[1] // lanes)}, {sc}, 1, 0, 1, 0, {lanes}}};",
        f"const rl::Span panels = {shares[0]}, rows = {shares[1]};",
        f"for (long b = 0; b < {n}; ++b) {{",
        f"const float* x = {c.pointer(x)} + b * {sn}; float* y = {c.pointer(out, write=True)} + b * {yn};",
        f"const auto inner = {lambda_epilogue(c, first, 'long ob, long h, long v')};",
        f"{clear}{start}",
        "for (long p = panels.first; p < panels.last; ++p) {",
        f"const float* const wp = widen + p * {wide * lanes * depth(weights, False, lanes)};",
        f"rl::vf totals[{wide}] = {{}}; (void)totals;" if add else "",
        f"long ready = rows.first * {sh} - {top}; if (ready < 0) ready = 0;",
        "for (long h = rows.first; h < rows.last; ++h) {",
        f"for (; ready < {height} && ready < h * {sh} - {top} + {kh}; ++ready) {{",
        f"const float* from = x + ready * {row};",
        f"float* to = ring + ready % {kh} * {wide * line} + {a['pads'][1] * lanes};",
        *_widen(balanced(width, pixels), widths(wide, full, left), line, wide, pixel),
        "}",
        f"const float* lines[{kh}];",
        f"for (long i = 0; i < {kh}; ++i) {{ const long r = h * {sh} - {top} + i;",
        f"lines[i] = ring + (r < 0 || r >= {height} ? {kh} : r % {kh}) * {wide * line}; }}",
        f"for (long j = 0; j < {wide} && p * {wide} + j < {blocks}; ++j) {{",
        f"const long q = p * {wide} + j; float* to = y + q * {yb} + h * {yh};",
        depthwise_line(c, node, "q", "lines", f"j * {line}"),
        *_finish(add, wide, blocks),
    ]
    return "\n".join([*lines, "}\n}\n"])


def _finish(add: str, wide: int, blocks: int) -> list[str]:
    """The ends of a row and of a panel. Sums leave a panel once: slots of threads share lines."""
    if not add:
        return ["}", "}"]
    each = f"for (long j = 0; j < {wide} && p * {wide} + j < {blocks}; ++j)"
    return [
        "totals[j] += total; total = rl::vf{};",
        "}",
        "}",
        f"{each} {{ const long q = p * {wide} + j; total = totals[j]; {add} }}",
    ]


def _widen(
    sizes: tuple[int, int, int], panels: list[tuple[int, str]], line: int, wide: int, pixel: int
) -> list[str]:
    """One row of the widened image: tiles of `size` pixels, and of one less."""
    size, many, rest = sizes
    lines = []
    for width, condition in panels:
        text = "long v = 0; "
        for count, pixels in ((many, size), (rest, size - 1)):
            if count:
                text += (
                    f"for (long i = 0; i < {count}; ++i, v += {pixels}) "
                    f"rl::conv_tile<{pixels}, {width}, 0>(from + v * {pixel}, {pixel}, wp, taps, "
                    f"to + v * rl::W, {line}, p * {wide}, ready, v, nullptr, inner); "
                )
        lines.append(f"{condition}{{ {text}}}")
    return lines
