"""Mixed precision: which layers a quantised graph should keep in float, the worst first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir

from redline.compress.float_nodes import named, plain_proto, stay_in_float
from redline.compress.scheme import Calibration, Compressed

SAMPLES = 32  # batches that sensitivities are measured on


def sensitivities(
    graph: ir.Model,
    compressed: Compressed,
    calibration: Calibration,
    say: Callable[[str], None] = lambda text: None,
) -> Compressed:
    """The same with each layer's sensitivity: the error when only this layer is quantised.

    |y - y0| / |y0| over all outputs of the calibration's first batches, in the Euclidean norm; y0
    is the float graph's, whose own error against float64 is a thousandth of what int8 does.

    Example:
        >>> max(sensitivities(graph, made, calibration).layers, key=lambda one: one.sensitivity)
    """
    plain, made = named(plain_proto(graph)), plain_proto(compressed.graph)
    batches = calibration.batches[:SAMPLES]
    wanted = _outputs(plain, batches)
    scale = float(np.sqrt(sum(np.sum(np.square(y)) for y in wanted))) or 1.0
    inside = [layer.node for layer in compressed.layers if not layer.reason]
    found: dict[str, float] = {}
    for number, name in enumerate(inside):
        say(f"quantising only layer {number + 1} of {len(inside)}")
        alone = stay_in_float(made, plain, set(inside) - {name})
        got = _outputs(plain_proto(alone), batches)
        error = sum(np.sum(np.square(y - ref)) for y, ref in zip(got, wanted, strict=True))
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


def plan(compressed: Compressed) -> Iterator[frozenset[str]]:
    """Layers to keep in float: the most sensitive one, then twice as many, up to half of all.

    Sets are nested, so what they cost rises and what they lose falls from one to the next.
    """
    known: Mapping[str, float] = {
        layer.node: layer.sensitivity
        for layer in compressed.layers
        if layer.sensitivity is not None
    }
    order = sorted(known, key=lambda name: -known[name])
    count = 1
    while count <= max(1, len(order) // 2) and count < len(order):
        yield frozenset(order[:count])
        count *= 2


def _outputs(model: onnx.ModelProto, batches: object) -> list[np.ndarray]:
    """What ONNX Runtime computes for every batch: the float outputs, in float64."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    found: list[np.ndarray] = []
    for batch in batches:  # type: ignore[attr-defined]
        outputs = session.run(None, dict(zip(names, batch, strict=True)))
        found += [y.astype(np.float64) for y in outputs if y.dtype.kind == "f"]
    return found
