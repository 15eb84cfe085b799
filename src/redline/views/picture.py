"""Pictures as SVG: bars in the order of running, and a graph as rows with arcs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from redline.report import units
from redline.views.calls import common

if TYPE_CHECKING:
    from redline.views.autograd import Node

_WIDTH, _UP, _DOWN, _MOST = 1072, 110, 110, 360
_ROWS, _STEP, _X = 60, 20, 96  # of the graph: rows, pixels for each, where its line is
_FULL, _UNFOLDED = 2000, 1_000_000  # rows that a browser still draws at once; no folding at all


def strip(steps: Sequence[tuple[str, int, int]]) -> str:
    """FLOPs above a line and saved bytes below it, one bar for each (path, FLOPs, bytes)."""
    if not steps:
        return ""
    merged = _merge(steps)
    most_up = max(flops for _, flops, _ in merged) or 1
    most_down = max(size for _, _, size in merged) or 1
    step = _WIDTH / len(merged)
    bars = []
    for index, (path, flops, size) in enumerate(merged):
        x, width = index * step, max(step - (1 if step > 3 else 0), 0.5)
        up, down = _UP * flops / most_up, _DOWN * size / most_down
        told = escape(f"{path or 'model'}: {units.flops(flops)}, saves {units.size(size)}")
        bars.append(
            f"<g><title>{told}</title>"
            f'<rect class="flops" fill="#0062b1" x="{x:.1f}" y="{20 + _UP - up:.1f}" '
            f'width="{width:.1f}" height="{up:.1f}"/>'
            f'<rect class="saved" fill="#b45100" x="{x:.1f}" y="{22 + _UP:.1f}" '
            f'width="{width:.1f}" height="{down:.1f}"/></g>'
        )
    height = 20 + _UP + 2 + _DOWN + 20
    words = (
        _text(0, 12, f"FLOPs of a step, up to {units.flops(most_up)}", "flops-text"),
        _text(0, height - 4, f"saved for backward, up to {units.size(most_down)}", "saved-text"),
    )
    return _svg(_WIDTH, height, "FLOPs and saved bytes of every step", [*bars, *words])


def _merge(steps: Sequence[tuple[str, int, int]]) -> Sequence[tuple[str, int, int]]:
    """Neighbours together where there are more steps than can be seen."""
    if len(steps) <= _MOST:
        return steps
    size = -(-len(steps) // _MOST)
    groups = [steps[at : at + size] for at in range(0, len(steps), size)]
    return [
        (f"{group[0][0]} to {group[-1][0]}", sum(s[1] for s in group), sum(s[2] for s in group))
        for group in groups
    ]


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}" '
        f'font-family="system-ui, sans-serif" fill="#59636e">{escape(words)}</text>'
    )


def _svg(width: int, height: float, label: str, inside: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" '
        f'width="{width}" role="img" aria-label="{escape(label)}">{"".join(inside)}</svg>'
    )


def graph(nodes: Sequence[Node], depth: int | None = None) -> str:
    """The autograd graph as rows from the model's input to its loss, with an arc for each edge that
    passes over rows. Nodes of a module are one row where all of them would be too many.
    """
    inner = [index for index, node in enumerate(nodes) if not node.leaf]
    groups = _group(nodes, inner, depth)
    row_of = {index: row for row, group in enumerate(groups) for index in group}
    rows = [_row_of(nodes, group) for group in groups]
    edges = {
        (row_of[target], row_of[source])
        for source in inner
        for target in nodes[source].inputs
        if target in row_of and row_of[target] != row_of[source]
    }
    drawn = [_arc(low, high) for low, high in sorted(edges)]
    most = max((size for *_, size in rows), default=0) or 1
    for index, row in enumerate(rows):
        drawn.append(_draw_row(index, *row, most))
    height = len(rows) * _STEP + 8
    label = f"autograd graph, {len(inner)} operators in {len(rows)} rows"
    return _svg(_WIDTH, height, label, drawn)


def graph_in_full(nodes: Sequence[Node]) -> str:
    """The graph with a row for every node; empty if graph() has that already, or it is too much."""
    inner = sum(not node.leaf for node in nodes)
    return graph(nodes, _UNFOLDED) if _ROWS < inner <= _FULL else ""


def operator(name: str) -> str:
    """The operator that a node undoes: "MaxPool2D" of "MaxPool2DBackward0".

    Example:
        >>> operator("ConvolutionBackward0"), operator("MeanBackward1"), operator("MineBackward")
        ('Convolution', 'Mean', 'Mine')
    """
    return name.rstrip("0123456789").removesuffix("Backward") or name


def _group(nodes: Sequence[Node], inner: Sequence[int], depth: int | None) -> list[list[int]]:
    """Neighbours in the same module at some depth, together; the deepest that gives few rows."""
    if depth == _UNFOLDED:
        return [[index] for index in inner]
    if depth is not None:
        return _runs(nodes, inner, depth)
    if len(inner) <= _ROWS:
        return [[index] for index in inner]
    deepest = max(nodes[index].path.count(".") + 1 for index in inner)
    for level in range(deepest, -1, -1):
        groups = _runs(nodes, inner, level)
        if len(groups) <= _ROWS:
            return groups
    return _chunks(groups)


def _runs(nodes: Sequence[Node], inner: Sequence[int], depth: int) -> list[list[int]]:
    groups: list[list[int]] = []
    last = None
    for index in inner:
        path = tuple(nodes[index].path.split(".")[:depth])
        if path != last:
            groups.append([])
        groups[-1].append(index)
        last = path
    return groups


def _chunks(groups: list[list[int]]) -> list[list[int]]:
    """Many calls of one module, or no modules at all: as many neighbours in a row as it takes."""
    flat = [index for group in groups for index in group]
    size = -(-len(flat) // _ROWS)
    return [flat[at : at + size] for at in range(0, len(flat), size)]


def _row_of(nodes: Sequence[Node], group: Sequence[int]) -> tuple[str, str, str, int]:
    """(name, operators, leaves, saved bytes)."""
    members = [nodes[index] for index in group]
    path = common([node.path for node in members]) or "model"
    names = list(dict.fromkeys(operator(node.name) for node in members))
    told = ", ".join(names[:3]) + (f" +{len(names) - 3}" if len(names) > 3 else "")
    leaves = {nodes[i].leaf for node in members for i in node.inputs if nodes[i].leaf}
    got = f"{len(leaves)} leaves" if len(leaves) > 1 else next(iter(leaves), "")
    operators = f"{len(members)} nodes: {told}" if len(members) > 1 else told
    return path, operators, got, sum(node.activation_bytes for node in members)


def _arc(low: int, high: int) -> str:
    y1, y2 = _middle(low), _middle(high)
    if high - low == 1:
        return f'<line class="edge" stroke="#59636e" x1="{_X}" x2="{_X}" y1="{y1}" y2="{y2}"/>'
    out = min(18 + 9 * (high - low) ** 0.75, _X - 8)
    bend = f"M{_X} {y1} C{_X - out:.0f} {y1} {_X - out:.0f} {y2} {_X} {y2}"
    return f'<path class="edge" fill="none" stroke="#59636e" d="{bend}"/>'


def _draw_row(index: int, name: str, operators: str, leaves: str, size: int, most: int) -> str:
    y = _middle(index)
    bar = 150 * size / most
    told = escape(f"{name}: {operators}; {leaves}; saves {units.size(size)}")
    return (
        f'<g><title>{told}</title><circle class="node" fill="#59636e" cx="{_X}" cy="{y}" r="4"/>'
        + _text(_X + 14, y + 4, _short(name, 30), "who-text")
        + _text(_X + 240, y + 4, _short(operators, 54))
        + (_text(_X + 620, y + 4, _short(leaves, 22), "leaf") if leaves else "")
        + f'<rect class="saved" fill="#b45100" x="{_X + 760}" y="{y - 5}" width="{bar:.1f}" '
        'height="10"/>' + (_text(_X + 766 + bar, y + 4, units.size(size)) if size else "") + "</g>"
    )


def _middle(row: int) -> int:
    return 4 + row * _STEP + _STEP // 2


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def levels(points: Sequence[tuple[str, float | None, str]]) -> str:
    """One bar for each (layer, ratio, verdict), on a logarithmic scale."""
    shown = [(name, math.log10(ratio), verdict) for name, ratio, verdict in points if ratio]
    if not shown:
        return ""
    low = math.floor(min(level for _, level, _ in shown)) - 1
    high = max(math.ceil(max(level for _, level, _ in shown)), low + 2)
    step, tall, left = (_WIDTH - 60) / len(shown), 200, 60
    every = max(1, (high - low) // 8)
    drawn = []
    for power in range(low, high + 1, every):
        y = 10 + tall * (high - power) / (high - low)
        drawn.append(
            f'<line class="edge" stroke="#59636e" stroke-opacity=".3" x1="{left}" x2="{_WIDTH}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/>' + _text(left - 8, y + 4, f"1e{power}", "", "end")
        )
    for index, (name, level, verdict) in enumerate(shown):
        height = tall * (level - low) / (high - low)
        kind, fill = ("flops", "#0062b1") if verdict == "ok" else ("cut", "#a8201a")
        drawn.append(
            f"<g><title>{escape(f'{name}: {10**level:.3g}, {verdict}')}</title>"
            f'<rect class="{kind}" fill="{fill}" x="{left + index * step:.1f}" '
            f'y="{10 + tall - height:.1f}" width="{max(step * 0.8, 0.5):.1f}" '
            f'height="{height:.1f}"/></g>'
        )
    return _svg(_WIDTH, tall + 20, "gradient over weights by layer", drawn)
