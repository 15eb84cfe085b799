"""How many floating-point operations each operator takes, as a table.

A multiply and an add count as two, so a matrix product of (m, k) and (k, n) takes 2*m*k*n, as
torch.utils.flop_counter has it; the bias is not counted there and not here. The elementary
functions (exp, log, tanh, erf, sqrt) count as one. Operators that only move or rename data take 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import onnx_ir

Sizes = tuple[int, ...]
Rule = Callable[[onnx_ir.Node, Sequence[Sizes | None], Sizes], float]

# Operators whose output is the input's memory under another shape.
VIEWS = frozenset(
    ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"),
)

# Operators that move data and compute nothing.
_MOVES = """
    Cast CastLike CenterCropPad Col2Im Compress Concat ConcatFromSequence Constant ConstantOfShape
    DepthToSpace Expand EyeLike Gather GatherElements GatherND NonZero OneHot Pad Range
    ReverseSequence ScatterElements ScatterND Shape Size Slice SpaceToDepth Split SplitToSequence
    Tile Transpose Trilu Unique
"""
FREE = VIEWS.union(_MOVES.split())

_ELEMENTARY = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr
    BitwiseXor Ceil Cos Cosh Div Equal Erf Exp Floor Greater GreaterOrEqual IsInf IsNaN Less
    LessOrEqual Log Mod Mul Neg Not Or Pow Reciprocal Relu Round Sign Sin Sinh Sqrt Sub Tan
    Tanh Where Xor
"""

_PER_OUTPUT_ELEMENT = {
    **dict.fromkeys(_ELEMENTARY.split(), 1),
    "Clip": 2,  # max, min
    "LeakyRelu": 2,
    "PRelu": 2,
    "ThresholdedRelu": 1,
    "Shrink": 2,
    "Elu": 3,  # exp, minus one, times alpha
    "Celu": 4,
    "Selu": 4,
    "Softplus": 2,
    "Softsign": 3,
    "Sigmoid": 4,  # negate, exp, add, divide
    "HardSigmoid": 4,  # multiply, add, max, min
    "HardSwish": 5,
    "Swish": 5,
    "Mish": 4,
    "Gelu": 5,  # scale, erf, add, multiply, halve
    "BatchNormalization": 2,  # one scale and one shift, made ahead
    "LayerNormalization": 7,  # mean, center, square, mean, scale by rsqrt, weight, bias
    "InstanceNormalization": 7,
    "GroupNormalization": 7,
    "MeanVarianceNormalization": 5,
    "RMSNormalization": 4,
    "LpNormalization": 3,
    "Softmax": 5,  # max, subtract, exp, sum, divide
    "LogSoftmax": 5,
    "Hardmax": 1,
    "QuantizeLinear": 4,  # scale, round, zero point, saturate
    "DequantizeLinear": 2,
}

_REDUCTIONS = """
    ArgMax ArgMin CumSum GlobalAveragePool GlobalMaxPool ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum TopK
"""

_PER_INPUT_ELEMENT = {
    **dict.fromkeys(_REDUCTIONS.split(), 1),
    **dict.fromkeys(("GlobalLpPool", "ReduceL1", "ReduceL2", "ReduceSumSquare"), 2),
    "ReduceLogSum": 1,
    "ReduceLogSumExp": 2,
}


def _first(shape: Sizes | None) -> Sizes:
    if shape is None:
        raise KeyError("an input is absent")
    return shape


def _attribute(node: onnx_ir.Node, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _per_output(flops: float) -> Rule:
    return lambda node, inputs, output: flops * prod(output)


def _per_input(flops: float) -> Rule:
    return lambda node, inputs, output: flops * prod(_first(inputs[0]))


def _conv(weight: int) -> Rule:
    return lambda node, inputs, output: 2.0 * prod(output) * prod(_first(inputs[weight])[1:])


def _conv_transpose(node: onnx_ir.Node, inputs: Sequence[Sizes | None], output: Sizes) -> float:
    return 2.0 * prod(_first(inputs[0])) * prod(_first(inputs[1])[1:])


def _matmul(node: onnx_ir.Node, inputs: Sequence[Sizes | None], output: Sizes) -> float:
    return 2.0 * prod(output) * _first(inputs[0])[-1]


def _gemm(node: onnx_ir.Node, inputs: Sequence[Sizes | None], output: Sizes) -> float:
    return 2.0 * prod(output) * _first(inputs[0])[0 if _attribute(node, "transA", 0) else 1]


def _recurrent(node: onnx_ir.Node, inputs: Sequence[Sizes | None], output: Sizes) -> float:
    """Every step and batch item meets all of W and R; gates' elementwise work is left out."""
    return 2.0 * prod(_first(inputs[0])[:2]) * (prod(_first(inputs[1])) + prod(_first(inputs[2])))


def _pool(node: onnx_ir.Node, inputs: Sequence[Sizes | None], output: Sizes) -> float:
    return float(prod(output) * prod(_attribute(node, "kernel_shape", ())))


def _variadic(node: onnx_ir.Node, inputs: Sequence[Sizes | None], output: Sizes) -> float:
    return float(prod(output) * max(1, len(inputs) - 1))


def _resize(node: onnx_ir.Node, inputs: Sequence[Sizes | None], output: Sizes) -> float:
    """Two operations for each neighbour that is blended: 1, 2 or 4 along each axis that changes."""
    taps = {"nearest": 0, "linear": 2, "cubic": 4}[_attribute(node, "mode", "nearest")]
    source = _first(inputs[0])
    changed = sum(a != b for a, b in zip(source, output, strict=True))
    return 2.0 * prod(output) * taps**changed if taps and changed else 0.0


def _attention(node: onnx_ir.Node, inputs: Sequence[Sizes | None], output: Sizes) -> float:
    """Scores and their product with the values; the softmax is left out, as torch does."""
    query, key, value = (_first(shape) for shape in inputs[:3])
    past = _first(inputs[4])[-2] if len(inputs) > 4 and inputs[4] else 0
    heads = query[1] if len(query) == 4 else _attribute(node, "q_num_heads", 1)
    kv_heads = value[1] if len(value) == 4 else _attribute(node, "kv_num_heads", heads)
    depth = query[-1] if len(query) == 4 else query[-1] // heads
    value_depth = value[-1] if len(value) == 4 else value[-1] // kv_heads
    pairs = query[0] * heads * query[-2] * (key[-2] + past)
    return 2.0 * pairs * (depth + value_depth)


def _einsum(node: onnx_ir.Node, inputs: Sequence[Sizes | None], output: Sizes) -> float:
    """One operation per operand at every point of the index space."""
    sizes: dict[str, int] = {}
    terms = _attribute(node, "equation", "").replace(" ", "").split("->")[0].split(",")
    for term, shape in zip(terms, inputs, strict=True):
        full, known = _first(shape), len(term.replace("...", ""))
        extra = "".join(f"{number}" for number in range(len(full) - known - 1, -1, -1))
        for letter, size in zip(term.replace("...", extra), full, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return float(len(terms) * prod(sizes.values()))


RULES: dict[str, Rule] = {
    **dict.fromkeys(sorted(FREE), _per_output(0)),
    **{name: _per_output(flops) for name, flops in _PER_OUTPUT_ELEMENT.items()},
    **{name: _per_input(flops) for name, flops in _PER_INPUT_ELEMENT.items()},
    **dict.fromkeys(("Conv", "ConvInteger", "DeformConv"), _conv(1)),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), _pool),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), _variadic),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "Resize": _resize,
    "Attention": _attention,
    "Einsum": _einsum,
}
