"""One call of a kernel template over contiguous arrays, its units shared out among the threads."""

from __future__ import annotations

from redline.native.code import SMALL, Code
from redline.native.ir import Node
from redline.native.literals import literal


def call(c: Code, node: Node) -> str:
    """`rl::kernel(part, inputs..., output, [scratch], numbers...)`; see Reader.call."""
    a = node.attrs
    units = a["units"]
    split = c.decide(c.threads if units > 1 and a.get("work", node.out.size) >= SMALL else 1)
    tables, words = [], []
    for place, number in enumerate(a.get("numbers", ())):
        if isinstance(number, tuple):
            kind = "double" if any(isinstance(n, float) for n in number) else "long"
            inside = ", ".join(_number(n) for n in number) or "0"
            tables.append(f"static constexpr {kind} n{place}[] = {{{inside}}};")
            words.append(f"n{place}")
        else:
            words.append(number if isinstance(number, str) else _number(number))
    arrays = [c.pointer(value) for value in node.ins] + [c.pointer(node.out, write=True)]
    if a.get("scratch_bytes"):
        arrays.append(f"(c.arena + {a['scratch']} + t * (({a['scratch_bytes']} + 63) / 64 * 64))")
    return "\n".join(
        [
            f"if (t >= {split}) return;",
            *tables,
            f"const rl::Span part = rl::share({units}, t, {split});",
            f"rl::{a['kernel']}({', '.join(['part', *arrays, *words])});\n",
        ]
    )


def scratch(c: Code, node: Node) -> int:
    """Bytes that all threads together need."""
    return _round(node.attrs.get("scratch_bytes", 0)) * c.threads


def _number(n: float) -> str:
    return f"{n}L" if isinstance(n, int) else literal(float(n), "")


def _round(size: int) -> int:
    return (size + 63) // 64 * 64
