"""Post-training int8: Q/DQ pairs placed by NNCF, weights by channel, activations calibrated.

Jacob et al., arXiv 1712.05877; biases are corrected as in Nagel et al., arXiv 1906.04721, and
transformers smoothed as in Xiao et al., arXiv 2211.10438.
"""

from __future__ import annotations

import contextlib
import io
import logging
from typing import Any

import onnx
import onnx_ir as ir

from redline import machine
from redline.compress.biases import whole_biases
from redline.compress.float_nodes import named, plain_proto, stay_in_float
from redline.compress.scheme import Calibration, Compressed, Layer, Scheme
from redline.errors import BuildError, InputError, MissingError, RefusedError

RANGES = ("mean", "minmax", "percentile", "mse")
_LAYERS = ("Conv", "Gemm", "MatMul", "ConvTranspose")


def int8(graph: ir.Model, scheme: Scheme, calibration: Calibration | None) -> Compressed:
    """Every layer that can be, in int8; nodes in scheme.keep stay in float.

    Settings: "ranges" of activations ("mean" of the samples' extremes; "minmax", the extremes of
    all; "percentile", the mean of their ten-thousandths; "mse", what makes the squared error of
    rounding least), "smooth" (SmoothQuant; by default where the graph has LayerNormalization),
    "narrow" (7-bit weights; by default where the CPU adds pairs of products in 16 bits, as AVX2
    without VNNI does, which would saturate).

    Raises:
        RefusedError: no calibration, no layer with weights.
        MissingError: nncf is not installed.
        BuildError: nncf failed.

    Example:
        >>> made = int8(graph, Scheme("int8"), calibration)
        >>> [layer.node for layer in made.layers if layer.precision == "fp32"]
        []
    """
    kinds = {node.op_type for node in graph.graph}
    if not kinds & set(_LAYERS):
        raise RefusedError(f"no operator can be quantised: {', '.join(sorted(kinds))}")
    if calibration is None:
        raise RefusedError(
            "int8 needs calibration data, and none was given",
            hint="calibration=loader; a hundred samples like those of real use are enough",
        )
    plain = named(plain_proto(graph))
    made = whole_biases(_quantized(plain, scheme, calibration, kinds))
    return described(stay_in_float(made, plain, scheme.keep), made, plain, scheme)


def described(
    graph: ir.Model, made: onnx.ModelProto, plain: onnx.ModelProto, scheme: Scheme
) -> Compressed:
    """What became of every operator that could be quantised."""
    pairs = {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    inside = {node.name for node in made.graph.node if pairs & set(node.input)} - scheme.keep
    layers = []
    for node in plain.graph.node:
        if node.name in inside:
            layers.append(Layer(node.name, node.op_type, "int8"))
        elif node.name in scheme.keep or node.op_type in _LAYERS:
            kept = node.name in scheme.keep
            reason = "kept for accuracy" if kept else "nncf finds no int8 form"
            layers.append(Layer(node.name, node.op_type, "fp32", reason))
    return Compressed(graph, scheme, tuple(layers))


def _quantized(
    plain: onnx.ModelProto, scheme: Scheme, calibration: Calibration, kinds: set[str]
) -> onnx.ModelProto:
    try:
        import nncf
        from nncf.quantization.advanced_parameters import (
            AdvancedQuantizationParameters,
            OverflowFix,
            QuantizationParameters,
        )
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError:
        raise MissingError("nncf is not installed", hint='pip install "redline[int8]"') from None
    ranges = str(scheme.setting.get("ranges", RANGES[0]))
    if ranges not in RANGES:
        raise InputError(f"ranges is {ranges!r}, expected one of {', '.join(RANGES)}")
    narrow = scheme.setting.get("narrow", not exact())
    smooth = scheme.setting.get("smooth", "LayerNormalization" in kinds)
    given: dict[str, Any] = {
        "overflow_fix": OverflowFix.ENABLE if narrow else OverflowFix.DISABLE,
        # ONNX Runtime's QLinearConv takes one zero point for all channels of its input.
        "activations_quantization_params": QuantizationParameters(per_channel=False),
    }
    given["activations_range_estimator_params"] = {
        "mean": RangeEstimatorParametersSet.MEAN_MINMAX,
        "minmax": RangeEstimatorParametersSet.MINMAX,
        "mse": RangeEstimatorParametersSet.HISTOGRAM,
        "percentile": RangeEstimatorParametersSet.MEAN_QUANTILE,
    }[ranges]
    inputs = [value.name for value in plain.graph.input]
    held = {tensor.name for tensor in plain.graph.initializer}
    names = [name for name in inputs if name not in held]
    items = [dict(zip(names, batch, strict=True)) for batch in calibration.batches]
    logging.getLogger("nncf").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            made = nncf.quantize(
                plain, nncf.Dataset(items), subset_size=len(items),
                model_type=nncf.ModelType.TRANSFORMER if smooth else None,
                # The fast one feeds a layer its channels' means, which is wrong at padded borders.
                fast_bias_correction=smooth,
                advanced_parameters=AdvancedQuantizationParameters(**given),
            )  # fmt: skip
    except Exception as error:  # nncf raises whatever its parts raise
        raise BuildError(f"nncf cannot quantise it: {str(error)[:300]}") from error
    proto: onnx.ModelProto = made
    return proto


def exact() -> bool:
    """Whether this CPU adds products of 8-bit numbers in 32 bits, so that none saturates."""
    return bool({"avx512_vnni", "avx_vnni", "amx_int8"} & set(machine.isa_flags()))
