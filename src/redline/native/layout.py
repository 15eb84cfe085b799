"""Layout assignment: islands of NCHWc around convolutions, reorders only at their shores."""

from __future__ import annotations

from dataclasses import replace as changed

import numpy as np

from redline.native.fuse import vector
from redline.native.ir import Blocked, Expr, Load, Node, Program, Value, leaves, replace, view

_NO_HALO = (0, 0, 0, 0)
_WINDOWS = ("conv", "winograd", "depthwise", "expand", "pool")


class Layouts:
    """Rewrites the program so that every node finds its operands in the layout it reads."""

    def __init__(self, program: Program, lanes: int) -> None:
        self.program = program
        self.lanes = lanes
        self.nodes: list[Node] = []
        self._plain: dict[Value, Value] = {}
        self._blocked: dict[Value, Value] = {}
        self._outputs = set(program.outputs)

    def run(self) -> Program:
        halos = _halos(self.program)
        for node in self.program.nodes:
            if node.kind in _WINDOWS:
                self._window(node, halos)
            elif node.kind == "loop" and self._joins(node):
                self._island(node, halos)
            else:
                node.ins = [self.plain(value) for value in node.ins]
                if node.expr is not None:
                    node.expr = replace(node.expr, self._plain_leaf)
                self.nodes.append(node)
        outputs = [self.plain(value) for value in self.program.outputs]
        return changed(self.program, nodes=self.nodes, outputs=outputs)

    def _window(self, node: Node, halos: dict[Value, tuple[int, int, int, int]]) -> None:
        x = node.ins[0]
        dense = node.attrs.get("dilations", (1, 1))[1] == 1  # a planar window's row is read in one
        few = x.root.layout is None and x.shape[1] < self.lanes
        if node.kind == "conv" and few and dense:
            node.ins = [self._planar(x, node.attrs["pads"])]
            node.attrs["planar"] = True
        else:
            node.ins = [
                self.blocked(x, reach(node)),
                *(self.blocked(v, _NO_HALO) for v in node.ins[1:]),
            ]
        if node.expr is not None:
            node.expr = replace(node.expr, lambda leaf: self._blocked_leaf(leaf))
        node.out.layout = Blocked(halos.get(node.out, (0, 0, 0, 0)))
        self.nodes.append(node)

    def _joins(self, node: Node) -> bool:
        """A loop joins the island when an operand of its own shape is in it, and all others can."""
        assert node.expr is not None
        if node.out.base is not None or len(node.out.shape) != 4:
            return False
        operands = [leaf.value for leaf in leaves(node.expr)]
        whole = node.out.dtype == np.int16 and vector(node.expr)
        if not (whole or node.out.dtype == np.float32) or any(
            v.dtype != np.float32 for v in operands
        ):
            return False
        inside = [v for v in operands if v.base is None and v.layout is not None]
        return any(v.shape == node.out.shape for v in inside) and all(
            v.const is not None or v.base is None for v in operands
        )

    def _island(self, node: Node, halos: dict[Value, tuple[int, int, int, int]]) -> None:
        assert node.expr is not None
        node.expr = replace(node.expr, self._blocked_leaf)
        node.out.layout = Blocked(halos.get(node.out, (0, 0, 0, 0)))
        self.nodes.append(node)

    def _blocked_leaf(self, leaf: object) -> Expr:
        if not isinstance(leaf, Load):
            return leaf  # type: ignore[return-value]
        value = leaf.value
        if value.const is not None or value.size == 1:
            return Load(self.plain(value)) if value.const is None else leaf
        return Load(self.blocked(value, (0, 0, 0, 0)))

    def _plain_leaf(self, leaf: object) -> Expr:
        return Load(self.plain(leaf.value)) if isinstance(leaf, Load) else leaf  # type: ignore[return-value]

    def plain(self, value: Value) -> Value:
        """The value, or the view, over row-major memory."""
        root = value.root
        if root.layout is None:
            return value
        if root not in self._plain:
            copy = Value(root.shape, root.dtype, root.name)
            self.nodes.append(Node("unblock", copy, [root], names=["to row-major"]))
            self._plain[root] = copy
        copy = self._plain[root]
        return copy if value.base is None else view(copy, value.shape, value.steps, value.offset)

    def blocked(self, value: Value, pads: tuple[int, ...]) -> Value:
        """The value in NCHWc with at least this halo."""
        have = value.layout.halo if value.layout and value.base is None else None
        if have is not None and _covers(have, pads):
            return value
        known = self._blocked.get(value)
        if known is not None and known.layout is not None and _covers(known.layout.halo, pads):
            return known
        shape = (1,) * (4 - len(value.shape)) + value.shape
        source = self.plain(value)
        if len(value.shape) < 4:
            source = view(source, shape, (0,) * (4 - len(value.shape)) + source.steps)
        halo = (pads[0], pads[1], pads[2], pads[3])
        copy = Value(shape, value.dtype, value.name, layout=Blocked(halo))
        self.nodes.append(Node("block", copy, [source], names=["to NCHWc"]))
        self._blocked[value] = copy
        return copy

    def _planar(self, x: Value, pads: tuple[int, int, int, int]) -> Value:
        """[N, C, H, W] with its halo, row-major: what a first layer with few channels reads."""
        n, c, h, w = x.shape
        top, left, bottom, right = pads
        if not any(pads):
            return self.program_dense(x)
        out = Value((n, c, h + top + bottom, w + left + right), x.dtype, x.name, layout=None)
        inner = view(out, x.shape, out.steps, top * out.shape[3] + left)
        self.nodes.append(Node("loop", inner, [], Load(x), {"halo": True}, ["with halo"]))
        return out

    def program_dense(self, x: Value) -> Value:
        if x.base is None:
            return x
        out = Value(x.shape, x.dtype, x.name)
        self.nodes.append(Node("loop", out, [], Load(x), {}, ["copy"]))
        return out


def _covers(halo: tuple[int, ...], pads: tuple[int, ...]) -> bool:
    return all(have >= want for have, want in zip(halo, pads, strict=True))


def reach(node: Node) -> tuple[int, int, int, int]:
    """How far a node reads over its image's edges: above, left, below, right."""
    if node.kind == "pool":
        return (0, 0, 0, 0)
    found: tuple[int, int, int, int] = node.attrs.get("reach", node.attrs["pads"])
    return found


def _halos(program: Program) -> dict[Value, tuple[int, int, int, int]]:
    """The halo that the readers of each value want."""
    found: dict[Value, tuple[int, int, int, int]] = {}
    for node in program.nodes:
        if node.kind in _WINDOWS:
            x, pads = node.ins[0], reach(node)
            have = found.get(x, (0, 0, 0, 0))
            top, left, bottom, right = (max(a, b) for a, b in zip(have, pads, strict=True))
            found[x] = (top, left, bottom, right)
    return found
