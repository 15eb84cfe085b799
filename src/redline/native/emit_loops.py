"""Loops over an expression, row kernels (softmax, norms, reductions), gathers and reorders."""

from __future__ import annotations

from math import prod

import numpy as np

from redline.native.code import SMALL, Access, Code, index, scalar, vector_load
from redline.native.dtypes import ctype
from redline.native.fuse import vector
from redline.native.ir import Load, Node, Value, leaves
from redline.native.literals import literal, whole


def loop(c: Code, node: Node) -> str:
    """One pass over the output: vectors along the last axis where memory allows."""
    out, expr = node.out, node.expr
    assert expr is not None
    blocked = out.layout is not None
    target = Access(c.pointer(out, write=True), c.geometry(out) if blocked else out.steps)
    operands = {leaf.value: c.access(leaf.value, out) for leaf in leaves(expr)}
    values = list(operands)
    dims, steps = _collapse(c.dims(out), [target.steps, *(operands[v].steps for v in values)])
    if not dims:
        dims, steps = (1,), [(0,)] * (len(values) + 1)
    target = Access(target.pointer, steps[0])
    operands = {v: Access(operands[v].pointer, s) for v, s in zip(values, steps[1:], strict=True)}
    wide = (
        vector(expr)
        and out.dtype in (np.float32, np.int16)
        and steps[0][-1] == 1
        and all(s[-1] in (0, 1) for s in steps)
    )
    names = [f"i{axis}" for axis in range(len(dims))]

    def one(value: Value) -> str:
        known = scalar(value)
        if known is not None:
            return known
        return f"{operands[value].pointer}[{index(operands[value].steps, names)}]"

    def many(value: Value) -> str:
        known = scalar(value)
        if known is not None:
            return f"rl::set({known})"
        return vector_load(operands[value], names)

    at = index(target.steps, names)
    x = names[-1]
    tail = f"{target.pointer}[{at}] = ({ctype(out.dtype)})({c.text(expr, one)});"
    body = [f"long {x} = first;"]
    if wide:
        body.append(
            f"for (; {x} + rl::W <= last; {x} += rl::W) "
            f"rl::store({target.pointer} + {at}, {c.text(expr, many)});"
        )
    body.append(f"for (; {x} < last; ++{x}) {{ {tail} }}")
    return _rows(c, dims, names, body, prod(dims))


def _rows(c: Code, dims: tuple[int, ...], names: list[str], body: list[str], work: int) -> str:
    """Runs `body` over [first, last) of the last axis, for every index of the others."""
    outer, length = prod(dims[:-1]), dims[-1]
    if c.decide(c.threads == 1 or work < SMALL):
        share, inner = f"rl::Span{{0, {outer}}}", f"first = 0, last = {length}"
        guard = "if (t) return;\n"
    elif c.decide(outer >= 2 * c.threads):
        share, guard = f"rl::share({outer}, t, {c.threads})", ""
        inner = f"first = 0, last = {length}"
    else:
        share, guard = (
            f"rl::Span{{0, {outer}}}",
            f"const rl::Span part = rl::share({length}, t, {c.threads}, rl::W);\n",
        )
        inner = "first = part.first, last = part.last"
    lines = ["for (long r = rows.first; r < rows.last; ++r) {"]
    rest = "r"
    for axis in reversed(range(len(dims) - 1)):
        if axis == 0:
            lines.append(f"const long i0 = {rest};")
        else:
            lines.append(f"const long i{axis} = ({rest}) % {dims[axis]};")
            rest = f"({rest}) / {dims[axis]}"
    text = "\n".join([*lines, f"const long {inner};", *body, "}"])
    return f"{guard}const rl::Span rows = {share};\n{text}\n"


def _collapse(
    dims: tuple[int, ...], steps: list[tuple[int, ...]]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Axes that every operand walks through as one become one; axes of length 1 go.

    Example:
        >>> _collapse((2, 3, 4), [(12, 4, 1), (0, 4, 1)])
        ((2, 12), [(12, 1), (0, 1)])
    """
    kept: list[tuple[int, list[int]]] = []
    for axis, size in enumerate(dims):
        if size == 1:
            continue
        here = [s[axis] for s in steps]
        if kept and all(a == b * size for a, b in zip(kept[-1][1], here, strict=True)):
            kept[-1] = (kept[-1][0] * size, here)
        else:
            kept.append((size, here))
    sizes = tuple(size for size, _ in kept)
    return sizes, [tuple(k[1][i] for k in kept) for i in range(len(steps))]


_REDUCE = {  # kind -> (start, vector step, scalar step, end)
    "reducesum": ("0.f", "a + x"),
    "reducemean": ("0.f", "a + x"),
    "reducesumsquare": ("0.f", "a + x * x"),
    "reduceprod": ("1.f", "a * x"),
    "reducemax": ("-HUGE_VALF", "rl::maximum(a, x)"),
    "reducemin": ("HUGE_VALF", "rl::minimum(a, x)"),
}


def rows(c: Code, node: Node) -> str:
    """A kernel over the last axis; what it reads is first computed into a row of scratch."""
    out, expr = node.out, node.expr
    assert expr is not None
    single = isinstance(expr, Load)
    source = next(iter(leaves(expr))).value if single else None
    shape = source.shape if source is not None else out.shape
    outer, length = prod(shape[:-1]), shape[-1]
    names = [f"i{axis}" for axis in range(len(shape))]
    operands = {leaf.value: _like(c, leaf.value, shape) for leaf in leaves(expr)}
    x = names[-1]

    def one(value: Value) -> str:
        return scalar(value) or f"{operands[value].pointer}[{index(operands[value].steps, names)}]"

    fill = [f"float* row = scratch + t * (({length} + 15) / 16 * 16);"]
    wide = vector(expr) and all(a.steps[-1] in (0, 1) for a in operands.values())
    direct = single and source is not None and operands[source].steps[-1] == 1
    if direct:
        assert source is not None
        at = index((*operands[source].steps[:-1], 0), names)
        fill = [f"const float* row = {operands[source].pointer} + {at};"]
    else:
        fill.append(f"long {x} = 0;")
        if wide:
            many = lambda v: (  # noqa: E731
                f"rl::set({scalar(v)})" if scalar(v) else vector_load(operands[v], names)
            )
            fill.append(
                f"for (; {x} + rl::W <= {length}; {x} += rl::W) "
                f"rl::store(row + {x}, {c.text(expr, many)});"
            )
        fill.append(f"for (; {x} < {length}; ++{x}) row[{x}] = {c.text(expr, one)};")
    dense_out = length if node.kind in _NORMS else 1
    fill += [f"float* y = {c.pointer(out, write=True)} + r * {dense_out};"]
    fill += [_kernel(c, node, length)]
    head = (
        "" if direct else f"float* const scratch = (float*)(c.arena + {node.attrs['scratch']});\n"
    )
    return head + _rows(
        c, (*shape[:-1], 1), names, ["(void)first, (void)last;", *fill], outer * length * 4
    )


def row_scratch(node: Node, threads: int) -> int:
    """Bytes of scratch for the rows that are computed before they are read."""
    return _round(node.out.shape[-1] if node.kind in _NORMS else _longest(node)) * 4 * threads


def _longest(node: Node) -> int:
    assert node.expr is not None
    return max(leaf.value.shape[-1] for leaf in leaves(node.expr))


def _like(c: Code, value: Value, shape: tuple[int, ...]) -> Access:
    return c.access(value, Value(shape, value.dtype))


def _round(n: int) -> int:
    return (n + 15) // 16 * 16


_NORMS = ("softmax", "logsoftmax", "layernorm", "rmsnorm")


def _kernel(c: Code, node: Node, n: int) -> str:
    if node.kind in ("softmax", "logsoftmax"):
        return f"rl::{node.kind}(row, y, {n});"
    if node.kind in ("layernorm", "rmsnorm"):
        affine = [c.pointer(value) for value in node.ins] + ["nullptr"] * (2 - len(node.ins))
        epsilon = literal(float(node.attrs["epsilon"]))
        return f"rl::{node.kind}(row, y, {n}, {affine[0]}, {affine[1]}, {epsilon});"
    start, step = _REDUCE[node.kind]
    end = f" / (float){n}" if node.kind == "reducemean" else ""
    one = f"[](auto a, auto x) {{ return {step}; }}"
    if node.kind == "reducesumsquare":
        join = "[](auto a, auto x) { return a + x; }"
    else:
        join = one
    return f"*y = rl::reduce(row, {n}, {start}, {one}, {join}){end};"


_FOLDS = {  # kind -> (start for floats, step, end)
    "sum": ("0", "a + x", "a"),
    "mean": ("0", "a + x", "a / {n}"),
    "sumsquare": ("0", "a + x * x", "a"),
    "prod": ("1", "a * x", "a"),
    "max": ("-HUGE_VAL", "rl::larger(a, x)", "a"),
    "min": ("HUGE_VAL", "rl::smaller(a, x)", "a"),
}


def reduce(c: Code, node: Node) -> str:
    """Over the last axes of any view and of any type, one element after the other."""
    x, mode, rank = node.ins[0], node.attrs["mode"], node.attrs["rank"]
    kept, gone = x.shape[:rank], x.shape[rank:]
    start, step, end = _FOLDS[mode]
    if mode in ("max", "min") and x.dtype.kind in "iu":
        limits = np.iinfo(x.dtype)
        start = whole(int(limits.min if mode == "max" else limits.max), x.dtype)
    elif mode in ("max", "min") and x.dtype.kind == "b":
        start = "false" if mode == "max" else "true"
    kind = ctype(x.dtype)
    names = [f"i{axis}" for axis in range(rank)]
    inner = [f"j{axis}" for axis in range(len(gone))]
    loops = " ".join(
        f"for (long {j} = 0; {j} < {n}; ++{j})" for j, n in zip(inner, gone, strict=True)
    )
    body = [
        "(void)first, (void)last;",
        f"const {kind}* x0 = {c.pointer(x)} + {index(x.steps[:rank], names)};",
        f"{kind} a = ({kind}){start};",
        f"{loops} {{ const {kind} x = x0[{index(x.steps[rank:], inner)}]; a = ({kind})({step}); }}",
        f"{c.pointer(node.out, write=True)}[r] = ({kind})({end.format(n=f'({kind}){prod(gone)}')});",
    ]
    return _rows(c, (*kept, 1), [*names, "k"], body, x.size * 2)


def gather(c: Code, node: Node) -> str:
    """Rows of the first operand by the whole numbers in the second."""
    x, places = node.ins
    a = node.attrs
    kind, whole = ctype(x.dtype), ctype(places.dtype)
    return (
        f"if (t) return;\n"
        f"const {kind}* x = {c.pointer(x)}; const {whole}* at = {c.pointer(places)};\n"
        f"{kind}* y = {c.pointer(node.out, write=True)};\n"
        f"for (long o = 0; o < {a['outer']}; ++o) for (long i = 0; i < {a['count']}; ++i) {{\n"
        f"long p = at[i] < 0 ? (long)at[i] + {a['length']} : (long)at[i];\n"
        f"p = p < 0 ? 0 : p >= {a['length']} ? {a['length'] - 1} : p;\n"
        f"memcpy(y + (o * {a['count']} + i) * {a['inner']}, "
        f"x + (o * {a['length']} + p) * {a['inner']}, {a['inner']} * sizeof({kind})); }}\n"
    )


def reorder(c: Code, node: Node) -> str:
    """Row-major to NCHWc ("block") or back ("unblock")."""
    source, out = node.ins[0], node.out
    n, channels, h, w = out.shape
    inward = node.kind == "block"
    plain = source.steps if inward else out.steps
    geometry = c.geometry(out if inward else source)
    packed = f"b * {geometry[0]} + (k / rl::W) * {geometry[1]} + i * {geometry[2]} + j * rl::W + k % rl::W"
    flat = index(plain, ("b", "k", "i", "j"))
    to, start = (packed, flat) if inward else (flat, packed)
    total = -(-channels // c.lanes) * c.lanes if inward else channels
    value = f"x[{start}]" if total == channels else f"k < {channels} ? x[{start}] : 0"
    kind = ctype(out.dtype)
    units = n * total
    split = c.threads if units * h * w >= SMALL else 1
    return (
        f"if (t >= {split}) return;\n"
        f"const {kind}* x = {c.pointer(source)}; {kind}* y = {c.pointer(out, write=True)};\n"
        f"const rl::Span part = rl::share({units}, t, {split}, rl::W);\n"
        f"for (long u = part.first; u < part.last; ++u) {{\n"
        f"const long b = u / {total}, k = u % {total}; (void)b;\n"
        f"for (long i = 0; i < {h}; ++i) for (long j = 0; j < {w}; ++j) y[{to}] = {value}; }}\n"
    )
