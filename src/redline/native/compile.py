"""The whole way: ONNX graph -> nodes -> fused -> laid out -> C++ -> shared object and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir

from redline.errors import RefusedError
from redline.native import expand, schedules, toolchain
from redline.native.attention import fuse_attention
from redline.native.debug import Trace
from redline.native.emit import Sources, emit
from redline.native.free import Point, emit_free
from redline.native.fuse import fuse
from redline.native.ir import No, Program
from redline.native.isa import Isa
from redline.native.layout import Layouts
from redline.native.read import read
from redline.native.squeeze import squeeze
from redline.native.tune import Choices, key, space, tune
from redline.native.winograd import choose
from redline.signature import Dim


@dataclass(frozen=True)
class Compiled:
    """What a compilation wrote, and what there is to tell of it."""

    program: Program
    sources: Sources


def compile_graph(
    model: onnx_ir.Model,
    isa: Isa,
    threads: int,
    folder: Path,
    *,
    winograd: bool = False,
    choices: Choices | None = None,
) -> Compiled:
    """Write "model.so" and "weights.bin" into `folder`.

    `winograd` allows Winograd's convolutions where they pay; `choices` are what tune_graph() found.
    REDLINE_DUMP names a folder that gets the C++ as well, and REDLINE_DEBUG=2 to 5 tells what each
    pass did.

    Raises:
        RefusedError: an operator or shape that the compiler has no kernel for.
        BuildError: the C++ compiler failed.

    Example:
        >>> compile_graph(onnx_ir.load("net.onnx"), isa.get("avx2"), 2, Path("out"))
    """
    trace = Trace()
    program, sources = lower(model, isa, threads, winograd=winograd, choices=choices, trace=trace)
    if trace.level >= 5 and trace.folder:
        toolchain.assemble(sources.files, isa, trace.folder)
    toolchain.build(sources.files, isa, folder / "model.so")
    trace.say(2, f"build: {folder / 'model.so'}")
    (folder / "weights.bin").write_bytes(sources.weights)
    return Compiled(program, sources)


def lower(
    model: onnx_ir.Model,
    isa: Isa,
    threads: int,
    *,
    winograd: bool = False,
    choices: Choices | None = None,
    trace: Trace | None = None,
) -> tuple[Program, Sources]:
    """The passes from the graph to C++; nothing is compiled, and `trace` tells of each.

    Raises:
        RefusedError: as compile_graph().

    Example:
        >>> program, sources = lower(onnx_ir.load("net.onnx"), isa.get("avx2"), 2)
    """
    trace = trace or Trace()
    program = read(model)
    trace.done("read", program)
    program = fuse_attention(fuse(program))
    trace.done("fuse", program)
    for node in program.nodes:
        node.attrs["way"] = (choices or {}).get(key(node), {})
    if winograd:
        program = choose(program, isa.lanes)
        trace.done("winograd", program)
    program = expand.choose(program, isa.lanes)
    trace.done("expand", program)
    program = squeeze(program, isa.lanes, threads)
    trace.done("squeeze", program)
    program = Layouts(program, isa.lanes).run()
    trace.done("layout", program)
    sources = emit(program, isa, threads)
    trace.planned(sources.plan)
    trace.sources(sources.files)
    return program, sources


def compile_free(
    model: onnx_ir.Model,
    shapes: Sequence[tuple[int | str, ...]],
    dims: Sequence[Dim],
    isa: Isa,
    threads: int,
    folder: Path,
) -> Compiled:
    """As compile_graph(), once for every size within the ranges of `dims`.

    Args:
        shapes: of the model's inputs; a str in them names a dim.

    Raises:
        RefusedError: also where a kernel would depend on a size.
        BuildError: the C++ compiler failed.

    Example:
        >>> dims = [Dim("seq", 1, 128, 512)]
        >>> compile_free(model, [(1, "seq")], dims, isa.get("avx2"), 2, Path("out"))
    """
    trace = Trace()
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]

    def at(point: Point) -> Program:
        for value, shape in zip(inputs, shapes, strict=True):
            value.shape = onnx_ir.Shape([point[n] if isinstance(n, str) else n for n in shape])
        program = fuse_attention(fuse(read(model)))
        trace.done(f"read and fuse at {dict(point)}", program)
        return program

    try:
        sources = emit_free(at, shapes, dims, isa, threads)
    except No as reason:
        raise RefusedError(f"sizes cannot be free: {reason}") from reason
    trace.sources(sources.files)
    toolchain.build(sources.files, isa, folder / "model.so")
    (folder / "weights.bin").write_bytes(sources.weights)
    return Compiled(at({dim.name: dim.opt for dim in dims}), sources)


def tune_graph(
    model: onnx_ir.Model,
    isa: Isa,
    threads: int,
    inputs: Sequence[np.ndarray],
    *,
    winograd: bool = False,
    seconds: float = 40.0,
    fresh: bool = False,
) -> Choices:
    """The schedules that run this model fastest on this machine, timed on `inputs`.

    What was found is kept (schedules.py): the same network with other weights is not timed again,
    unless `fresh`.

    Example:
        >>> choices = tune_graph(model, isa.get("avx2"), 2, [x])
        >>> compile_graph(model, isa.get("avx2"), 2, Path("out"), choices=choices)
    """

    def build(choices: Choices, folder: Path) -> None:
        compile_graph(model, isa, threads, folder, winograd=winograd, choices=choices)

    program = fuse_attention(fuse(read(model)))
    units = space(program, isa, winograd)
    if not units:
        return {}
    path = schedules.place(program, units, isa, threads, winograd)
    choices = None if fresh else schedules.known(path, units)
    if choices is None:
        choices = tune(units, build, inputs, seconds)
        schedules.keep(path, choices)
    return choices
