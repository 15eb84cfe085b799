"""C++ text: where values lie, how expressions over them are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from redline.native.dtypes import ctype
from redline.native.ir import Acc, Expr, Load, No, Program, Value, contiguous
from redline.native.isa import Isa
from redline.native.literals import literal, whole
from redline.native.plan import Plan, floats, plane

SMALL = 100_000  # element-operations below which a second thread costs more than it brings


@dataclass
class Weights:
    """The constants in the order in which kernels read them, each at a multiple of 64 bytes."""

    arrays: list[tuple[int, np.ndarray]] = field(default_factory=list)
    size: int = 0
    _known: dict[tuple[int, str], tuple[int, np.ndarray]] = field(default_factory=dict)

    def add(self, array: np.ndarray, source: np.ndarray | None = None, how: str = "") -> int:
        """The byte offset of an array; the same source packed the same way is kept once."""
        key = (id(source if source is not None else array), how)
        if key in self._known:
            return self._known[key][0]
        at = self.size
        self.arrays.append((at, np.ascontiguousarray(array)))
        self.size += (array.nbytes + 63) // 64 * 64
        self._known[key] = (at, source if source is not None else array)
        return at

    def to_bytes(self) -> bytes:
        data = bytearray(self.size)
        for at, array in self.arrays:
            data[at : at + array.nbytes] = array.tobytes()
        return bytes(data)


@dataclass
class Access:
    """A pointer and its strides, in elements, along the axes of a loop nest."""

    pointer: str
    steps: tuple[int, ...]


@dataclass
class Replay:
    """Choices in the order in which they are made: kept the first time, repeated after rewind()."""

    kept: list[Any] = field(default_factory=list)
    place: int = -1

    def decide(self, choice: Any) -> Any:
        if self.place < 0:
            self.kept.append(choice)
            return choice
        if self.place >= len(self.kept):
            raise No("there are more choices at one size than at another")
        self.place += 1
        return self.kept[self.place - 1]

    def rewind(self) -> Replay:
        self.place = 0
        return self


class Code:
    """What every emitter needs: the target, the places of values, the weights."""

    def __init__(
        self, program: Program, plan: Plan, isa: Isa, threads: int, replay: Replay | None = None
    ) -> None:
        self.program, self.plan, self.isa, self.threads = program, plan, isa, threads
        self.weights = Weights()
        self.lanes = isa.lanes
        self._replay = replay

    @property
    def free(self) -> bool:
        """The text must hold for other sizes than those of the program, too."""
        return self._replay is not None

    def decide(self, choice: Any) -> Any:
        """The choice; where sizes are free, what was chosen here when all of them were greatest."""
        return choice if self._replay is None else self._replay.decide(choice)

    def pointer(self, value: Value, *, write: bool = False) -> str:
        """C++ for the address of the first element, halo skipped."""
        root, kind = value.root, ctype(value.dtype)
        const = "" if write else "const "
        offset = value.offset
        if root.layout is not None:
            offset += self.first(root)
        if root.const is not None:
            base = f"c.weights + {self.weights.add(root.const)}"
        elif root in self.program.inputs:
            base = f"c.in[{self.program.inputs.index(root)}]"
        elif root in self.program.outputs:
            base = f"c.out[{self.program.outputs.index(root)}]"
        else:
            base = f"c.arena + {self.plan.offsets[root]}"
        return f"(({const}{kind}*)({base}) + {offset})"

    def geometry(self, value: Value) -> tuple[int, int, int, int, int]:
        """Strides (n, channel block, h, w, lane) of an NCHWc value."""
        assert value.layout is not None
        _, c, _, w = value.shape
        row = (w + value.layout.halo[1] + value.layout.halo[3]) * self.lanes
        block = plane(value, self.lanes)
        return (-(-c // self.lanes) * block, block, row, self.lanes, 1)

    def floats(self, value: Value) -> int:
        """Elements of the value's memory, halo and filled-up channels included."""
        return floats(value, self.lanes)

    def first(self, value: Value) -> int:
        """Elements before the first pixel."""
        assert value.layout is not None
        steps = self.geometry(value)
        return value.layout.halo[0] * steps[2] + value.layout.halo[1] * steps[3]

    def dims(self, value: Value) -> tuple[int, ...]:
        """The loop nest over a value: its shape, or (n, channel block, h, w, lane)."""
        if value.layout is None:
            return value.shape
        n, c, h, w = value.shape
        return (n, -(-c // self.lanes), h, w, self.lanes)

    def access(self, value: Value, out: Value) -> Access:
        """An operand of a loop or epilogue over `out`."""
        if out.layout is None:
            extra = len(out.shape) - len(value.shape)
            sizes = (1,) * extra + value.shape
            steps = (0,) * extra + value.steps
        elif value.layout is not None and value.base is None:
            n, c, h, w = value.shape
            sizes = (n, -(-c // self.lanes), h, w, self.lanes if c > 1 or out.shape[1] == 1 else 1)
            steps = self.geometry(value)
        elif value.const is not None and value.size > 1:
            return self._blocked_constant(value, out)
        else:
            return Access(self.pointer(value), (0,) * 5)
        pairs = zip(sizes, steps, strict=True)
        return Access(self.pointer(value), tuple(0 if n == 1 else s for n, s in pairs))

    def _blocked_constant(self, value: Value, out: Value) -> Access:
        assert value.const is not None
        array = value.const.reshape((1,) * (4 - value.const.ndim) + value.const.shape)
        if array.shape[1] == 1 and out.shape[1] > 1:
            steps = contiguous(array.shape)
            pairs = zip(array.shape, steps, strict=True)
            n, _, h, w = (0 if size == 1 else step for size, step in pairs)
            return Access(self.pointer(value), (n, 0, h, w, 0))
        packed = blocked(array, self.lanes)
        at = self.weights.add(packed, value.const, f"blocked{self.lanes}")
        shape = packed.shape
        steps = contiguous(shape)
        strides = [0 if n == 1 else s for n, s in zip(shape, steps, strict=True)]
        return Access(f"((const float*)(c.weights + {at}))", tuple(strides))

    def text(self, expr: Expr, load: Callable[[Value], str], acc: str = "") -> str:
        """The expression with its leaves written by `load`."""
        if isinstance(expr, Acc):
            return acc
        if isinstance(expr, Load):
            return load(expr.value)
        return expr.form.format(*(self.text(arg, load, acc) for arg in expr.args))


def blocked(array: np.ndarray, lanes: int) -> np.ndarray:
    """[N, C, H, W] -> [N, C/lanes, H, W, lanes], the last block filled up with zeros."""
    n, c, h, w = array.shape
    blocks = -(-c // lanes)
    padded = np.zeros((n, blocks * lanes, h, w), array.dtype)
    padded[:, :c] = array
    return np.ascontiguousarray(padded.reshape(n, blocks, lanes, h, w).transpose(0, 1, 3, 4, 2))


def scalar(value: Value) -> str | None:
    """A constant of one element, as C++."""
    if value.const is None or value.size != 1:
        return None
    x = value.const.reshape(-1)[0]
    if value.dtype == np.float32:
        return literal(float(x))
    if value.dtype == np.float64:
        return literal(float(x), "")
    return whole(int(x), value.dtype) if value.dtype.kind in "iub" else None


def index(steps: Sequence[int], names: Sequence[str]) -> str:
    """C++ for the sum of steps times indices.

    Example:
        >>> index((12, 0, 1), ("i", "j", "k"))
        'i * 12 + k'
    """
    terms = [
        name if step == 1 else f"{name} * {step}"
        for step, name in zip(steps, names, strict=True)
        if step
    ]
    return " + ".join(terms) or "0"


def vector_load(access: Access, names: Sequence[str]) -> str:
    """A vector along the last axis: loaded where contiguous, one element repeated where not."""
    *outer, lane = access.steps
    if lane == 0:
        return f"rl::set({access.pointer}[{index(outer, names[:-1])}])"
    return f"rl::load({access.pointer} + {index(access.steps, names)})"
