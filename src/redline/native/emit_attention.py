"""The C++ of attention: a tile of rows against all keys, or against a block of them after another.

Against all keys at once the softmax is the plain one, and nothing is rescaled; the scores of a few
rows must fit the first-level cache for that. Where keys are many, or their number is known only at
run, more rows meet a block of keys at a time, and what they have is rescaled from block to block.
"""

from __future__ import annotations

from math import prod

from redline.native.code import SMALL, Code, scalar
from redline.native.emit_anchors import balanced, tile
from redline.native.fuse import broadcast_steps
from redline.native.ir import Acc, Apply, Expr, Load, No, Node, Value, leaves

_SKEW = 16  # floats between rows of scores, so that they do not meet in one cache set
_LONG = 4096  # keys from which blocks of them are faster, see bench/attention.py
_ROWS = 48  # rows that meet a block of keys together
_BLOCK = 128  # keys of a block: 24 KiB of scores


def scratch(c: Code, node: Node) -> int:
    """Bytes for the packed keys and values of one entry and the scores of one tile, by thread."""
    sizes = _block_floats(c, node) if _by_blocks(c, node) else _packed(c, node)
    return 4 * c.threads * sum(sizes)


def emit(c: Code, node: Node) -> str:
    """Threads share the tiles of all entries of the batch; each packs what its tiles read."""
    return _blocks(c, node) if _by_blocks(c, node) else _whole(c, node)


def _by_blocks(c: Code, node: Node) -> bool:
    """By what tuning chose, or by the number of keys."""
    after = node.attrs["after"]
    possible = after is None or _guard(after)
    if c.free and not possible:
        raise No("what is done to attention's weights needs all keys at once")
    wanted = node.attrs.get("way", {}).get("blocks", node.attrs["n"] >= _LONG)
    return possible and (c.free or wanted)


def _guard(after: Expr) -> bool:
    """weights where they are numbers, else 0: what exporters put around rows without keys."""
    if not isinstance(after, Apply) or len(after.args) != 3:
        return False
    test, zero, kept = after.args
    asks = isinstance(test, Apply) and test.form == "(({0}) != ({0}))" and test.args == (Acc(),)
    nothing = isinstance(zero, Load) and zero.value.const is not None and not zero.value.const.any()
    return asks and nothing and kept == Acc() and after.form == "(({0}) ? ({1}) : ({2}))"


def _sizes(c: Code, node: Node) -> tuple[int, int, int]:
    """(rows of a tile at most, vectors of keys, vectors of values)."""
    m, values = node.out.shape[-2:]
    high, keys = tile(c, m, node.attrs["n"])
    low, wide = tile(c, m, values)
    return min(high, low), keys, wide


def _packed(c: Code, node: Node) -> tuple[int, int, int]:
    """Floats of the packed keys, of the packed values and of a tile's scores."""
    rows, keys, wide = _sizes(c, node)
    n, k, values = node.attrs["n"], node.attrs["k"], node.out.shape[-1]
    one = -(-n // (keys * c.lanes)) * keys * c.lanes * k
    two = -(-values // (wide * c.lanes)) * wide * c.lanes * n
    return one, two, rows * _pitch(n)


def _pitch(n: int) -> int:
    return (n + 15) // 16 * 16 + _SKEW


def _block(c: Code, node: Node) -> tuple[tuple[int, int, int], int, int]:
    """The tile for any number of rows and keys, the rows of a group, the keys of a block."""
    _, keys = tile(c, c.isa.registers, c.isa.registers * c.lanes)
    _, wide = tile(c, c.isa.registers, node.out.shape[-1])
    high = c.isa.accumulators // max(keys, wide)
    panel = keys * c.lanes
    return (high, keys, wide), high * max(1, _ROWS // high), -(-_BLOCK // panel) * panel


def _block_floats(c: Code, node: Node) -> tuple[int, int, int]:
    """What _packed() tells, for blocks of keys."""
    (_, keys, wide), rows, block = _block(c, node)
    n, k, values = node.attrs["n"], node.attrs["k"], node.out.shape[-1]
    one = -(-n // (keys * c.lanes)) * keys * c.lanes * k
    two = -(-values // (wide * c.lanes)) * wide * c.lanes * n
    return one, two, rows * (block + _SKEW)


def _whole(c: Code, node: Node) -> str:
    """A tile of rows against all keys."""
    most, keys, wide = _sizes(c, node)
    size, many, rest = balanced(node.out.shape[-2], most)
    node.attrs["code"] = f"attention<{size}, {keys}, {wide}>"
    first = f"i < {many} ? i * {size} : {many * size} + (i - {many}) * {size - 1}"
    lines = _walk(c, node, str(many + rest), first, keys, wide, [str(f) for f in _packed(c, node)])
    n, inner, values = node.attrs["n"], node.attrs["k"], node.out.shape[-1]
    to = node.out.steps[-2]
    call = (
        f"(q, {node.ins[0].steps[-2]}, keys, {inner}, scores, {_pitch(n)}, {n}, "
        f"values, y, {to}, {values}, before, after);"
    )
    pick = [f"rl::attention<{rows}, {keys}, {wide}>{call}" for rows in (size, size - 1)]
    lines.append(f"if (i < {many}) {pick[0]} else {pick[1]}" if rest else pick[0])
    return "\n".join([*lines, "}", ""])


def _blocks(c: Code, node: Node) -> str:
    """A group of rows against one block of keys after the other."""
    (high, keys, wide), rows, block = _block(c, node)
    node.attrs["code"] = f"attention_blocks<{high}, {keys}, {wide}>"
    m, values = node.out.shape[-2:]
    n, inner = node.attrs["n"], node.attrs["k"]
    panel, last = keys * c.lanes, wide * c.lanes
    floats = [
        f"({n} + {panel - 1}) / {panel} * {panel * inner}",
        f"{-(-values // last) * last} * {n}",
        str(_block_floats(c, node)[2]),
    ]
    tiles = f"(({m} + {rows - 1}) / {rows})"
    lines = _walk(c, node, tiles, f"i * {rows}", keys, wide, floats)
    guarded = "true" if node.attrs["after"] is not None else "false"
    return "\n".join(
        [
            *lines,
            "(void)after;",
            f"const long rows = {m} - m0 < {rows} ? {m} - m0 : {rows};",
            f"rl::attention_blocks<{high}, {keys}, {wide}, {rows}, {guarded}>",
            f"(q, {node.ins[0].steps[-2]}, rows, keys, {inner}, scores, {block + _SKEW}, {block},",
            f"{n}, values, y, {node.out.steps[-2]}, {values}, before);",
            "}",
            "",
        ]
    )


def _walk(
    c: Code, node: Node, tiles: str, first: str, keys: int, wide: int, floats: list[str]
) -> list[str]:
    """The loop over this thread's tiles, up to where the kernel is called.

    Args:
        tiles: C++ for how many an entry of the batch has; first: for the first row of tile `i`.
        keys, wide: vectors of a panel of keys and of values.
        floats: C++ for the floats of packed keys, packed values and scores.
    """
    q, k, v = node.ins
    *batch, m, values = node.out.shape
    n, inner, entries = node.attrs["n"], node.attrs["k"], prod(batch)
    split = c.decide(c.threads if entries * m * n * inner >= SMALL and entries * m > 1 else 1)
    operands = {
        leaf.value: f"x{place}"
        for place, leaf in enumerate(leaves(node.expr))  # type: ignore[arg-type]
        if scalar(leaf.value) is None
    }
    full = (*batch, m, n)
    steps = {value: broadcast_steps(value, full) for value in operands}
    y, to = c.pointer(node.out, write=True), node.out.steps
    lines = [
        f"if (t >= {split}) return;",
        f"const long one = {floats[0]}, two = {floats[1]}, three = {floats[2]}, tiles = {tiles};",
        f"float* const keys = (float*)(c.arena + {node.attrs['scratch']}) + t * (one + two + three);",
        "float* const values = keys + one; float* const scores = values + two;",
        f"const rl::Span units = rl::share({entries} * tiles, t, {split});",
        "long packed = -1;",
        "for (long u = units.first; u < units.last; ++u) {",
        f"const long e = u / tiles, i = u % tiles, m0 = {first};",
        f"const float* q = {c.pointer(q)} + {entry(batch, q.steps)} + m0 * {q.steps[-2]};",
        f"const float* k = {c.pointer(k)} + {entry(batch, k.steps)};",
        f"const float* v = {c.pointer(v)} + {entry(batch, v.steps)};",
        f"float* y = {y} + {entry(batch, to)} + m0 * {to[-2]};",
        f"if (e != packed) {{ rl::pack<{keys}>(k, {k.steps[-2]}, {k.steps[-1]}, {inner}, {n}, keys);",
        f"rl::pack<{wide}>(v, {v.steps[-2]}, {v.steps[-1]}, {n}, {values}, values); packed = e; }}",
    ]
    lines += [
        f"const float* {name} = {c.pointer(value)} + {entry(batch, steps[value])} "
        f"+ m0 * {steps[value][-2]};"
        for value, name in operands.items()
    ]
    return lines + _lambdas(c, node, operands, steps)


def entry(batch: list[int], steps: tuple[int, ...]) -> str:
    """C++ for where the entry `e` of the batch begins."""
    terms, rest = [], "e"
    for axis in reversed(range(len(batch))):
        if batch[axis] != 1 and steps[axis]:
            terms.append(f"({rest}) % {batch[axis]} * {steps[axis]}")
        rest = f"({rest}) / {batch[axis]}"
    return " + ".join(terms) or "0"


def _lambdas(
    c: Code, node: Node, operands: dict[Value, str], steps: dict[Value, tuple[int, ...]]
) -> list[str]:
    """What is done to the scores before the softmax, and to the weights after it."""
    n = node.attrs["n"]

    def load(value: Value) -> str:
        known = scalar(value)
        if known is not None:
            return f"rl::set({known})"
        row, lane = steps[value][-2:]
        at = f"{operands[value]} + m * {row}"
        if not lane:
            return f"rl::set(*({at}))"
        if n % c.lanes == 0:
            return f"rl::load({at} + n)"
        return f"(n + rl::W <= {n} ? rl::load({at} + n) : rl::load_first({at} + n, (int)({n} - n)))"

    assert node.expr is not None
    before = c.text(node.expr, load, "acc")
    after = node.attrs["after"]
    end = "rl::AsItIs{}"
    if after is not None:
        end = f"[](auto acc) {{ return {c.text(after, lambda v: scalar(v) or '', 'acc')}; }}"
    return [
        f"const auto before = [&](rl::vf acc, long m, long n) {{ (void)m, (void)n; return {before}; }};",
        f"const auto after = {end};",
    ]
