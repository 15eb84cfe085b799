"""Matrix products whose sizes are known only at run, all but the width of constant weights."""

from __future__ import annotations

from math import prod

from redline.native.code import SMALL, Code
from redline.native.dtypes import ctype
from redline.native.emit_anchors import Operands, lambda_epilogue, pack_panels, tile
from redline.native.emit_attention import entry
from redline.native.ir import Node

_NEAR = 1 << 20  # bytes of weights that each thread may read all of
_SKEW = 16  # floats by which a copied row is longer than what it holds


def _tile(c: Code, columns: int) -> tuple[int, int]:
    return tile(c, c.isa.registers, columns)


def _copied(node: Node) -> bool:
    """Rows a multiple of 1 KiB apart share few sets of the first-level cache."""
    together = Operands.of(node).together
    long = node.attrs["k"] // together >= 512
    return bool(long and node.ins[0].steps[0] * 4 // together % 1024 == 0)


def gemm_scratch(node: Node) -> int:
    """Bytes for a copy of A, see _copied()."""
    length = node.attrs["k"] // Operands.of(node).together + _SKEW
    return int(node.attrs["m"] * length * 4) if _copied(node) else 0


def gemm(c: Code, node: Node) -> str:
    """By constant weights: threads share their panels, or the rows where the weights are few."""
    a, x, operands = node.attrs, node.ins[0], Operands.of(node)
    m, n, k, kind = a["m"], a["n"], a["k"] // operands.together, operands.flows
    high, wide = _tile(c, n)
    a["code"] = f"gemm_rows<{high}, {wide}>"
    panel = wide * c.lanes
    at, packed = pack_panels(c, a["weights"], panel)
    panels = len(packed)
    split = c.decide(c.threads if m * n * k >= SMALL else 1)
    by_rows = packed.nbytes <= _NEAR or panels < split
    rows, part = f"rl::Span{{0, {m}}}", f"rl::share({panels}, t, {split})"
    if by_rows:
        rows, part = f"rl::share({m}, t, {split}, {high})", f"rl::Span{{0, {panels}}}"
    pitch = x.steps[0] // operands.together
    read = [f"const {kind}* x = (const {kind}*){c.pointer(x)} + m0 * {pitch};"]
    if c.decide(_copied(node)):
        pitch = k + _SKEW
        mine = "rl::Span{0, m1}" if by_rows else f"rl::share(m1, t, {split})"
        read = [
            f"{kind}* const x = ({kind}*)(c.arena + {a['scratch']}) + m0 * {pitch};",
            f"const rl::Span lines = {mine};",
            "for (long i = lines.first; i < lines.last; ++i)",
            f"memcpy(x + i * {pitch}, {c.pointer(x)} + (m0 + i) * {x.steps[0]}, {k * 4});",
            "rl::barrier(c);" if split > 1 and not by_rows else "",
        ]
    lines = [
        f"if (t >= {split}) return;",
        f"const rl::Span rows = {rows}, part = {part};",
        "const long m0 = rows.first, m1 = rows.last - rows.first;",
        *read,
        f"{ctype(node.out.dtype)}* y = {c.pointer(node.out, write=True)} + m0 * {n};",
        f"const auto* w = (const {operands.weights}*)(c.weights + {at});",
        f"const auto epilogue = {lambda_epilogue(c, node, 'long m, long n')};",
        "for (long p = part.first; p < part.last; ++p)",
        (
            f"rl::gemm_rows<{high}, {wide}>(x, {pitch}, w + p * {k * panel}, {k}, y, {n}, 0, m1, "
            f"p * {panel}, {n}, epilogue);"
        ),
    ]
    return "\n".join([*lines, ""])


def matmul_scratch(c: Code, node: Node) -> int:
    """Bytes of packed B, one batch entry per thread."""
    a = node.attrs
    panel = _tile(c, c.isa.registers * c.lanes)[1] * c.lanes
    return int(-(-a["n"] // panel) * panel * a["k"] * 4 * c.threads)


def matmul(c: Code, node: Node) -> str:
    """Batched; each entry's B is packed by the thread that multiplies it."""
    a = node.attrs
    m, n, k = a["m"], a["n"], a["k"]
    x, b = node.ins
    batch = list(node.out.shape[:-2])
    high, wide = _tile(c, c.isa.registers * c.lanes)
    a["code"] = f"batched gemm_rows<{high}, {wide}>"
    panel, entries = wide * c.lanes, prod(batch)
    split = c.decide(c.threads if entries * m * n * k >= SMALL else 1)
    offsets = [entry(batch, value.steps) for value in (x, b)]
    return (
        f"if (t >= {split}) return;\n"
        f"const long panels = ({n} + {panel - 1}) / {panel};\n"
        f"float* packed = (float*)(c.arena + {a['scratch']}) + t * (panels * {panel} * {k});\n"
        f"const rl::Span part = rl::share({entries}, t, {split});\n"
        f"for (long e = part.first; e < part.last; ++e) {{\n"
        f"const long m0 = e * {m}; (void)m0;\n"
        f"const float* x = {c.pointer(x)} + {offsets[0]}; "
        f"const float* b = {c.pointer(b)} + {offsets[1]};\n"
        f"float* y = {c.pointer(node.out, write=True)} + e * {m} * {n};\n"
        f"const auto epilogue = {lambda_epilogue(c, node, 'long m, long n')};\n"
        f"rl::pack<{wide}>(b, {b.steps[-2]}, {b.steps[-1]}, {k}, {n}, packed);\n"
        f"for (long p = 0; p < panels; ++p)\n"
        f"rl::gemm_rows<{high}, {wide}>(x, {x.steps[-2]}, packed + p * {panel} * {k}, {k}, y, {n}, "
        f"0, {m}, p * {panel}, {n}, epilogue);\n}}\n"
    )
