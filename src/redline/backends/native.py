"""Redline's own compiler."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from redline import knobs, machine
from redline.backends.base import Candidate, Missing, Source, Traits
from redline.backends.native_segments import lacking, segments
from redline.engine.manifest import Part, Setting
from redline.errors import RefusedError
from redline.native import isa, toolchain
from redline.signature import Signature

if TYPE_CHECKING:
    import onnx_ir

GENERATION = "6"  # one more whenever the kernels change their speed or their numbers
_MOST = 4  # builds of one model


class NativeBackend:
    """Settings: threads, and whether 3x3 convolutions may use Winograd's F(4x4, 3x3)."""

    name = "native"
    wants: Literal["graph", "program", "module"] = "graph"
    local = False

    def missing(self) -> Missing | None:
        if toolchain.compiler() is None:
            return Missing("there is no C++ compiler", "apt-get install g++")
        return None

    def lacks(self, precision: str) -> str:
        if precision == "int8":
            return ""
        return "its integer kernels are for int8 alone: it would compute the graph in fp32"

    def version(self) -> str:
        return f"{GENERATION}+{toolchain.compiler_version()}"

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        if not traits.has_graph:
            raise RefusedError("the model has no ONNX graph", hint="see the notes on its export")
        many = traits.threads
        if not _few(traits.signature):
            return _ranges(traits)
        if not traits.signature.dims and lacking(list(traits.operators)):
            winograd = "Conv" in traits.operators
            setting: Setting = {"threads": many, "winograd": winograd, "partition": True}
            return [Candidate("native", setting, rank=34)]
        found = [Candidate("native", {"threads": many, "winograd": False}, rank=30)]
        if "Conv" in traits.operators:
            found.append(Candidate("native", {"threads": many, "winograd": True}, rank=31))
        if knobs.number("REDLINE_TUNE") and _worth_tuning(traits):
            wanted: Setting = {
                "threads": many,
                "winograd": "Conv" in traits.operators,
                "tuned": True,
            }
            found.append(Candidate("native", wanted, rank=33))
        if many > 1:
            found.append(Candidate("native", {"threads": 1, "winograd": False}, rank=32))
        return found

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        import onnx_ir

        from redline.native.compile import compile_graph, tune_graph
        from redline.native.winograd import tolerance_class

        if source.graph is None:
            raise RefusedError("the model has no ONNX graph")
        whole = candidate.precision != "fp32"
        target = isa.usable(sorted(machine.isa_flags()), whole=whole)[0]
        if candidate.setting.get("free"):
            return _free(source, target, candidate, folder)
        if candidate.setting.get("partition"):
            return segments(onnx_ir.load(source.graph), target, candidate, folder)
        kinds: Counter[str] = Counter()
        tolerance = "fp32"
        files: list[str] = []
        for point in points(source.signature):
            model = onnx_ir.load(source.graph)
            _fix(model, source.signature, point)
            inputs = [np.resize(array, shape) for array, shape in _sized(source, point)]
            many, winograd = int(candidate.setting["threads"]), bool(candidate.setting["winograd"])
            choices = None
            if candidate.setting.get("tuned"):
                choices = tune_graph(
                    model, target, many, inputs, winograd=winograd, fresh=source.fresh
                )
            try:
                made = compile_graph(
                    model, target, many, folder, winograd=winograd, choices=choices
                )
            except RefusedError as refused:
                if point or winograd or candidate.setting.get("tuned"):
                    raise
                return _cut(source.graph, target, candidate, folder, refused)
            nodes = made.program.nodes
            if whole and not any(node.whole for node in nodes):
                raise RefusedError("none of its layers has a form in whole numbers here")
            kinds = Counter(node.kind for node in nodes)
            tolerance = tolerance_class(nodes)
            files += _named(folder, point)
        return Part(
            "native",
            candidate.setting,
            files=tuple(files),
            code=True,
            isa=target.needs,
            operators=dict(kinds),
            tolerance_class=tolerance,
        )


def _few(signature: Signature) -> bool:
    """The dims take so few values that each gets a build of its own."""
    return prod(dim.max - dim.min + 1 for dim in signature.dims) <= _MOST


def _ranges(traits: Traits) -> list[Candidate]:
    """Where the dims take many values: one build for all of them, and a batch in pieces."""
    many, found = traits.threads, []
    try:
        points(traits.signature)
        found.append(Candidate("native", {"threads": many, "winograd": False}, rank=30))
        if "Conv" in traits.operators:
            found.append(Candidate("native", {"threads": many, "winograd": True}, rank=31))
        if many > 1:
            found.append(Candidate("native", {"threads": 1, "winograd": False}, rank=32))
    except RefusedError:
        if "Conv" in traits.operators:  # made for one size of image
            raise
    if "Conv" not in traits.operators:
        found.append(
            Candidate("native", {"threads": many, "winograd": False, "free": True}, rank=30)
        )
    return found


def _cut(
    graph: Path, target: isa.Isa, candidate: Candidate, folder: Path, refused: RefusedError
) -> Part:
    """Every operator type is taken, but one node is not, such as a shape that depends on values."""
    import onnx_ir

    setting = candidate.setting | {"partition": True}
    try:
        return segments(onnx_ir.load(graph), target, replace(candidate, setting=setting), folder)
    except RefusedError:
        raise refused from None


def _free(source: Source, target: isa.Isa, candidate: Candidate, folder: Path) -> Part:
    """One build for every size within the ranges of the dims."""
    import onnx_ir

    from redline.native.compile import compile_free

    assert source.graph is not None
    signature, threads = source.signature, int(candidate.setting["threads"])
    shapes = [spec.shape for spec in signature.inputs]
    model = onnx_ir.load(source.graph)
    made = compile_free(model, shapes, signature.dims, target, threads, folder)
    return Part(
        "native",
        candidate.setting,
        files=("model.so", "weights.bin"),
        code=True,
        isa=target.needs,
        operators=dict(Counter(node.kind for node in made.program.nodes)),
        tolerance_class="fp32",
    )


def points(signature: Signature) -> list[dict[str, int]]:
    """The sizes of the dynamic dims to compile for, one build for each; [{}] where all are fixed.

    A batch that may be any size is run in pieces of the sizes there are builds for; which is right
    as long as its items do not see each other, and the cases at both ends hold it to that.

    Raises:
        RefusedError: the dims take more values than it is worth to compile for.
    """
    dims = signature.dims
    if _few(signature):
        values = [range(dim.min, dim.max + 1) for dim in dims]
        names = [dim.name for dim in dims]
        return [dict(zip(names, sizes, strict=True)) for sizes in product(*values)]
    if len(dims) == 1 and _is_batch(signature, dims[0].name):
        return [{dims[0].name: size} for size in sorted({1, dims[0].opt, dims[0].max})]
    told = ", ".join(f"{dim.name} from {dim.min} to {dim.max}" for dim in dims)
    raise RefusedError(
        f"dynamic {told}: a convolution is compiled for one size of image",
        hint="only a batch, the first axis of every input and output, may have a wide range here",
    )


def _worth_tuning(traits: Traits) -> bool:
    """Something in it has schedules, and every size is known."""
    tunable = {"Conv", "Gemm", "MatMul"} & set(traits.operators)
    return bool(tunable) and not traits.signature.dims


def _sized(source: Source, point: dict[str, int]) -> list[tuple[np.ndarray, tuple[int, ...]]]:
    """The example inputs, and the shape that each has at a point."""
    specs = source.signature.inputs
    return [
        (array, tuple(point[axis] if isinstance(axis, str) else axis for axis in spec.shape))
        for array, spec in zip(source.example, specs, strict=True)
    ]


def _is_batch(signature: Signature, name: str) -> bool:
    """The dim is the first axis of everything, and nowhere else."""
    shapes = [spec.shape for spec in (*signature.inputs, *signature.outputs)]
    return all(
        shape and shape[0] == name and all(isinstance(axis, int) for axis in shape[1:])
        for shape in shapes
    )


def _fix(model: onnx_ir.Model, signature: Signature, point: dict[str, int]) -> None:
    """Put the point's sizes in the place of the graph's free dims."""
    import onnx_ir

    if not point:
        return
    inputs = [value for value in model.graph.inputs if value.name not in model.graph.initializers]
    for value, spec in zip(inputs, signature.inputs, strict=True):
        sizes = [point[axis] if isinstance(axis, str) else axis for axis in spec.shape]
        value.shape = onnx_ir.Shape(sizes)


def _named(folder: Path, point: dict[str, int]) -> list[str]:
    """Give the two files of a build names of its own, and say them."""
    names = ["model.so", "weights.bin"]
    if not point:
        return names
    tag = "-".join(f"{name}{size}" for name, size in point.items())
    found = []
    for number, name in enumerate(names):
        stem, suffix = name.split(".")
        found.append(f"{stem}-{re.sub(r'[^0-9A-Za-z-]', '_', tag)}.{suffix}")
        (folder / name).replace(folder / found[number])
    return found
