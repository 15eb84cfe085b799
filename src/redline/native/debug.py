"""What REDLINE_DEBUG and REDLINE_DUMP show of a compilation, pass by pass."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from redline import knobs
from redline.native.ir import Node, Program, Value
from redline.native.plan import Plan


class Trace:
    """Tells what each pass did, on stderr and in "compile.log" of the folder in REDLINE_DUMP.

    Levels: 2 the passes, 3 the nodes after each and the fusions refused, 4 where values lie, 5 the
    assembly. The levels below are the command line's own.
    """

    def __init__(self) -> None:
        self.level = knobs.number("REDLINE_DEBUG")
        dump = knobs.text("REDLINE_DUMP")
        self.folder = Path(dump) if dump else None
        self._since = time.perf_counter()
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.level >= 2:
                (self.folder / "compile.log").write_text("", encoding="utf-8")

    def say(self, level: int, text: str) -> None:
        """One line, or several, at a level."""
        if self.level < level:
            return
        print(text, file=sys.stderr)  # noqa: T201
        if self.folder:
            with open(self.folder / "compile.log", "a", encoding="utf-8") as log:
                log.write(text + "\n")

    def done(self, name: str, program: Program) -> None:
        """A pass is over."""
        if self.level < 2:
            return
        now = time.perf_counter()
        took, self._since = (now - self._since) * 1e3, now
        self.say(2, f"{name}: {len(program.nodes)} nodes, {took:.1f} ms")
        for place, node in enumerate(program.nodes):
            self.say(3, f"  {place:3} {describe(node)}")
        if name == "fuse":
            for note in program.notes:
                self.say(3, f"  {note}")

    def planned(self, plan: Plan) -> None:
        """Every intermediate has its place."""
        self.say(2, f"plan: {plan.size} bytes for {len(plan.offsets)} values")
        for value, offset in sorted(plan.offsets.items(), key=lambda item: item[1]):
            self.say(4, f"  {offset:>10} {shape(value)}  {value.name}")

    def sources(self, files: Mapping[str, str]) -> None:
        """The C++ is written."""
        if self.folder:
            for name, text in files.items():
                (self.folder / name).write_text(text, encoding="utf-8")
        lines = sum(text.count("\n") for text in files.values())
        self.say(2, f"emit: {len(files)} files, {lines} lines")


def describe(node: Node) -> str:
    """A node in one line.

    Example:
        >>> describe(Node("loop", Value((2, 3), np.dtype("float32")), names=["relu"]))
        'loop       float32[2, 3]  relu'
    """
    return f"{node.kind:10} {shape(node.out)}  {'+'.join(node.names)}"


def shape(value: Value) -> str:
    """Type, shape and layout of a value."""
    text = f"{value.dtype.name}{list(value.shape)}"
    if value.base is not None:
        text += f" view by {list(value.strides)} from {value.offset}"
    if value.root.layout is not None:
        halo = value.root.layout.halo
        text += f" NCHWc halo {list(halo)}" if any(halo) else " NCHWc"
    return text
