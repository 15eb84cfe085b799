"""torch.export, then torch.onnx.export, without a word on stdout or stderr."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir
import torch

from redline.capture.dynamic import Axes
from redline.capture.failures import line_above
from redline.graph.opset import OPSET
from redline.signature import Tree
from redline.tree import as_call, flatten, unflatten


class Flat(torch.nn.Module):
    """A module that takes its tensor leaves by position and returns a tuple of tensor leaves."""

    def __init__(self, module: torch.nn.Module, input_tree: Tree, output_tree: Tree) -> None:
        super().__init__()
        self.module = module
        self.input_tree = input_tree
        self.output_tree = output_tree

    def forward(self, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = as_call(unflatten(self.input_tree, leaves))
        return tuple(flatten(self.output_tree, self.module(*args, **kwargs)))


def to_program(
    flat: Flat, leaves: Sequence[torch.Tensor], axes: Axes
) -> torch.export.ExportedProgram:
    """Capture with torch.export; raises whatever torch raises."""
    with quiet(), torch.no_grad():
        return torch.export.export(
            flat, tuple(leaves), dynamic_shapes=_dynamic_shapes(axes), strict=False
        )


def fixed_at(flat: Flat, leaves: Sequence[torch.Tensor], axes: Axes) -> str:
    """The user's line that fixes a dynamic axis: where torch logs its first guard on a size."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level, lines = logger.level, []

    def note(record: logging.LogRecord) -> bool:
        if "[guard added]" in record.getMessage():
            lines.append(line_above())
        return False  # nothing of it is printed

    logger.addFilter(note)
    logger.setLevel(logging.INFO)
    try:
        with contextlib.suppress(Exception):
            to_program(flat, leaves, axes)
    finally:
        logger.removeFilter(note)
        logger.setLevel(level)
    return next(filter(None, lines), "")


def _dynamic_shapes(axes: Axes) -> dict[str, Any] | None:
    named = {dim.name: torch.export.Dim(dim.name, min=dim.min, max=dim.max) for dim in axes.dims}
    shapes = tuple({axis: named[name] for axis, name in place.items()} for place in axes.places)
    return {"leaves": shapes} if axes.dims else None


def to_graph(
    program: torch.export.ExportedProgram,
    axes: Axes,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> onnx_ir.Model:
    """Translate a program of a Flat to ONNX under the given names; raises what torch raises."""
    with quiet(), torch.no_grad():
        exported = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=OPSET)
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model: onnx_ir.Model = exported.model
    rename(model, axes, inputs, outputs)
    return model


def rename(model: onnx_ir.Model, axes: Axes, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs, outputs and dynamic dims the names of the signature, in place."""
    graph = model.graph
    if len(graph.inputs) != len(inputs) or len(graph.outputs) != len(outputs):
        raise RuntimeError(
            f"the exporter made {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, "
            f"the model has {len(inputs)} and {len(outputs)}"
        )
    _own_outputs(graph)
    taken = {*inputs, *outputs}
    for value in _values(graph):
        if value.name in taken:
            value.name = f"{value.name}_inner"
    for value, name in zip([*graph.inputs, *graph.outputs], [*inputs, *outputs], strict=True):
        value.name = name
    _rename_dims(graph, axes)


def _own_outputs(graph: onnx_ir.Graph) -> None:
    """An output that is also an input, a weight or another output gets a value of its own."""
    seen: set[int] = set()
    for place, value in enumerate(graph.outputs):
        if value.producer() is None or id(value) in seen:
            node = onnx_ir.node("Identity", [value])
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[place] = node.outputs[0]
        seen.add(id(value))


def _values(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _rename_dims(graph: onnx_ir.Graph, axes: Axes) -> None:
    """torch's symbols (s31, 2*s31) -> the user's names (batch, 2*batch) everywhere."""
    names: dict[str, str] = {}
    for value, place in zip(graph.inputs, axes.places, strict=True):
        for axis, name in place.items():
            if value.shape is not None:
                names[str(value.shape[axis])] = name
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in _values(graph):
        for axis, size in enumerate(value.shape or ()):
            if not isinstance(size, int):
                text = pattern.sub(lambda match: names[match[0]], str(size))
                _set_dim(value, axis, text)


def _set_dim(value: onnx_ir.Value, axis: int, text: str) -> None:
    shape = onnx_ir.Shape(value.shape or ())
    shape[axis] = text
    value.shape = shape


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that an exporter says reaches the user: what matters comes back as an exception."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    sink = io.StringIO()
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(sink),
        contextlib.redirect_stderr(sink),
    ):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
