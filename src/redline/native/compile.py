"""The whole way: ONNX graph -> nodes -> fused -> laid out -> C++ -> shared object and weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir

from redline import knobs
from redline.native import expand, toolchain
from redline.native.emit import Sources, emit
from redline.native.fuse import fuse
from redline.native.ir import Program
from redline.native.isa import Isa
from redline.native.layout import Layouts
from redline.native.read import read
from redline.native.winograd import choose


@dataclass(frozen=True)
class Compiled:
    """What a compilation wrote, and what there is to tell of it."""

    program: Program
    sources: Sources


def compile_graph(
    model: onnx_ir.Model, isa: Isa, threads: int, folder: Path, *, winograd: bool = False
) -> Compiled:
    """Write "model.so" and "weights.bin" into `folder`.

    `winograd` allows Winograd's F(4x4, 3x3) where it pays. REDLINE_DUMP names a folder that gets
    the C++ as well.

    Raises:
        RefusedError: an operator or shape that the compiler has no kernel for.
        BuildError: the C++ compiler failed.

    Example:
        >>> compile_graph(onnx_ir.load("net.onnx"), isa.get("avx2"), 2, Path("out"))
    """
    program = fuse(read(model))
    if winograd:
        program = choose(program, isa.lanes)
    program = expand.choose(program, isa.lanes)
    program = Layouts(program, isa.lanes).run()
    sources = emit(program, isa, threads)
    dump = knobs.text("REDLINE_DUMP")
    if dump:
        place = Path(dump)
        place.mkdir(parents=True, exist_ok=True)
        for name, text in sources.files.items():
            (place / name).write_text(text, encoding="utf-8")
    toolchain.build(sources.files, isa, folder / "model.so")
    (folder / "weights.bin").write_bytes(sources.weights)
    return Compiled(program, sources)
