"""Fusion: loops into loops, then each loop into the anchor that feeds it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from redline.native.ir import Acc, Apply, Expr, Load, No, Node, Program, Value, leaves, replace

ANCHORS = ("gemm", "matmul", "conv", "depthwise", "pool")
_ROWS = ("softmax", "logsoftmax", "layernorm", "rmsnorm")
_SIGMOID = "(rl::sigmoid({0}))"
_FEW = 8  # channels of a first layer: a vector has as many or more
_LONG = 64  # operations in one expression; more would spill and compile slowly


def fuse(program: Program) -> Program:
    """Fewer passes over memory; `notes` say which fusion was refused and why."""
    program.nodes = _live(program)
    for absorb in (_loop_into_reader, _loop_into_anchor):
        changed = True
        while changed:
            changed = absorb(program)
    for node in program.nodes:
        if node.expr is not None and node.out.dtype == "float32":
            node.expr = _shorter(node.expr)
    return program


def _shorter(expr: Expr) -> Expr:
    """x times sigmoid(x), as exporters write it, is SiLU: one division and no product."""
    if not isinstance(expr, Apply):
        return expr
    args = tuple(map(_shorter, expr.args))
    if "".join(expr.form.split()) == "({0}*{1})":
        for x, gate in (args, args[::-1]):
            if gate == Apply(_SIGMOID, (x,), expr.dtype):
                return Apply("rl::silu({0})", (x,), expr.dtype)
    return Apply(expr.form, args, expr.dtype, expr.vector)


def _live(program: Program) -> list[Node]:
    """Nodes that an output depends on."""
    wanted = {value.root for value in program.outputs}
    kept = []
    for node in reversed(program.nodes):
        if node.out.root in wanted:
            wanted.update(value.root for value in node.reads())
            kept.append(node)
    return kept[::-1]


def _writers(program: Program) -> dict[Value, list[Node]]:
    found: dict[Value, list[Node]] = {}
    for node in program.nodes:
        found.setdefault(node.out.root, []).append(node)
    return found


def _loop_into_reader(program: Program) -> bool:
    """A loop whose result only one loop or row kernel reads is computed there."""
    uses, writers = program.uses(), _writers(program)
    for reader in program.nodes:
        if reader.kind != "loop" and reader.kind not in _ROWS:
            continue
        shape = reader.out.shape
        assert reader.expr is not None
        for leaf in leaves(reader.expr):
            makers = writers.get(leaf.value, [])
            if leaf.value.base or len(makers) != 1 or makers[0].kind != "loop":
                continue
            maker = makers[0]
            if maker.out.base or uses[leaf.value] != 1 or leaf.value.shape != shape:
                continue
            if _length(maker.expr) + _length(reader.expr) > _LONG:
                continue
            inner = maker.expr
            assert inner is not None
            reader.expr = replace(reader.expr, _putting(leaf.value, inner))
            reader.names = maker.names + reader.names
            program.nodes.remove(maker)
            return True
    return False


def _putting(value: Value, expr: Expr) -> Callable[[Load | Acc], Expr]:
    """Puts `expr` in the place of every load of `value`."""
    return lambda leaf: expr if leaf == Load(value) else leaf


def _length(expr: Expr | None) -> int:
    if expr is None or isinstance(expr, Load | Acc):
        return 1
    return 1 + sum(_length(arg) for arg in expr.args)


def _loop_into_anchor(program: Program) -> bool:
    uses, writers = program.uses(), _writers(program)
    order = {id(node): place for place, node in enumerate(program.nodes)}
    for loop in program.nodes:
        if loop.kind != "loop":
            continue
        assert loop.expr is not None
        makers = [writers[leaf.value][0] for leaf in leaves(loop.expr) if leaf.value in writers]
        for maker in sorted(makers, key=lambda node: -order[id(node)]):
            if maker.kind not in ANCHORS or maker.expr is not None:
                continue
            try:
                _allowed(maker, loop, uses)
            except No as reason:
                note = f"{'+'.join(loop.names)} is not fused into {maker.names[-1]}: {reason}"
                if note not in program.notes:
                    program.notes.append(note)
                continue
            inner = maker.out
            loop.expr = replace(loop.expr, _putting(inner, Acc()))
            loop.kind, loop.ins, loop.attrs = maker.kind, maker.ins, maker.attrs
            loop.flops, loop.names = maker.flops, maker.names + loop.names
            program.nodes.remove(maker)
            return True
    return False


def _allowed(maker: Node, loop: Node, uses: dict[Value, int]) -> None:
    """Raises No with the reason where the loop cannot be the anchor's epilogue."""
    if uses[maker.out] != 1:
        raise No(f"its result is read {uses[maker.out]} times")
    if loop.out.base is not None:
        raise No("it writes into a part of another array")
    if loop.out.shape != maker.out.shape:
        raise No(f"shape {list(maker.out.shape)} is broadcast to {list(loop.out.shape)}")
    assert loop.expr is not None
    if not vector(loop.expr):
        raise No("its expression does not hold for vectors of float32")
    if loop.out.dtype != "float32" and not (maker.kind == "gemm" or _direct(maker)):
        raise No(f"a {maker.kind} stores float32 alone")
    if maker.kind in ("gemm", "matmul"):
        for leaf in leaves(loop.expr):
            if leaf.value is not maker.out:
                matrix_steps(leaf.value, loop.out.shape)


def _direct(maker: Node) -> bool:
    """A convolution that no pass turns into another kernel: of whole numbers, or a first layer."""
    first = maker.kind == "conv" and maker.attrs["weights"].shape[1] < _FEW
    return maker.whole or first


def vector(expr: Expr) -> bool:
    """Whether the expression can be computed on vectors of float32."""
    if isinstance(expr, Load):
        return expr.value.dtype == "float32"
    return isinstance(expr, Acc) or (expr.vector and all(vector(arg) for arg in expr.args))


def broadcast_steps(value: Value, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of `value` along the axes of `shape`, 0 where it repeats."""
    extra = len(shape) - len(value.shape)
    steps = (0,) * extra + value.steps
    sizes = (1,) * extra + value.shape
    return tuple(0 if n == 1 else step for n, step in zip(sizes, steps, strict=True))


def matrix_steps(value: Value, shape: tuple[int, ...]) -> tuple[int, int]:
    """Strides along (all axes but the last taken as one, the last one).

    Raises:
        No: the leading axes are not one walk through memory.
    """
    steps = broadcast_steps(value, shape)
    lead = [(n, s) for n, s in zip(shape[:-1], steps[:-1], strict=True) if n != 1]
    for (_, outer), (size, inner) in pairwise(lead):
        if outer != size * inner:
            raise No(f"an operand of shape {list(value.shape)} repeats between the rows")
    if steps and steps[-1] not in (0, 1):
        raise No("an operand's last axis is not contiguous")
    return (lead[-1][1] if lead else 0, steps[-1] if steps else 0)
