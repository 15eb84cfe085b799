"""ExportedProgram, TorchScript, and what .pt files turn out to hold."""

from __future__ import annotations

import inspect
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch

from redline.capture.dynamic import Axes
from redline.capture.export import quiet, rename
from redline.capture.failures import explain
from redline.capture.module import capture_module
from redline.errors import InputError, ModelError, UnsafeError
from redline.graph.model import Model, Note
from redline.graph.opset import OPSET
from redline.graph.serialize import graph_hash


def load_pt2(path: Path, trust: bool) -> torch.export.ExportedProgram:
    """Open a .pt2 file, but only on request: torch.export.load may unpickle what is in it.

    Raises:
        UnsafeError: `trust` was not given.
        ModelError: it holds no exported program.
    """
    if not trust:
        raise UnsafeError(
            "a .pt2 file can run code when it is loaded",
            where=str(path),
            hint="if you made it yourself, pass trust=True (on the command line: --trust)",
        )
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:
        raise ModelError(f"torch.export.load cannot read it: {error}", where=str(path)) from error


def load_script(path: Path) -> torch.jit.ScriptModule:
    """Open a TorchScript archive; say what else a .pt file holds.

    Raises:
        ModelError: weights without a model, a pickled model, or no torch file at all.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                with quiet():
                    script: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                        path, map_location="cpu"
                    )
                return script
    raise _not_script(path)


def from_program(program: torch.export.ExportedProgram, example: Any, **options: Any) -> Model:
    """Capture an ExportedProgram; its own example and dynamic dims hold unless others are given."""
    with quiet():
        module = ByPosition(program)
    if example is None:
        example = program.example_inputs
    if example is None:
        raise InputError("the exported program holds no example inputs", hint="give example_inputs")
    options["name"] = options.get("name") or "exported program"
    options["dynamic"] = options.get("dynamic") or _ranges(program)
    options.pop("eval_mode", None)
    return capture_module(module, example, origin="exported-program", **options)


class ByPosition(torch.nn.Module):
    """A program's module that takes by name too what was exported by position."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self.inner = program.module()
        self.signature = inspect.signature(self.inner.forward)
        spec = program.call_spec.in_spec
        self.names = list(self.signature.parameters)[: spec.child(0).num_children if spec else 0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = [kwargs.pop(name) for name in self.names[len(args) :] if name in kwargs]
        return self.inner(*args, *given, **kwargs)


def from_script(module: torch.jit.ScriptModule, example: Any, **options: Any) -> Model:
    """Capture TorchScript: it runs as it is, its graph comes from the older ONNX exporter."""
    options["name"] = options.get("name") or module.original_name
    model = capture_module(module, example, origin="torchscript", **options)
    if model.graph is not None or model.signature.dims:
        return model
    inputs = tuple(torch.from_numpy(array) for array in model.example)
    try:
        graph = _trace_to_onnx(module, inputs, model)
    except Exception as error:
        note = explain(error, "torch.onnx.export of TorchScript")
        return replace(model, notes=(*model.notes, note))
    note = Note(
        "TorchScript was translated by the older ONNX exporter", hint="build the model in Python"
    )
    return replace(model, graph=graph, graph_hash=graph_hash(graph), notes=(note,))


def _trace_to_onnx(
    module: torch.jit.ScriptModule, inputs: tuple[torch.Tensor, ...], model: Model
) -> onnx_ir.Model:
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.no_grad():
        file = Path(folder) / "graph.onnx"
        torch.onnx.export(module, inputs, str(file), dynamo=False, opset_version=OPSET)
        graph = onnx_ir.serde.deserialize_model(onnx.load(file))
    names = [spec.name for spec in model.signature.inputs]
    outputs = [spec.name for spec in model.signature.outputs]
    rename(graph, Axes((), tuple({} for _ in names)), names, outputs)
    return graph


def _ranges(program: torch.export.ExportedProgram) -> Mapping[str, Any] | None:
    """The program's dynamic dims in the form of the `dynamic` argument."""
    wanted: dict[str, dict[int, tuple[str, int, int, int]]] = {}
    spans = {str(symbol): span for symbol, span in program.range_constraints.items()}
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in program.graph_signature.user_inputs:
            continue
        value = node.meta.get("val")
        for axis, size in enumerate(getattr(value, "shape", ())):
            span = spans.get(str(size))
            if isinstance(size, torch.SymInt) and span is not None:
                least = max(1, int(span.lower))
                most = int(span.upper) if int(span.upper) < 1 << 30 else max(64, 4 * least)
                opt = min(most, max(least, size.node.hint or least))
                wanted.setdefault(node.name, {})[axis] = (str(size), least, opt, most)
    return wanted or None


def _not_script(path: Path) -> ModelError:
    """What a .pt file holds instead of TorchScript, read without running anything in it."""
    try:
        held = torch.load(path, weights_only=True, mmap=True, map_location="meta")
    except Exception as error:
        return ModelError(
            f"not a TorchScript file: {type(error).__name__}",
            where=str(path),
            hint="if it is a whole pickled model, Redline will not unpickle it: build the model in "
            "Python, load_state_dict its weights, and pass the model",
        )
    count = len(held) if isinstance(held, Mapping) else 1
    return ModelError(
        f"holds weights ({count} entries), not a model",
        where=str(path),
        hint="build the module, load_state_dict(torch.load(path, weights_only=True)), and pass it "
        "(on the command line: pkg.module:factory)",
    )
