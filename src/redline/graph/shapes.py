"""The shape of every value of a graph, with the dynamic dims bound to sizes."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir
from onnx_ir.passes import common

from redline.errors import InputError
from redline.graph.serialize import clean

Sizes = tuple[int, ...]


def bind(graph: onnx_ir.Model, sizes: Mapping[str, Sizes]) -> onnx_ir.Model:
    """A cleaned copy whose inputs have these sizes, with shapes inferred as far as they can be.

    Args:
        sizes: shape of each input by its name in the graph; inputs left out stay as they are.

    Raises:
        InputError: a fixed dim of the graph has another size, or the rank differs.

    Example:
        >>> bind(graph, {"x": (8, 3, 224, 224)}).graph.outputs[0].shape
        Shape([8, 1000])
    """
    copy = clean(graph)
    symbols = _fix_inputs(copy, sizes)
    for part in copy.graphs():
        for node in part:
            for value in node.outputs:
                value.shape = _evaluate(value.shape, symbols)
    _infer(copy)
    return copy


def infer_shapes(graph: onnx_ir.Model, sizes: Mapping[str, Sizes]) -> dict[str, onnx_ir.Value]:
    """Name -> value with its shape and dtype, for every value; see `bind`.

    Where ONNX's own inference stops at shapes that the graph computes, the constant parts are
    folded and it is tried again. What stays unknown has a shape that is None or not static.
    """
    copy = bind(graph, sizes)
    values = _values(copy)
    if all(is_static(value) for value in values.values()):
        return values
    from onnxscript import optimizer

    optimizer.fold_constants(copy, onnx_shape_inference=True)
    for value in (v for node in copy.graph for v in node.outputs):
        if not is_static(value):
            value.shape = None
    _infer(copy)
    return values | {k: v for k, v in _values(copy).items() if is_static(v)}


def is_static(value: onnx_ir.Value) -> bool:
    """Whether every size of the value is known."""
    return value.shape is not None and value.shape.is_static()


def _fix_inputs(graph: onnx_ir.Model, sizes: Mapping[str, Sizes]) -> dict[str, int]:
    """Write sizes into the inputs; returns what each symbol stands for."""
    symbols: dict[str, int] = {}
    for value in graph.graph.inputs:
        given = sizes.get(value.name or "")
        if given is None:
            continue
        known = value.shape.dims if value.shape is not None else (None,) * len(given)
        if len(known) != len(given):
            raise InputError(f"input {value.name!r} has {len(known)} axes, got {len(given)}")
        for axis, (dim, size) in enumerate(zip(known, given, strict=True)):
            if isinstance(dim, int) and dim != size:
                raise InputError(f"input {value.name!r} has size {dim} on axis {axis}, got {size}")
            if isinstance(dim, onnx_ir.SymbolicDim) and dim.value:
                symbols[dim.value] = size
        value.shape = onnx_ir.Shape(given)
    return symbols


def _evaluate(shape: onnx_ir.Shape | None, symbols: Mapping[str, int]) -> onnx_ir.Shape | None:
    if shape is None or shape.is_static():
        return shape
    dims: list[int | None] = []
    for dim in shape:
        if isinstance(dim, int):
            dims.append(dim)
            continue
        size = symbols.get(dim.value or "")
        found = dim.evaluate(symbols) if size is None else size
        dims.append(found if isinstance(found, int) else None)
    return onnx_ir.Shape(dims)


def _infer(graph: onnx_ir.Model) -> None:
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(graph)


def _values(graph: onnx_ir.Model) -> dict[str, onnx_ir.Value]:
    found: dict[str, onnx_ir.Value] = {}
    for part in graph.graphs():
        produced = (value for node in part for value in node.outputs)
        for value in (*part.inputs, *part.initializers.values(), *produced):
            if value.name:
                found[value.name] = value
    return found
