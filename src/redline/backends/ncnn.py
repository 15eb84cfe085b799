"""ncnn through pnnx: Winograd kernels on the CPU, the one to beat where 3x3 convolutions rule."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from redline.backends.base import Candidate, Missing, Source, Traits
from redline.engine.manifest import Part
from redline.errors import BuildError, RefusedError
from redline.signature import Signature

_DTYPES = {"float32": "f32", "int64": "i64", "int32": "i32"}
_TIMEOUT = 600  # seconds for pnnx; the caller's own limit is usually tighter


class NcnnBackend:
    """Settings: threads, Winograd on or off; Winograd F(6x6,3x3) is a looser tolerance class."""

    name = "ncnn"
    wants: Literal["graph", "program", "module"] = "graph"
    local = False

    def missing(self) -> Missing | None:
        try:
            version("ncnn")
            version("pnnx")
        except PackageNotFoundError as error:
            return Missing(f"{error.name} is not installed", "pip install 'redline[ncnn]'")
        return None

    def lacks(self, precision: str) -> str:
        return "its converter, pnnx, does not read quantised graphs"

    def version(self) -> str:
        return f"{version('ncnn')}+pnnx{version('pnnx')}"

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        if not traits.has_graph:
            raise RefusedError("the model has no ONNX graph", hint="see the notes on its export")
        _check(traits.signature)
        many = traits.threads
        if "Conv" not in traits.operators:
            return [Candidate("ncnn", {"threads": many, "winograd": False}, rank=30)]
        return [
            Candidate("ncnn", {"threads": many, "winograd": True}, rank=31),
            Candidate("ncnn", {"threads": many, "winograd": False}, rank=30),
        ]

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        if source.graph is None:
            raise RefusedError("the model has no ONNX graph")
        _check(source.signature)
        with tempfile.TemporaryDirectory() as work:
            _convert(source.graph, source.signature, Path(work))
            operators = _operators(Path(work) / "graph.ncnn.param")
            for suffix in ("param", "bin"):
                shutil.move(Path(work) / f"graph.ncnn.{suffix}", folder / f"model.{suffix}")
        winograd = bool(candidate.setting.get("winograd"))
        return Part(
            "ncnn",
            candidate.setting,
            files=("model.param", "model.bin"),
            needs={"ncnn": version("ncnn")},
            operators=operators,
            tolerance_class="winograd-f63" if winograd else "fp32",
        )


def _check(signature: Signature) -> None:
    """ncnn's tensors have no batch axis and few others, and come out as float32."""
    if signature.dims:
        names = ", ".join(dim.name for dim in signature.dims)
        raise RefusedError(f"pnnx fixes every size, but {names} may change")
    for spec in signature.inputs:
        if spec.dtype not in _DTYPES:
            raise RefusedError(
                f"input {spec.name!r} is {spec.dtype}; ncnn takes float32 and integers"
            )
        if len(spec.shape) > 4:
            raise RefusedError(f"input {spec.name!r} has {len(spec.shape)} axes; ncnn takes 4")
        if spec.shape and spec.shape[0] != 1:
            raise RefusedError(
                f"input {spec.name!r} has shape {spec.shape}; ncnn takes batch 1 only"
            )
    for spec in signature.outputs:
        if spec.dtype != "float32":
            raise RefusedError(f"output {spec.name!r} is {spec.dtype}; ncnn gives float32 only")


def _convert(graph: Path, signature: Signature, work: Path) -> None:
    """Run pnnx on a link to the graph, in a folder of its own: it writes beside what it reads."""
    (work / "graph.onnx").symlink_to(graph.resolve())
    shapes = [
        "[" + ",".join(str(axis) for axis in spec.shape) + "]" + _DTYPES[spec.dtype]
        for spec in signature.inputs
    ]
    command = [_pnnx(), "graph.onnx", f"inputshape={','.join(shapes)}", "fp16=0"]
    try:
        done = subprocess.run(
            command, cwd=work, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"pnnx did not finish within {_TIMEOUT} s") from None
    if done.returncode or not (work / "graph.ncnn.param").is_file():
        words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise BuildError(f"pnnx ended with status {done.returncode}: {words}")


def _pnnx() -> str:
    beside = Path(sys.executable).parent / "pnnx"
    found = str(beside) if beside.is_file() else shutil.which("pnnx")
    if not found:
        raise BuildError("the program pnnx is not there", hint="pip install --force-reinstall pnnx")
    return found


def _operators(param: Path) -> dict[str, int]:
    """Layers of a .param file: one a line after two lines of header, its type first.

    Raises:
        RefusedError: layers that pnnx wrote and ncnn does not have.
    """
    import ncnn

    layers = Counter(line.split()[0] for line in param.read_text().splitlines()[2:] if line.strip())
    foreign = sorted(kind for kind in layers if ncnn.layer_to_index(kind) < 0)
    if foreign:
        raise RefusedError(f"ncnn has no layer for {', '.join(foreign)}")
    return {kind: count for kind, count in layers.items() if kind not in ("Input", "Split")}
