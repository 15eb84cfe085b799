"""Redline's own compiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from redline import machine
from redline.backends.base import Candidate, Missing, Source, Traits
from redline.engine.manifest import Part
from redline.errors import RefusedError
from redline.native import isa, toolchain

GENERATION = "2"  # one more whenever the kernels change their speed or their numbers


class NativeBackend:
    """Settings: threads, and whether 3x3 convolutions may use Winograd's F(4x4, 3x3)."""

    name = "native"
    wants: Literal["graph", "program", "module"] = "graph"
    local = False

    def missing(self) -> Missing | None:
        if toolchain.compiler() is None:
            return Missing("there is no C++ compiler", "apt-get install g++")
        return None

    def version(self) -> str:
        return f"{GENERATION}+{toolchain.compiler_version()}"

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        if not traits.has_graph:
            raise RefusedError("the model has no ONNX graph", hint="see the notes on its export")
        if traits.signature.dims:
            raise RefusedError("dynamic dims: the compiler needs every size")
        many = traits.threads
        found = [Candidate("native", {"threads": many, "winograd": False}, rank=30)]
        if "Conv" in traits.operators:
            found.append(Candidate("native", {"threads": many, "winograd": True}, rank=31))
        if many > 1:
            found.append(Candidate("native", {"threads": 1, "winograd": False}, rank=32))
        return found

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        import onnx_ir

        from redline.native.compile import compile_graph

        if source.graph is None:
            raise RefusedError("the model has no ONNX graph")
        target = isa.usable(sorted(machine.isa_flags()))[0]
        made = compile_graph(
            onnx_ir.load(source.graph),
            target,
            int(candidate.setting["threads"]),
            folder,
            winograd=bool(candidate.setting["winograd"]),
        )
        kinds = Counter(node.kind for node in made.program.nodes)
        return Part(
            "native",
            candidate.setting,
            files=("model.so", "weights.bin"),
            code=True,
            isa=target.needs,
            operators=dict(kinds),
            tolerance_class="winograd-f43" if "winograd" in kinds else "fp32",
        )
