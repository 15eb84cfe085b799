"""An ONNX file, of any framework that writes one, as a Model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir
from onnx_ir.passes import common

from redline.capture.cases import resize
from redline.capture.onnx_dims import Sizes, settle
from redline.capture.onnx_proto import original_and_converted
from redline.capture.onnx_reference import Arrays, run_onnx
from redline.errors import InputError, ModelError, UnknownNameError
from redline.graph.model import Model, Note
from redline.graph.serialize import clean, graph_hash, to_bytes
from redline.signature import Dim, Signature, TensorSpec, Tree

if TYPE_CHECKING:
    import onnx

    Source = Path | str | bytes | onnx.ModelProto | onnx_ir.Model

_IR_VERSION = 10  # the first that every backend's reader takes, with opset 20
_DTYPES = "float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool"


def load_onnx(
    source: Source,
    example_inputs: Any = None,
    *,
    dynamic: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Model:
    """Read and check an ONNX file, bring it to our opset, and settle its sizes.

    Args:
        source: a path, the bytes of a file, an onnx.ModelProto or an onnx_ir.Model. Weights in
            other files are read only from the folder of the path.
        example_inputs: an array or tensor, several in order, or a dict by input name; random where
            left out (floats normal, integers 0 or 1).
        dynamic: {"batch": (min, opt, max)} for axes that the file calls so, else for every open
            axis 0; {"input": {axis: (min, opt, max)}} or {axis: ("name", min, opt, max)} for one.
            Open axes left out are fixed to the example's size, an axis 0 without example to 1.
        name: for reports; the file's stem if left out.

    Raises:
        ModelError: it is not a valid ONNX graph, or its inputs are not tensors.
        InputError: the example or `dynamic` does not fit the file, or an axis stays open.
        UnsafeError: its weights lie outside its folder.

    Example:
        >>> load_onnx("net.onnx", dynamic={"batch": (1, 8, 32)}).signature.inputs
        (TensorSpec(name='x', dtype='float32', shape=('batch', 3, 224, 224)),)
    """
    original, converted, notes = original_and_converted(source)
    graph = _open(converted or original)
    inputs = _inputs(graph)
    given = None if example_inputs is None else _by_name(inputs, example_inputs)
    sizes, fixed = settle(inputs, given, dynamic)
    dims = tuple({dim.name: dim for dim in sizes.dims.values()}.values())
    specs = tuple(_spec(value, sizes.shape(value.name or "")) for value in inputs)
    signature = Signature(specs, (), _dict_tree(specs), Tree(), dims)
    example = _example(signature, given)
    if converted is not None:
        graph, doubts = _trusted(graph, original, example)
        notes += doubts
    _write_sizes(graph, sizes, signature)
    stem = Path(source).stem if isinstance(source, str | Path) else original.graph.name
    return Model(
        name=name or stem,
        origin="onnx",
        signature=_with_outputs(signature, _outputs(graph, signature, example)),
        example=example,
        graph_hash=graph_hash(graph),
        graph=graph,
        notes=(*notes, *fixed),
    )


def _open(proto: onnx.ModelProto) -> onnx_ir.Model:
    """The cleaned graph; weights that are also inputs are weights only."""
    graph = onnx_ir.serde.deserialize_model(proto)
    common.RemoveInitializersFromInputsPass()(graph)
    graph = clean(graph)
    graph.ir_version = max(graph.ir_version, _IR_VERSION)
    return graph


def _inputs(graph: onnx_ir.Model) -> list[onnx_ir.Value]:
    """The inputs, once they and the outputs are seen to be tensors of numbers."""
    inputs = [_checked(value, "input") for value in graph.graph.inputs]
    for value in graph.graph.outputs:
        _checked(value, "output")
    if not inputs:
        raise ModelError("the graph has no inputs, so it always gives the same outputs")
    return inputs


def _checked(value: onnx_ir.Value, what: str) -> onnx_ir.Value:
    """The value itself, if it is a tensor of numbers."""
    if value.type is not None and not isinstance(value.type, onnx_ir.TensorType):
        kind = type(value.type).__name__.removesuffix("Type").lower()
        raise ModelError(
            f"the {what} {value.name!r} is {'an' if kind[0] in 'aeiou' else 'a'} {kind}, "
            "expected a tensor",
            hint="export the model with plain tensors as inputs and outputs",
        )
    if value.dtype is not None and _dtype(value) not in _DTYPES.split():
        raise ModelError(
            f"the {what} {value.name!r} holds {_dtype(value)}, expected numbers that NumPy has",
            hint=f"use one of {_DTYPES}, and convert outside the graph",
        )
    if value.dtype is None and what == "input":
        raise ModelError(f"the file gives no dtype for the input {value.name!r}")
    return value


def _dtype(value: onnx_ir.Value) -> str:
    dtype = value.dtype or onnx_ir.DataType.UNDEFINED
    return dtype.numpy().name if dtype != onnx_ir.DataType.STRING else "text"


def _spec(value: onnx_ir.Value, shape: tuple[int | str, ...]) -> TensorSpec:
    return TensorSpec(value.name or "", _dtype(value), shape)


def _with_outputs(signature: Signature, outputs: tuple[TensorSpec, ...]) -> Signature:
    tree = Tree() if len(outputs) == 1 else _dict_tree(outputs)
    return replace(signature, outputs=outputs, output_tree=tree)


def _dict_tree(specs: Sequence[TensorSpec]) -> Tree:
    return Tree("dict", tuple(spec.name for spec in specs), (Tree(),) * len(specs))


def _by_name(inputs: Sequence[onnx_ir.Value], given: Any) -> dict[str, np.ndarray]:
    """The example as an array for each input name."""
    names = [value.name or "" for value in inputs]
    positional, by_name = _split(given)
    if len(positional) > len(names):
        raise InputError(
            f"got {len(positional)} example inputs, expected {len(names)}: {', '.join(names)}"
        )
    arrays = dict(zip(names, positional, strict=False))
    for key, value in by_name.items():
        if key not in names:
            raise UnknownNameError("input", str(key), names)
        if key in arrays:
            raise InputError(f"the example input {key!r} is given twice")
        arrays[key] = value
    if missing := [name for name in names if name not in arrays]:
        raise InputError(
            f"the example input {missing[0]!r} is missing; expected {', '.join(names)}"
        )
    return {value.name or "": _array(value, arrays[value.name or ""]) for value in inputs}


def _split(given: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(given, Mapping):
        return (), given
    if not isinstance(given, tuple | list):
        return (given,), {}
    if len(given) == 2 and isinstance(given[0], tuple | list) and isinstance(given[1], Mapping):
        return given[0], given[1]
    return given, {}


def _array(value: onnx_ir.Value, given: Any) -> np.ndarray:
    """The example of one input, of the dtype and rank that the file wants."""
    if hasattr(given, "detach"):  # a torch tensor, perhaps on another device or with a gradient
        given = given.detach().cpu().numpy()
    if not isinstance(given, np.ndarray | np.generic):
        raise InputError(
            f"the example input {value.name!r} is a {type(given).__name__}, "
            "expected a NumPy array or a tensor"
        )
    array, dtype = np.asarray(given), _dtype(value)
    if array.dtype.name != dtype:
        raise InputError(
            f"the example input {value.name!r} is {array.dtype.name}, expected {dtype}",
            hint=f"x.astype(np.{dtype}) or x.to(torch.{dtype})",
        )
    shape = value.shape or ()
    if array.ndim != len(shape):
        raise InputError(
            f"the example input {value.name!r} has shape {array.shape}, "
            f"expected {len(shape)} axes: {_shown(value)}"
        )
    for axis, dim in enumerate(shape):
        if isinstance(dim, int) and dim != array.shape[axis]:
            raise InputError(
                f"the example input {value.name!r} has size {array.shape[axis]} on axis {axis}, "
                f"expected {dim}: {_shown(value)}"
            )
    return array


def _shown(value: onnx_ir.Value) -> str:
    dims = (str(dim) if isinstance(dim, int) else dim.value or "?" for dim in value.shape or ())
    return f"({', '.join(dims)})"


def _example(signature: Signature, given: Mapping[str, np.ndarray] | None) -> Arrays:
    """One array for each input at its opt size, the user's where there is one."""
    random = np.random.default_rng(0)
    found = []
    for spec in signature.inputs:
        shape = signature.shape(spec, "opt")
        if given is None:
            found.append(_random(spec.dtype, shape, random))
            continue
        array = given[spec.name]
        for axis, (wanted, size) in enumerate(zip(spec.shape, array.shape, strict=True)):
            dim = signature.dim(wanted) if isinstance(wanted, str) else None
            low, high = (dim.min, dim.max) if dim else (wanted, wanted)
            if not int(low) <= size <= int(high):
                raise InputError(
                    f"the example input {spec.name!r} has size {size} on axis {axis}, expected "
                    + (f"{low} to {high} ({dim.name!r})" if dim else f"{low}, as other inputs have")
                )
        found.append(resize(array, shape))
    return tuple(found)


def _random(dtype: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if dtype.startswith("float"):
        return random.standard_normal(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


def _trusted(
    graph: onnx_ir.Model, original: onnx.ModelProto, example: Arrays
) -> tuple[onnx_ir.Model, tuple[Note, ...]]:
    """The converted graph where it gives what the original gave, else the original."""
    try:
        before = run_onnx(original.SerializeToString(), [example])[0]
    except ModelError:  # nothing to compare with; the reference will say more
        return graph, ()
    try:
        after = run_onnx(to_bytes(graph), [example])[0]
        if all(map(_alike, before, after)):
            return graph, ()
        reason = "gives other results"
    except ModelError:
        reason = "does not run"
    kept = _open(original)
    version = kept.opset_imports.get("", 0)
    return kept, (Note(f"kept at opset {version}: what onnx's converter makes of it {reason}"),)


def _alike(before: np.ndarray, after: np.ndarray) -> bool:
    if before.shape != after.shape or before.dtype != after.dtype:
        return False
    if before.dtype.kind != "f":
        return bool(np.array_equal(before, after))
    scale = float(np.max(np.abs(before), initial=0.0, where=np.isfinite(before)))
    loose = 1e-2 if before.dtype == np.float16 else 1e-4
    return bool(np.allclose(before, after, rtol=loose, atol=loose * scale, equal_nan=True))


def _write_sizes(graph: onnx_ir.Model, sizes: Sizes, signature: Signature) -> None:
    """Put the settled sizes into the graph, and infer the shapes that follow."""
    names = {symbol: dim.name for symbol, dim in sizes.dims.items()}
    for part in graph.graphs():
        for value in (*part.outputs, *(value for node in part for value in node.outputs)):
            value.shape = _rewritten(value.shape, sizes.fixed, names)
    for value, spec in zip(graph.graph.inputs, signature.inputs, strict=True):
        value.shape = onnx_ir.Shape(spec.shape)
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(graph)


def _rewritten(
    shape: onnx_ir.Shape | None, fixed: Mapping[str, int], names: Mapping[str, str]
) -> onnx_ir.Shape | None:
    if shape is None:
        return None
    dims: list[int | str | None] = []
    for dim in shape:
        symbol = dim if isinstance(dim, int) else dim.value or ""
        dims.append(symbol if isinstance(symbol, int) else fixed.get(symbol, names.get(symbol)))
    return onnx_ir.Shape(dims)


def _outputs(graph: onnx_ir.Model, signature: Signature, example: Arrays) -> tuple[TensorSpec, ...]:
    """From the graph where it says, else from a run at the opt sizes and one at the greatest."""
    names = {dim.name for dim in signature.dims}
    shapes = [_known(value, names) for value in graph.graph.outputs]
    if all(None not in shape for shape in shapes if shape is not None) and None not in shapes:
        return tuple(
            _spec(value, tuple(axis for axis in shape or () if axis is not None))
            for value, shape in zip(graph.graph.outputs, shapes, strict=True)
        )
    largest = tuple(
        resize(array, signature.shape(spec, "max"))
        for array, spec in zip(example, signature.inputs, strict=True)
    )
    runs = run_onnx(to_bytes(graph), [example, largest])
    return tuple(
        TensorSpec(
            value.name or "",
            opt.dtype.name,
            tuple(
                _axis(f"{value.name}.{axis}", *pair, signature.dims)
                for axis, pair in enumerate(zip(opt.shape, high.shape, strict=True))
            ),
        )
        for value, opt, high in zip(graph.graph.outputs, *runs, strict=True)
    )


def _known(value: onnx_ir.Value, names: set[str]) -> tuple[int | str | None, ...] | None:
    """Sizes and names of dynamic dims; None for what the graph does not say."""
    if value.shape is None or value.dtype is None:
        return None
    dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return tuple(dim if isinstance(dim, int) or dim in names else None for dim in dims)


def _axis(name: str, opt: int, high: int, dims: Sequence[Dim]) -> int | str:
    if opt == high:
        return opt
    return next((dim.name for dim in dims if (dim.opt, dim.max) == (opt, high)), name)
