"""What the compiler works on: values, expressions over them, and nodes in the order they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np


class No(Exception):  # noqa: N818
    """A refusal with its reason: an operator we lack, a fusion that would be wrong."""


@dataclass(frozen=True)
class Blocked:
    """The layout NCHWc: [N, C/c, H + halo, W + halo, c], the halo zero and never written.

    Attributes:
        halo: rows above, columns left, rows below, columns right of the image.
    """

    halo: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(eq=False)
class Value:
    """An array of known shape.

    Attributes:
        const: its contents, where they are known at build.
        base: for a view, the value whose memory it shows, at `offset`, by `strides` (elements).
        layout: None for contiguous row-major memory.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    name: str = ""
    const: np.ndarray | None = None
    base: Value | None = None
    offset: int = 0
    strides: tuple[int, ...] = ()
    layout: Blocked | None = None

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def root(self) -> Value:
        return self.base or self

    @property
    def steps(self) -> tuple[int, ...]:
        """Strides in elements over the root's row-major memory."""
        return self.strides if self.base is not None else contiguous(self.shape)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements.

    Example:
        >>> contiguous((2, 3, 4))
        (12, 4, 1)
    """
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass(frozen=True)
class Load:
    """The element of a value that lies, by broadcasting, at the place in the output."""

    value: Value


@dataclass(frozen=True)
class Acc:
    """What the anchor computed for this place, before its epilogue."""


@dataclass(frozen=True)
class Apply:
    """A C++ expression over its arguments, e.g. Apply("rl::relu({0})", (Acc(),)).

    Attributes:
        dtype: of the result.
        vector: the expression holds for a vector of floats, too.
    """

    form: str
    args: tuple[Expr, ...]
    dtype: np.dtype
    vector: bool = True


Expr = Load | Acc | Apply


def leaves(expr: Expr) -> Iterator[Load]:
    """Every operand, in the order in which it is written."""
    if isinstance(expr, Load):
        yield expr
    elif isinstance(expr, Apply):
        for arg in expr.args:
            yield from leaves(arg)


def replace(expr: Expr, change: Callable[[Load | Acc], Expr]) -> Expr:
    """The same expression with its leaves changed."""
    if isinstance(expr, Apply):
        args = tuple(replace(arg, change) for arg in expr.args)
        return Apply(expr.form, args, expr.dtype, expr.vector)
    return change(expr)


@dataclass(eq=False)
class Node:
    """One anchor with its epilogue, or a loop over an expression.

    Attributes:
        kind: "loop", "gemm", "matmul", "conv", "depthwise", "pool", "mean", "softmax", ...
        ins: what the anchor reads; the expression's own operands come on top.
        expr: of a loop, the value of each element; of an anchor, its epilogue over Acc();
            of a row kernel (softmax, layernorm), what it reads.
    """

    kind: str
    out: Value
    ins: list[Value] = field(default_factory=list)
    expr: Expr | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    flops: int = 0

    @property
    def whole(self) -> bool:
        """It multiplies whole numbers (steps.py)."""
        return self.kind in ("gemm", "conv") and self.ins[0].dtype == np.int16

    @property
    def floating(self) -> bool:
        """It reads floats and writes floats."""
        return all(value.dtype == np.float32 for value in (*self.ins[:1], self.out))

    def writes(self) -> list[Value]:
        """Its result, and the sums that it adds up on the way."""
        return [self.out, *([self.attrs["sums"]] if "sums" in self.attrs else [])]

    def reads(self) -> list[Value]:
        """Every value it reads, views as they are."""
        found = list(self.ins)
        if self.expr is not None:
            found += [leaf.value for leaf in leaves(self.expr)]
        return found


@dataclass
class Program:
    """A model: nodes in the order they run.

    `notes` hold each missed fusion and its reason.
    """

    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]
    notes: list[str] = field(default_factory=list)

    def uses(self) -> dict[Value, int]:
        """How often each root is read; an output of the model counts once more."""
        counts: dict[Value, int] = {}
        for node in self.nodes:
            for value in set(node.reads()):
                counts[value.root] = counts.get(value.root, 0) + 1
        for value in self.outputs:
            counts[value.root] = counts.get(value.root, 0) + 1
        return counts


def view(value: Value, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> Value:
    """The same memory seen otherwise; `offset` counts from where `value` starts."""
    return Value(
        tuple(shape),
        value.dtype,
        value.name,
        base=value.root,
        offset=value.offset + offset,
        strides=tuple(strides),
    )


def reshaped(value: Value, shape: tuple[int, ...]) -> Value | None:
    """A view of another shape, or None where memory order forbids one (torch's chunk rule)."""
    old = [(n, s) for n, s in zip(value.shape, value.steps, strict=True) if n != 1]
    if 0 in value.shape:
        return view(value, shape, contiguous(shape))
    chunks: list[tuple[int, int]] = []
    for size, step in old:
        if chunks and chunks[-1][1] == size * step:
            chunks[-1] = (chunks[-1][0] * size, step)
        else:
            chunks.append((size, step))
    strides: list[int] = []
    left, step = 1, 1
    for size in reversed(shape):
        if size == 1:
            strides.append(step)
            continue
        if left == 1:
            if not chunks:
                return None
            left, step = chunks.pop()
        if left % size:
            return None
        strides.append(step)
        left //= size
        step *= size
    return None if left != 1 or chunks else view(value, shape, tuple(reversed(strides)))
