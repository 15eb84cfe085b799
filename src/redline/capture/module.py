"""A torch module -> Model: bind, run once, export, translate; what fails becomes a note."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from redline.capture import dynamic as dynamics
from redline.capture.bind import bind, check_device, check_mode
from redline.capture.dynamic import Axes
from redline.capture.export import Flat, fixed_at, to_graph, to_program
from redline.capture.failures import classify, explain
from redline.errors import InputError, ModelError, SignatureError, SpecializedAxisError
from redline.graph.model import Model, Note
from redline.graph.serialize import graph_hash
from redline.signature import Signature, TensorSpec, Tree
from redline.tree import as_call, describe, leaf_names, unflatten

_DTYPES = "float16, float32, float64, integers and bool"


def capture_module(
    module: torch.nn.Module,
    example: Any,
    *,
    dynamic: Mapping[str, Any] | None = None,
    name: str = "",
    origin: str = "module",
    eval_mode: bool = False,
) -> Model:
    """Capture a module with example inputs; see capture()."""
    given = bind(module, example)
    input_tree, leaves = describe(given)
    if not leaves:
        raise InputError("the example inputs hold no tensor", hint="give at least one tensor")
    check_device(module, leaves)
    trained = [part for part in module.modules() if part.training] if eval_mode else []
    if not eval_mode and origin != "exported-program":
        check_mode(module)
    for part in trained:
        part.training = False
    try:
        model = _capture(module, input_tree, leaves, dynamic, name or type(module).__name__, origin)
    finally:
        for part in trained:
            part.training = True
    if trained:
        note = Note(
            f"{len(trained)} parts of the model were in training mode; captured as in eval mode"
        )
        frozen = _frozen_copy(module)
        return replace(model, module=frozen, notes=(*model.notes, note))
    return model


def _capture(
    module: torch.nn.Module,
    input_tree: Tree,
    leaves: Sequence[torch.Tensor],
    dynamic: Mapping[str, Any] | None,
    name: str,
    origin: str,
) -> Model:
    names = leaf_names(input_tree)
    axes = dynamics.parse(dynamic, names, [tuple(leaf.shape) for leaf in leaves])
    opts = {dim.name: dim.opt for dim in axes.dims}
    example = [
        dynamics.resize(leaf, axes.shape(i, tuple(leaf.shape), opts))
        for i, leaf in enumerate(leaves)
    ]
    output_tree, outputs = _run(module, input_tree, example)
    output_names = _unique(leaf_names(output_tree, "output"), names)
    flat = Flat(module, input_tree, output_tree)
    sizes = dynamics.traced_sizes(axes)
    traced = [
        dynamics.resize(leaf, axes.shape(i, tuple(leaf.shape), sizes))
        for i, leaf in enumerate(leaves)
    ]
    program, graph, notes = _export(flat, traced, axes, names, output_names)
    signature = Signature(
        inputs=tuple(
            _spec(n, leaf, axes, i) for i, (n, leaf) in enumerate(zip(names, example, strict=True))
        ),
        outputs=_output_specs(output_names, outputs, flat, example, axes),
        input_tree=input_tree,
        output_tree=output_tree,
        dims=axes.dims,
    )
    return Model(
        name=name,
        origin=origin,
        signature=signature,
        example=tuple(np.array(leaf.numpy()) for leaf in example),
        graph_hash=graph_hash(graph) if graph is not None else module_hash(module),
        graph=graph,
        program=program,
        module=module,
        notes=tuple(notes),
    )


def _export(
    flat: Flat,
    leaves: Sequence[torch.Tensor],
    axes: Axes,
    names: Sequence[str],
    output_names: Sequence[str],
) -> tuple[Any, Any, list[Note]]:
    """(program, graph, notes): each of the first two may be None, with a note that says why."""
    try:
        program = to_program(flat, leaves, axes)
    except Exception as error:
        note = explain(error, "torch.export")
        if axes.dims and classify(error) == "constraints-violated":
            raise SpecializedAxisError(
                note.what,
                where=note.where or fixed_at(flat, leaves, axes),
                hint=_suggestion(error, note),
            ) from error
        return None, None, [note]
    if axes.dims:
        dynamics.check_ends(axes, leaves, program, flat)
    try:
        graph = to_graph(program, axes, names, output_names)
    except Exception as error:
        return program, None, [explain(error, "torch.onnx.export", program)]
    return program, graph, []


def _run(
    module: torch.nn.Module, input_tree: Tree, leaves: Sequence[torch.Tensor]
) -> tuple[Tree, list[torch.Tensor]]:
    """Run the module once as its user would; an exception there is the user's own."""
    args, kwargs = as_call(unflatten(input_tree, [leaf.clone() for leaf in leaves]))
    try:
        with torch.no_grad():
            result = module(*args, **kwargs)
    except Exception as error:
        where = explain(error, "forward").where
        raise ModelError(
            f"the model fails on the example inputs: {type(error).__name__}: {error}",
            where=where,
            hint="check the shapes and dtypes of the example inputs against what forward expects",
        ) from error
    try:
        tree, outputs = describe(result)
    except SignatureError as error:
        raise ModelError(
            f"forward returns something that an engine cannot: {error.what}",
            where=error.where,
            hint=error.hint,
        ) from error
    if not outputs:
        raise ModelError("forward returns no tensor", hint="an engine needs at least one output")
    return tree, outputs


def _spec(name: str, leaf: torch.Tensor, axes: Axes, index: int) -> TensorSpec:
    place = axes.places[index]
    shape = tuple(place.get(axis, size) for axis, size in enumerate(leaf.shape))
    return TensorSpec(name, _dtype(name, leaf), shape)


def _output_specs(
    names: Sequence[str],
    outputs: Sequence[torch.Tensor],
    flat: Flat,
    example: Sequence[torch.Tensor],
    axes: Axes,
) -> tuple[TensorSpec, ...]:
    """Output shapes; an axis that moves when a dim moves is named after it."""
    shapes: list[list[int | str]] = [list(output.shape) for output in outputs]
    for dim in axes.dims:
        other = dim.max if dim.opt != dim.max else dim.min
        sizes = {one.name: other if one is dim else one.opt for one in axes.dims}
        moved = [
            dynamics.resize(leaf, axes.shape(i, tuple(leaf.shape), sizes))
            for i, leaf in enumerate(example)
        ]
        results = dynamics.call_at(flat, moved, sizes)
        for shape, before, after in zip(shapes, outputs, results, strict=True):
            for axis, (old, new) in enumerate(zip(before.shape, after.shape, strict=True)):
                if old != new:
                    shape[axis] = dim.name if (old, new) == (dim.opt, other) else f"f({dim.name})"
    return tuple(
        TensorSpec(name, _dtype(name, output), tuple(shape))
        for name, output, shape in zip(names, outputs, shapes, strict=True)
    )


def _dtype(name: str, leaf: torch.Tensor) -> str:
    try:
        return str(leaf.detach().numpy().dtype)
    except (TypeError, RuntimeError):
        raise ModelError(
            f"{name!r} is {leaf.dtype}, which engines cannot pass in or out",
            hint=f"they pass {_DTYPES}: convert at the edge of the model",
        ) from None


def _unique(names: Sequence[str], taken: Sequence[str]) -> tuple[str, ...]:
    """Output names that differ from the inputs', as ONNX requires."""
    return tuple(f"{name}_out" if name in taken else name for name in names)


def _suggestion(error: BaseException, note: Note) -> str:
    """What to write instead, and torch's own "Suggested fixes" if it made any."""
    fixes = re.findall(r"^  (\w+ = .+)$", str(error).partition("Suggested fixes:")[2], re.MULTILINE)
    return f"{note.hint}; torch suggests {', '.join(fixes)}" if fixes else note.hint


def module_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's weights, structure and code, for a model without a graph."""
    digest = hashlib.sha256(repr(module).encode())
    for kind in dict.fromkeys(type(part) for part in module.modules()):
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        with suppress(OSError, TypeError):
            digest.update(inspect.getsource(kind).encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def _frozen_copy(module: torch.nn.Module) -> torch.nn.Module:
    """The module in eval mode, sharing its weights, so that the user's own keeps training."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo=dict(shared)).eval()
