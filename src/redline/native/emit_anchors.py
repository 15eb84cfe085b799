"""Matrix products: tile sizes, packed weights, the calls of the kernels; epilogues of all anchors."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from redline.native.code import SMALL, Code, scalar, vector_load
from redline.native.dtypes import ctype
from redline.native.fuse import matrix_steps
from redline.native.ir import Node, Value

_FEW_ROWS = 4  # rows of A that any cache holds, however they lie
CHUNK = 256 << 10  # bytes of an image that stay in the second-level cache beside the weights
_FIRST = 40 << 10  # bytes of a panel that stay in the first-level cache
_LEAST_PART = 256  # of K: the sums wait in memory between two parts
_PANELS = 8  # that a thread must have for claims to pay
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


def chosen_tile(c: Code, node: Node, rows: int, columns: int) -> tuple[int, int]:
    """The tile that tuning chose, or the default one."""
    wanted = node.attrs.get("way", {}).get("tile")
    if wanted is None and node.attrs.get("planar"):
        # Its pixels lie apart: fewer of them, each for more channels, if their weights fit.
        taps = node.attrs["weights"][0].size
        wanted = (rows, 4 if taps * 4 * c.lanes * 4 <= _FIRST else 2)
    if wanted is None:
        return tile(c, rows, columns)
    wide = min(wanted[1], -(-columns // c.lanes))
    return min(rows, max(1, c.isa.accumulators // wide)), wide


def taken(node: Node, count: int, split: int, dealt: bool) -> str:
    """C++ that opens a loop over what a thread takes of [0, count): its share or, where that is
    `dealt`, what it claims until nothing is left.
    """
    if dealt:
        node.attrs["dealt"] = count
        return "for (rl::Span taken; rl::claim(c, t, taken);) {"
    return f"{{ const rl::Span taken = rl::share({count}, t, {split});"


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


@dataclass(frozen=True)
class Operands:
    """What a product multiplies: floats or, `together` at a time, whole numbers (steps.py).

    Attributes:
        flows, weights: their C++ types; one of what flows is four bytes.
        bytes: of one of the weights.
    """

    flows: str
    weights: str
    together: int
    bytes: int

    @classmethod
    def of(cls, node: Node) -> Operands:
        if node.whole:
            return cls("rl::pair", "rl::pair8", 2, 2)
        return cls("float", "float", 1, 4)


def gemm(c: Code, node: Node) -> str:
    """By constant weights: panels of them are shared out among the threads."""
    a, operands = node.attrs, Operands.of(node)
    m, n, k = a["m"], a["n"], a["k"] // operands.together
    rows, wide = chosen_tile(c, node, m, n)
    size, many, rest = balanced(m, rows)
    a["code"] = f"gemm_panel<{size}, {wide}>"
    at, packed = pack_panels(c, a["weights"], wide * c.lanes)
    panels = len(packed)
    split = c.threads if m * n * k >= SMALL and panels >= 2 else 1
    x = node.ins[0]
    pitch, tiles, kind = x.steps[0] // operands.together, many + rest, operands.flows
    copied = bool(gemm_scratch(c, node))
    # Rows that a thread copies for itself need no meeting, if all weights stay in its cache.
    by_rows = copied and tiles >= 2 * split and packed.nbytes <= 4 * CHUNK
    read = [f"const {kind}* x = (const {kind}*){c.pointer(x)};"]
    if copied:
        pitch = k + _SKEW
        mine = "rl::Span{m0, m1}" if by_rows else f"rl::share({m}, t, {split})"
        read = [
            f"{kind}* const x = ({kind}*)(c.arena + {a['scratch']}) + m0 * {pitch};",
            f"const rl::Span lines = {mine};",
            "for (long i = lines.first; i < lines.last; ++i)",
            f"memcpy(x + (i - m0) * {pitch}, {c.pointer(x)} + i * {x.steps[0]}, {k * 4});",
            "rl::barrier(c);" if split > 1 and not by_rows else "",
        ]
    rows_of, part = f"{{0, {tiles}}}", "taken"
    loop = taken(node, panels, split, split > 1 and not by_rows and panels >= _PANELS * split)
    if by_rows:
        rows_of, loop, part = f"rl::share({tiles}, t, {split})", "{", f"{{0, {panels}}}"
    lines = [
        f"if (t >= {split}) return;",
        f"const rl::Span rows = {rows_of};",
        f"const rl::Tiles mine = rl::tiles(rows, {many}, {size});",
        "const long m0 = mine.first, m1 = mine.last; (void)m1;",
        *read,
        f"{ctype(node.out.dtype)}* y = {c.pointer(node.out, write=True)} + m0 * {n};",
        f"const auto* w = (const {operands.weights}*)(c.weights + {at});",
        f"const auto epilogue = {lambda_epilogue(c, node, 'long m, long n')};",
        loop,
        f"const rl::Span part = {part};",
        *_gemm_calls(c, node, (size, wide), many, pitch, -(-tiles // split) if by_rows else tiles),
        "}",
    ]
    return "\n".join([*lines, ""])


def pack_panels(c: Code, weights: np.ndarray, panel: int) -> tuple[int, np.ndarray]:
    """[K, N] as [panels, K, panel], the last one filled up with zeros, and where that is.

    Of whole numbers two neighbours along K lie side by side: [panels, K / 2, panel, 2].
    """
    k, n = weights.shape
    panels, together = -(-n // panel), 2 if weights.dtype == np.int8 else 1
    padded = np.zeros((k, panels * panel), weights.dtype)
    padded[:, :n] = weights
    shape = (k // together, together, panels, panel)
    packed = np.ascontiguousarray(padded.reshape(shape).transpose(2, 0, 3, 1))
    return c.weights.add(packed, weights, f"panels{panel}"), packed


def _gemm_calls(
    c: Code, node: Node, tile: tuple[int, int], many: int, pitch: int, tiles: int
) -> list[str]:
    """A thread's panels; where its rows of A do not stay in the second-level cache, a part of K
    at a time, and what is summed up so far waits in C. If not even such a part stays there, the
    panels are gone through for some `tiles` of rows after others.
    """
    n, k, panel, rows = node.attrs["n"], _depth(node), tile[1] * c.lanes, tiles * tile[0]
    whole = rows <= _FEW_ROWS or k < 2 * _LEAST_PART or node.out.dtype != np.float32
    parts = 1 if whole else -(-rows * k * 4 // CHUNK)
    length = min(k, max(_LEAST_PART, (-(-k // parts) + 7) // 8 * 8))
    times = -(-rows * length * 4 // CHUNK)
    if times < 3:
        return _gemm_parts(node, tile, length, pitch, ("x", "y", "mine", "epilogue"), panel)
    some = -(-tiles // times)
    here = _gemm_parts(node, tile, length, pitch, ("xr", "yr", "some", "here"), panel)
    return [
        f"for (long r = rows.first; r < rows.last; r += {some}) {{",
        f"const rl::Span few = {{r, r + {some} < rows.last ? r + {some} : rows.last}};",
        f"const rl::Tiles some = rl::tiles(few, {many}, {tile[0]});",
        "const long down = some.first - m0;",
        f"const auto* const xr = x + down * {pitch}; auto* const yr = y + down * {n};",
        "const auto here = [&](rl::vf acc, long m, long n) { return epilogue(acc, m + down, n); };",
        *here,
        "}",
    ]


def _gemm_parts(
    node: Node,
    tile: tuple[int, int],
    length: int,
    pitch: int,
    names: tuple[str, str, str, str],
    panel: int,
) -> list[str]:
    """All panels, `length` of K at a time, for the named A, C, rows and epilogue."""
    n, k = node.attrs["n"], _depth(node)
    x, y, rows, epilogue = names
    over_panels = "for (long p = part.first; p < part.last; ++p)"
    call = f"<{tile[0]}, {tile[1]}>({x}"
    rest = f"{y}, {n}, p * {panel}, {n}, {rows}.many, {rows}.rest"
    if length >= k:
        weights = f"w + p * {k * panel}, {k}"
        return [over_panels, f"rl::gemm_panel{call}, {pitch}, {weights}, {rest}, {epilogue});"]
    return [
        f"for (long k = 0; k < {k}; k += {length}) {{",
        f"const long depth = {k} - k < {length} ? {k} - k : {length};",
        f"{over_panels} {{",
        f"const auto* const u = w + p * {k * panel} + k * {panel};",
        f"const auto* const after = p + 1 < part.last ? u + {k * panel} : k + depth < {k} ?",
        f"w + part.first * {k * panel} + (k + depth) * {panel} : w + (p + 1) * {k * panel};",
        f"rl::gemm_panel_part{call} + k, {pitch}, u, depth, {rest}, after,",
        f"k == 0, k + depth == {k}, {epilogue}); }} }}",
    ]


def _depth(node: Node) -> int:
    """Steps of the inner loop."""
    return int(node.attrs["k"] // Operands.of(node).together)


def gemm_scratch(c: Code, node: Node) -> int:
    """Bytes for a copy of A whose rows do not fall on the same sets of the first-level cache.

    Rows that lie a multiple of 1 KiB apart share few sets, and a tile reads many rows at once.
    """
    m, k = node.attrs["m"], _depth(node)
    if m <= _FEW_ROWS or k < 512 or node.ins[0].steps[0] * 4 // Operands.of(node).together % 1024:
        return 0
    return int(m * (k + _SKEW) * 4)


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
