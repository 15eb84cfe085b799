"""Mixed precision: what each layer costs in accuracy, and the orders in which they go to float."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir

from redline.compress.float_nodes import named, plain_proto, stay_in_float
from redline.compress.scheme import Compressed

SAMPLES = 32  # batches that sensitivities are measured on
Batches = Sequence[Sequence[np.ndarray]]


def sensitivities(
    graph: ir.Model,
    compressed: Compressed,
    batches: Batches,
    reference: Batches,
    say: Callable[[str], None] = lambda text: None,
) -> Compressed:
    """The same with each layer's sensitivity: the error when only this layer is quantised.

    |y - y0| / |y0| over all float outputs of all batches, in the Euclidean norm.

    Args:
        batches: inputs of the graph, in order; reference: y0, its outputs in float64 for each.

    Example:
        >>> told = sensitivities(graph, made, calibration.batches, reference.expected)
        >>> max(told.layers, key=lambda one: one.sensitivity or 0.0)
    """
    plain, made = named(plain_proto(graph)), plain_proto(compressed.graph)
    wanted = [_floats(outputs) for outputs in reference]
    scale = float(np.sqrt(sum(np.sum(np.square(y)) for ys in wanted for y in ys))) or 1.0
    inside = [layer.node for layer in compressed.layers if not layer.reason]
    found: dict[str, float] = {}
    for number, name in enumerate(inside):
        say(f"quantising only layer {number + 1} of {len(inside)}")
        alone = plain_proto(stay_in_float(made, plain, set(inside) - {name}))
        error = 0.0
        for got, ys in zip(_outputs(alone, batches), wanted, strict=True):
            error += sum(float(np.sum(np.square(y - y0))) for y, y0 in zip(got, ys, strict=True))
        found[name] = float(np.sqrt(error)) / scale
    layers = tuple(replace(layer, sensitivity=found.get(layer.node)) for layer in compressed.layers)
    return replace(compressed, layers=layers)


def keeping(graph: ir.Model, compressed: Compressed, names: frozenset[str]) -> Compressed:
    """The compressed graph with some of its layers back in float.

    Example:
        >>> keeping(graph, made, frozenset({"conv_1"})).scheme.keep
        frozenset({'conv_1'})
    """
    plain, made = named(plain_proto(graph)), plain_proto(compressed.graph)
    layers = tuple(
        replace(layer, precision="fp32", reason="kept for accuracy")
        if layer.node in names else layer
        for layer in compressed.layers
    )  # fmt: skip
    scheme = replace(compressed.scheme, keep=compressed.scheme.keep | names)
    return Compressed(stay_in_float(made, plain, names), scheme, layers, compressed.notes)


def by_error(compressed: Compressed) -> list[str]:
    """Layers with a sensitivity, the most sensitive first."""
    known = _known(compressed)
    return sorted(known, key=lambda name: -known[name])


def by_error_per_work(compressed: Compressed, flops: Mapping[str, float]) -> list[str]:
    """The same, by what an operation less in int8 brings: error energy over arithmetic.

    Errors of layers are close to independent, so their energies add up, and this is the greedy
    order of the knapsack whose weights are the operations that go back to float.

    Args:
        flops: node -> operations of one call; a layer of unknown work comes first.
    """
    known = _known(compressed)
    return sorted(known, key=lambda name: -(known[name] ** 2) / max(flops.get(name, 0.0), 1.0))


def smallest(most: int, holds: Callable[[int], bool]) -> int | None:
    """The least count in 1..most that holds, where more hold better; None if not even most does.

    Doubling up, then halving between, as each question costs a graph and an evaluation.

    Example:
        >>> smallest(20, lambda count: count >= 7)
        7
    """
    fails, count = 0, min(1, most)
    while count and not holds(count):
        if count == most:
            return None
        fails, count = count, min(2 * count, most)
    return between(fails, count, holds) if count else None


def between(fails: int, count: int, holds: Callable[[int], bool]) -> int:
    """The least count that holds, given one that does and a smaller one that does not."""
    while count - fails > 1:
        middle = (fails + count) // 2
        if holds(middle):
            count = middle
        else:
            fails = middle
    return count


def _known(compressed: Compressed) -> dict[str, float]:
    return {
        layer.node: layer.sensitivity
        for layer in compressed.layers
        if layer.sensitivity is not None
    }


def _floats(outputs: Iterable[np.ndarray]) -> list[np.ndarray]:
    return [y.astype(np.float64) for y in outputs if y.dtype.kind == "f"]


def _outputs(model: onnx.ModelProto, batches: Batches) -> Iterable[list[np.ndarray]]:
    """What ONNX Runtime computes for every batch: the float outputs, in float64."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    for batch in batches:
        yield _floats(session.run(None, dict(zip(names, batch, strict=True))))
