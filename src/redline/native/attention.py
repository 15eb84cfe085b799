"""Attention as one node: product, softmax and product for a few rows at a time.

softmax(scale * Q K^T + mask) V without the matrix of all scores, as Dao et al. (arXiv 2205.14135)
compute it. emit_attention.py says how many keys a tile of rows meets at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from redline.native.code import scalar
from redline.native.fuse import broadcast_steps, vector
from redline.native.ir import (
    Acc,
    Apply,
    Expr,
    Load,
    No,
    Node,
    Program,
    Value,
    contiguous,
    leaves,
    replace,
    view,
)


def fuse_attention(program: Program) -> Program:
    """Turns (product, softmax, product) into one node; a refusal is noted with its reason."""
    for node in [node for node in program.nodes if node.kind == "softmax"]:
        try:
            _fuse(program, node)
        except No as reason:
            program.notes.append(f"{node.names[-1]} is not fused into attention: {reason}")
    return program


@dataclass(frozen=True)
class _Parts:
    first: Node
    middle: Node | None
    second: Node


def _fuse(program: Program, softmax: Node) -> None:
    parts = _found(program, softmax)
    if parts is None:
        return
    first, middle, second = parts.first, parts.middle, parts.second
    inner = first.expr or Acc()
    assert softmax.expr is not None
    scores = replace(softmax.expr, lambda leaf: inner if leaf == Load(first.out) else leaf)
    _readable(scores, first.out.shape)
    after = None
    if middle is not None:
        assert middle.expr is not None
        after = replace(middle.expr, lambda leaf: Acc() if leaf == Load(softmax.out) else leaf)
    gone = [first, softmax, *([middle] if middle else []), second]
    q, k = first.ins
    for place, operand in enumerate((q, k)):
        found = _unscaled(program, operand, rows=place == 0)
        if found is not None:
            maker, seen, factor = found
            q, k = (seen, k) if place == 0 else (q, seen)
            scores = replace(scores, _times(factor))
            gone.append(maker)
    out, last = _destination(program, second)
    gone += [last] if last is not None else []
    node = Node(
        "attention",
        out,
        [q, k, second.ins[1]],
        scores,
        {"after": after, "n": first.out.shape[-1], "k": first.attrs["k"]},
        [name for each in program.nodes if each in gone for name in each.names],
        first.flops + second.flops,
    )
    at = program.nodes.index(gone[-1] if last is not None else second)
    program.nodes[at] = node
    program.nodes = [each for each in program.nodes if each not in gone]


def _times(factor: Value) -> Callable[[Load | Acc], Expr]:
    """What replaces the sum: itself times the factor."""
    scaled = Apply("({0} * {1})", (Acc(), Load(factor)), factor.dtype)
    return lambda leaf: scaled if isinstance(leaf, Acc) else leaf


def _found(program: Program, softmax: Node) -> _Parts | None:
    """The two products around a softmax, and the loop over its result, if there is one."""
    uses = program.uses()
    writers = {node.out: node for node in program.nodes if node.out.base is None}
    assert softmax.expr is not None
    feeds = [writers[leaf.value] for leaf in leaves(softmax.expr) if leaf.value in writers]
    first = next((node for node in feeds if node.kind == "matmul"), None)
    if first is None or first.out.shape != softmax.out.shape or softmax.out.base is not None:
        return None
    readers = [node for node in program.nodes if softmax.out in (v.root for v in node.reads())]
    middle = readers[0] if len(readers) == 1 and readers[0].kind == "loop" else None
    if middle is not None:
        readers = [n for n in program.nodes if middle.out in (v.root for v in n.reads())]
    weights = middle.out if middle is not None else softmax.out
    second = readers[0] if len(readers) == 1 and readers[0].kind == "matmul" else None
    if second is None or second.ins[0].root is not weights or second.ins[1].root is weights:
        return None
    if uses[first.out] != 1 or uses[softmax.out] != 1 or uses[weights] != 1:
        raise No("its scores or its weights are read elsewhere, too")
    seen = second.ins[0]
    if seen.shape != weights.shape or not _dense(seen):
        raise No("its weights are seen in another shape by the second product")
    if second.expr is not None:
        raise No("the second product has an epilogue")
    if middle is not None:
        assert middle.expr is not None
        loads = [leaf.value for leaf in leaves(middle.expr)]
        plain = all(value is softmax.out or scalar(value) is not None for value in loads)
        if not plain or middle.out.shape != softmax.out.shape or middle.out.base is not None:
            raise No("what is done to its weights reads other arrays")
    return _Parts(first, middle, second)


def _readable(expr: Expr, shape: tuple[int, ...]) -> None:
    """Raises No where an operand of the scores cannot be read in vectors along the keys."""
    if not vector(expr):
        raise No("the scores' expression does not hold for vectors of float32")
    for leaf in leaves(expr):
        if leaf.value.size != 1 and broadcast_steps(leaf.value, shape)[-1] not in (0, 1):
            raise No(f"an operand of shape {list(leaf.value.shape)} is not contiguous")


def _dense(value: Value) -> bool:
    """It shows its root in the root's own order."""
    steps = contiguous(value.shape)
    pairs = zip(value.shape, value.steps, steps, strict=True)
    return value.size == value.root.size and all(n == 1 or a == b for n, a, b in pairs)


def _unscaled(program: Program, operand: Value, *, rows: bool) -> tuple[Node, Value, Value] | None:
    """(loop, what it reads, factor) where an operand is a scaled copy that nobody else reads."""
    maker = next((node for node in program.nodes if node.out is operand.root), None)
    if maker is None or maker.kind != "loop" or program.uses()[operand.root] != 1:
        return None
    expr = maker.expr
    if not isinstance(expr, Apply) or expr.form.strip("()") != "{0} * {1}":
        return None
    loads = [arg.value for arg in expr.args if isinstance(arg, Load)]
    factors = [value for value in loads if scalar(value) is not None]
    others = [value for value in loads if scalar(value) is None]
    if len(factors) != 1 or len(others) != 1 or others[0].shape != operand.shape:
        return None
    if operand.shape != maker.out.shape or not _dense(operand) or others[0].const is not None:
        return None
    if rows and others[0].steps[-1] != 1:
        return None
    return maker, others[0], factors[0]


def _destination(program: Program, second: Node) -> tuple[Value, Node | None]:
    """Where the result goes: into the transposed copy that alone reads it, if there is one."""
    out = second.out
    readers = [node for node in program.nodes if out in (v.root for v in node.reads())]
    if len(readers) != 1 or out in program.outputs or out.base is not None:
        return out, None
    copy = readers[0]
    if copy.kind != "loop" or not isinstance(copy.expr, Load) or copy.out.base is not None:
        return out, None
    seen = copy.expr.value
    if seen.size != out.size or seen.base is None or seen.offset or copy.out.dtype != out.dtype:
        return out, None
    axes = dict(zip(zip(seen.shape, seen.steps, strict=True), copy.out.steps, strict=True))
    steps = []
    for size, step in zip(out.shape, out.steps, strict=True):
        if size != 1 and (size, step) not in axes:
            return out, None
        steps.append(axes.get((size, step), 0) if size != 1 else 0)
    if steps[-1] != 1:
        return out, None
    return view(copy.out, out.shape, tuple(steps)), copy
