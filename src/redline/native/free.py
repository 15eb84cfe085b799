"""One program for every size within a range: a free batch, a free sequence length.

All passes work with whole numbers. So the model is written at several sizes, and what differs
between the texts must be numbers alone: each such number is then a polynomial in the sizes, found
from some of them and held against the others. The sizes are odd primes, at which no size is a
multiple of a vector or equal to another size by chance: what the passes conclude there holds for
all. Choices (tiles, threads) are those of the greatest sizes; kernels whose shape would depend on a
size are refused, and so are constants whose contents do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from math import prod

import numpy as np

from redline.native.code import Code, Replay
from redline.native.emit import Sources, arrange, bodies, group, program_text, spec, unit_texts
from redline.native.ir import Load, No, Node, Program, Value, contiguous, leaves, replace, view
from redline.native.isa import Isa
from redline.native.plan import Plan
from redline.signature import Dim

Point = Mapping[str, int]
Terms = tuple[tuple[int, ...], ...]  # (coefficient, exponent of the first size, of the second ...)
_FIXED = ("conv", "depthwise", "winograd", "expand", "pool", "block", "unblock", "mean")
_STRIDED = ("matmul", "attention", "reduce")  # kernels that read their operands by strides
_TOKEN = re.compile(r"[A-Za-z_]\w*|\d[\w.]*(?:(?<=[eE])[+-]\d+\w*)?|\s+|.", re.DOTALL)
_SHAPE = re.compile(r"rl::\w+<[^<>;]*\bS\d")


def emit_free(
    at: Callable[[Point], Program],
    shapes: Sequence[Sequence[int | str]],
    dims: Sequence[Dim],
    isa: Isa,
    threads: int,
) -> Sources:
    """The C++ for every size from each dim's min to its max.

    Args:
        at: the fused program at given sizes, by the names of the dims.
        shapes: of the inputs; a str in them names a dim.

    Raises:
        No: the ranges are too small to tell, or a kernel, a constant or a text depends on a size
            in a way that is no polynomial.

    Example:
        >>> emit_free(lambda point: fuse(read(sized(model, point))), [(1, "s")], dims, isa, 2)
    """
    if len(dims) > 2:
        raise No(f"{len(dims)} sizes are free; two at most")
    greatest = at({dim.name: dim.max for dim in dims})
    for node in greatest.nodes:
        if node.kind in _FIXED:
            raise No(f"{node.names[-1]}: the kernel of a {node.kind} is made for one size")
    grid = _Grid.of(dims)
    programs = [at(point) for point in grid.points()]
    places = _uneven(programs[0], greatest)
    for program in (greatest, *programs):
        _copy(program, places)
    replay = Replay()
    top = Code(greatest, Plan(), isa, threads, replay)
    arrange(top)
    bodies(top)
    written = [_written(program, top, replay.rewind()) for program in programs]
    first = written[0]
    for other in written[1:]:
        if len(other.texts) != len(first.texts) or not _equal(first.code, other.code):
            raise No("the constants or the groups differ between sizes")
    groups = [grid.text([w.texts[i] for w in written]) for i in range(len(first.texts))]
    told = [_merged_group(grid, [w.groups[i] for w in written]) for i in range(len(first.groups))]
    program = first.code.program
    outputs = [[spec(value) for value in w.code.program.outputs] for w in written]
    more = {
        "inputs": [spec(v) | {"shape": s} for v, s in zip(program.inputs, shapes, strict=True)],
        "outputs": [grid.spec([o[i] for o in outputs]) for i in range(len(outputs[0]))],
        "sizes": [{"name": dim.name, "min": dim.min, "max": dim.max} for dim in dims],
    }
    files = unit_texts(program, groups, len(dims))
    files["program.cpp"] = program_text(first.code, program, groups, tuple(told), more)
    return Sources(files, first.code.weights.to_bytes(), tuple(told), top.plan)


def _uneven(program: Program, greatest: Program) -> list[tuple[int, int]]:
    """(node, operand) of constants that grow with a size, where a kernel reads row-major memory."""
    return [
        (place, i)
        for place, (node, twin) in enumerate(zip(program.nodes, greatest.nodes, strict=False))
        if node.kind not in _STRIDED
        for i, (a, b) in enumerate(zip(node.ins, twin.ins, strict=False))
        if a.const is not None and a.shape != b.shape
    ]


def _copy(program: Program, places: Sequence[tuple[int, int]]) -> None:
    """Copies such constants first: what lies in the corner of a greater one has other strides."""
    for place, i in reversed(places):
        node = program.nodes[place]
        value = node.ins[i]
        dense = Value(value.shape, value.dtype, value.name)
        node.ins[i] = dense
        copy = Node("loop", dense, [], Load(value), {}, node.names)
        program.nodes.insert(place, copy)


@dataclass(frozen=True)
class _Written:
    """The texts of all groups at one point."""

    code: Code
    texts: list[str]
    groups: list[dict[str, object]]


def _written(program: Program, top: Code, replay: Replay) -> _Written:
    """The program's texts, in the places and with the choices of the greatest sizes."""
    _share_constants(program, top.program)
    ours, theirs = _roots(program), _roots(top.program)
    if len(ours) != len(theirs):
        raise No("there are more values at one size than at another")
    places = {b: a for a, b in zip(ours, theirs, strict=True)}
    if any(mine.size > twin.size for twin, mine in places.items()):
        raise No("an array is larger at a smaller size")
    offsets = {places[root]: offset for root, offset in top.plan.offsets.items()}
    code = Code(program, Plan(offsets, top.plan.size), top.isa, top.threads, replay)
    for node, twin in zip(program.nodes, top.program.nodes, strict=True):
        if "scratch" in twin.attrs:
            node.attrs["scratch"] = twin.attrs["scratch"]
    texts = bodies(code)
    if replay.place != len(replay.kept):
        raise No("there are fewer choices at one size than at another")
    return _Written(code, texts, [group(code, node) for node in program.nodes])


def _roots(program: Program) -> list[Value]:
    """Every value that has memory of its own, in the order in which nodes touch it."""
    found: dict[Value, None] = dict.fromkeys(program.inputs)
    for node in program.nodes:
        for value in (node.out, *node.reads()):
            if value.root.const is None:
                found.setdefault(value.root)
    return list(found)


def _share_constants(program: Program, top: Program) -> None:
    """Constants become those of the greatest sizes, or the corner of one that lies in it."""
    if [node.kind for node in program.nodes] != [node.kind for node in top.nodes]:
        raise No("the nodes differ between sizes")
    known: dict[Value, Value] = {}

    def shared(value: Value, twin: Value) -> Value:
        if value.root.const is None:
            return value
        if value not in known:
            known[value] = _corner(value, twin)
        return known[value]

    for node, twin in zip(program.nodes, top.nodes, strict=True):
        node.ins = [shared(a, b) for a, b in zip(node.ins, twin.ins, strict=True)]
        if node.expr is not None:
            assert twin.expr is not None
            others = leaves(twin.expr)
            node.expr = replace(
                node.expr,
                lambda leaf, others=others: (  # type: ignore[misc]
                    Load(shared(leaf.value, next(others).value)) if isinstance(leaf, Load) else leaf
                ),
            )
        for name, array in node.attrs.items():
            if isinstance(array, np.ndarray):
                if not _alike(array, twin.attrs[name]):
                    raise No(f"{node.names[-1]}: its {name} depend on the sizes")
                node.attrs[name] = twin.attrs[name]


def _corner(value: Value, twin: Value) -> Value:
    a, b = value.root.const, twin.root.const
    if a is None or b is None or (value.base is None) != (twin.base is None):
        raise No("a constant at one size is none at another")
    if a.shape == b.shape and _alike(a, b):
        if value.base is None:
            return twin
        return Value(
            value.shape, value.dtype, value.name, None, twin.root, value.offset, value.steps
        )
    inside = a.ndim == b.ndim and all(n <= m for n, m in zip(a.shape, b.shape, strict=True))
    if value.base is None and inside and _alike(a, b[tuple(slice(n) for n in a.shape)]):
        return view(twin, a.shape, contiguous(b.shape))
    raise No(f"the contents of a constant of shape {list(a.shape)} depend on the sizes")


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes())


def _equal(one: Code, other: Code) -> bool:
    """Both have packed the same weights in the same places."""
    mine, theirs = one.weights.arrays, other.weights.arrays
    return len(mine) == len(theirs) and all(
        a == b and _alike(x, y) for (a, x), (b, y) in zip(mine, theirs, strict=True)
    )


def _merged_group(grid: _Grid, groups: Sequence[dict[str, object]]) -> dict[str, object]:
    """What describe() tells, flops and bytes as terms."""
    numbers = {
        name: grid.terms(tuple(int(g[name]) for g in groups))  # type: ignore[call-overload]
        for name in ("flops", "bytes")
    }
    return groups[0] | numbers


@dataclass(frozen=True)
class _Grid:
    """The sizes at which the model is written: `fit` for each dim, all combinations of them, and
    `held`, at which what was found must hold.
    """

    names: tuple[str, ...]
    fit: tuple[tuple[int, ...], ...]
    held: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, dims: Sequence[Dim]) -> _Grid:
        sizes = [_primes(dim) for dim in dims]
        fit = tuple(tuple(found[:3] if len(found) > 3 else found[:2]) for found in sizes)
        held = tuple(found[-1] for found in sizes)
        middle = tuple(found[len(found) // 2] for found in sizes)
        return cls(tuple(dim.name for dim in dims), fit, tuple({held: 0, middle: 0}))

    def _all(self) -> list[tuple[int, ...]]:
        return [*product(*self.fit), *(p for p in self.held if p not in set(product(*self.fit)))]

    def points(self) -> list[Point]:
        """All of them, by the names of the dims."""
        return [dict(zip(self.names, sizes, strict=True)) for sizes in self._all()]

    def terms(self, values: tuple[int, ...]) -> int | Terms:
        """The polynomial through the values at points(); a number where they are all the same."""
        if len(set(values)) == 1:
            return values[0]
        exponents = list(product(*(range(len(sizes)) for sizes in self.fit)))
        fit = list(product(*self.fit))
        rows = [[prod(s**e for s, e in zip(p, x, strict=True)) for x in exponents] for p in fit]
        found = _solved(rows, list(values[: len(fit)]))
        if any(f.denominator != 1 for f in found):
            raise No(f"a number is no polynomial of the sizes: {values}")
        terms = tuple((int(f), *x) for f, x in zip(found, exponents, strict=True) if f)
        for point, value in zip(self._all(), values, strict=True):
            if value != evaluate(terms, point):
                raise No(f"a number is no polynomial of the sizes: {values}")
        return terms

    def spec(self, specs: Sequence[dict[str, object]]) -> dict[str, object]:
        """An output's type and shape, its axes as terms."""
        shapes: list[list[int]] = [s["shape"] for s in specs]  # type: ignore[misc]
        return specs[0] | {"shape": [self.terms(axes) for axes in zip(*shapes, strict=True)]}

    def text(self, texts: Sequence[str]) -> str:
        """One text for all points, numbers that differ written as polynomials of S0, S1."""
        known: dict[tuple[str, ...], str] = {}
        streams = [_TOKEN.findall(text) for text in texts]
        if len({len(stream) for stream in streams}) != 1:
            raise No("the code of a group differs between sizes")
        words = []
        for word in zip(*streams, strict=True):
            if len(set(word)) == 1:
                words.append(word[0])
                continue
            if word not in known:
                if not all(w.rstrip("L").isdigit() for w in word):
                    raise No(f"the code of a group differs between sizes: {word}")
                found = self.terms(tuple(int(w.rstrip("L")) for w in word))
                assert not isinstance(found, int)
                known[word] = _cpp(found)
            words.append(known[word])
        merged = "".join(words)
        if _SHAPE.search(merged):
            raise No("the shape of a kernel depends on the sizes")
        lines = [
            line.replace("static constexpr", "const") if re.search(r"\bS\d\b", line) else line
            for line in merged.splitlines()
        ]
        return "\n".join([*lines, ""])


def _primes(dim: Dim) -> list[int]:
    """Up to four odd primes within the dim's range, well apart, the greatest last."""
    inside = range(max(3, dim.min), dim.max + 1)
    found = [n for n in inside if n % 2 and all(n % d for d in range(3, int(n**0.5) + 1, 2))]
    if len(found) < 3:
        raise No(f"{dim.name} from {dim.min} to {dim.max} is too small a range")
    wanted = np.linspace(0, len(found) - 1, 4 if len(found) > 3 else 3)
    return [found[int(place)] for place in wanted]


def _solved(rows: list[list[int]], values: list[int]) -> list[Fraction]:
    """The exact solution of a small linear system, by Gauss and Jordan."""
    size = len(rows)
    table = [[Fraction(n) for n in (*row, value)] for row, value in zip(rows, values, strict=True)]
    for column in range(size):
        pivot = next(i for i in range(column, size) if table[i][column])
        table[column], table[pivot] = table[pivot], table[column]
        table[column] = [n / table[column][column] for n in table[column]]
        for i in range(size):
            if i != column and table[i][column]:
                table[i] = [
                    a - table[i][column] * b for a, b in zip(table[i], table[column], strict=True)
                ]
    return [row[-1] for row in table]


def evaluate(number: int | Terms, sizes: Sequence[int]) -> int:
    """A number or its terms at given sizes.

    Example:
        >>> evaluate(((3, 1, 0), (2, 0, 1)), (5, 7))
        29
    """
    if isinstance(number, int):
        return number
    return sum(c * prod(s**e for s, e in zip(sizes, x, strict=True)) for c, *x in number)


def _cpp(terms: Terms) -> str:
    words = []
    for factor, *exponents in terms:
        sizes = [f"S{place}" for place, e in enumerate(exponents) for _ in range(e)]
        words.append(" * ".join([*([str(factor)] if factor != 1 or not sizes else []), *sizes]))
    return f"({' + '.join(words)})"
