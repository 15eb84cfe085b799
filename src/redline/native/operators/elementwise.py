"""Operators that work element by element: one C++ expression each."""

from __future__ import annotations

import numpy as np

from redline.native.ir import Apply, Expr, Load, No, Value
from redline.native.read import Op, Reader, operator

# ONNX operator -> C++ over {0}; good for a float and for a vector of them.
_UNARY = {
    "Exp": "rl::exp({0})",
    "Log": "rl::log({0})",
    "Tanh": "rl::tanh({0})",
    "Erf": "rl::erf({0})",
    "Sigmoid": "rl::sigmoid({0})",
    "Relu": "rl::relu({0})",
    "Sqrt": "rl::sqrt({0})",
    "Abs": "rl::abs({0})",
    "Neg": "-({0})",
    "Reciprocal": "1.f / ({0})",
    "Softplus": "rl::softplus({0})",
    "Softsign": "({0}) / (1.f + rl::abs({0}))",
    "Mish": "({0}) * rl::tanh(rl::softplus({0}))",
    "HardSwish": "({0}) * rl::hard_sigmoid({0}, 0.166666667f, 0.5f)",
}
# The same by libm, lane by lane.
_LIBM = {
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "rint",
    "Sin": "sin",
    "Cos": "cos",
    "Tan": "tan",
    "Asin": "asin",
    "Acos": "acos",
    "Atan": "atan",
    "Sinh": "sinh",
    "Cosh": "cosh",
    "Asinh": "asinh",
    "Acosh": "acosh",
    "Atanh": "atanh",
}
_BINARY = {"Add": "{0} + {1}", "Sub": "{0} - {1}", "Mul": "{0} * {1}", "Div": "{0} / ({1})"}
_COMPARE = {
    "Equal": "==",
    "Greater": ">",
    "GreaterOrEqual": ">=",
    "Less": "<",
    "LessOrEqual": "<=",
    "And": "&&",
    "Or": "||",
    "Xor": "!=",
}
_VARIADIC = {"Max": "rl::maximum({0}, {1})", "Min": "rl::minimum({0}, {1})", "Sum": "{0} + {1}"}


def _float(op: Op) -> Value:
    value = op.value(0)
    if value.dtype != np.float32:
        raise No(f"{op.type} of {value.dtype}")
    return value


@operator(*_UNARY)
def _unary(r: Reader, op: Op) -> list[Value]:
    if op.type in ("Neg", "Abs") and op.value(0).dtype.kind == "i":
        x = op.value(0)
        form = "-({0})" if op.type == "Neg" else "({0}) < 0 ? -({0}) : ({0})"
        return [r.pointwise(form, x, vector=False)]
    return [r.pointwise(f"({_UNARY[op.type]})", _float(op))]


@operator(*_LIBM)
def _libm(r: Reader, op: Op) -> list[Value]:
    function = f"__builtin_{_LIBM[op.type]}f"
    return [
        r.pointwise(f"rl::each([](float v) {{{{ return {function}(v); }}}}, {{0}})", _float(op))
    ]


@operator(*_BINARY)
def _binary(r: Reader, op: Op) -> list[Value]:
    a, b = op.value(0), op.value(1)
    return [r.pointwise(f"({_BINARY[op.type]})", a, b)]


@operator("Pow")
def _pow(r: Reader, op: Op) -> list[Value]:
    x, power = _float(op), op.value(1)
    if power.const is not None and power.size == 1:
        n = float(power.const.reshape(-1)[0])
        simple = {2.0: "({0}) * ({0})", 3.0: "({0}) * ({0}) * ({0})", 0.5: "rl::sqrt({0})"}
        if n in simple:
            return [r.pointwise(f"({simple[n]})", x)]
    return [r.pointwise("__builtin_powf({0}, (float)({1}))", x, power, vector=False)]


@operator(*_COMPARE)
def _compare(r: Reader, op: Op) -> list[Value]:
    form = f"(({{0}}) {_COMPARE[op.type]} ({{1}}))"
    return [r.pointwise(form, op.value(0), op.value(1), dtype=bool, vector=False)]


@operator("Not")
def _not(r: Reader, op: Op) -> list[Value]:
    return [r.pointwise("(!({0}))", op.value(0), dtype=bool, vector=False)]


@operator("IsNaN")
def _is_nan(r: Reader, op: Op) -> list[Value]:
    return [r.pointwise("(({0}) != ({0}))", op.value(0), dtype=bool, vector=False)]


@operator(*_VARIADIC)
def _variadic(r: Reader, op: Op) -> list[Value]:
    result = op.value(0)
    for index in range(1, len(op.ins)):
        if result.dtype != np.float32 and op.type != "Sum":
            raise No(f"{op.type} of {result.dtype}")
        result = r.pointwise(f"({_VARIADIC[op.type]})", result, op.value(index))
    return [result]


@operator("Where")
def _where(r: Reader, op: Op) -> list[Value]:
    test, a, b = op.value(0), op.value(1), op.value(2)
    form = "(({0}) ? ({1}) : ({2}))"
    return [r.pointwise(form, test, a, b, dtype=a.dtype, vector=False)]


@operator("Clip")
def _clip(r: Reader, op: Op) -> list[Value]:
    x = _float(op)
    low = op.const(1, op.attr("min", -np.inf))
    high = op.const(2, op.attr("max", np.inf))
    bounds = f"{literal(float(low))}, {literal(float(high))}"
    return [r.pointwise(f"rl::clip({{0}}, {bounds})", x)]


@operator("LeakyRelu", "Elu", "Selu", "HardSigmoid", "ThresholdedRelu", "Celu", "Gelu", "Swish")
def _activation(r: Reader, op: Op) -> list[Value]:
    x = _float(op)
    default = {"LeakyRelu": 0.01, "Selu": 1.67326319217681884765625, "HardSigmoid": 0.2}
    a = literal(float(op.attr("alpha", default.get(op.type, 1.0))))
    beta, gamma = float(op.attr("beta", 0.5)), float(op.attr("gamma", 1.05070102214813232421875))
    forms = {
        "LeakyRelu": f"rl::leaky({{0}}, {a})",
        "Elu": f"rl::elu({{0}}, {a})",
        "Selu": f"{literal(gamma)} * rl::elu({{0}}, {a})",
        "HardSigmoid": f"rl::hard_sigmoid({{0}}, {a}, {literal(beta)})",
        "ThresholdedRelu": f"rl::threshold({{0}}, {a})",
        "Celu": f"rl::elu({{0}} / {a}, 1.f, {a})",
        "Swish": f"({{0}}) * rl::sigmoid({a} * ({{0}}))",
        "Gelu": "rl::gelu_tanh({0})" if op.attr("approximate") == "tanh" else "rl::gelu({0})",
    }
    return [r.pointwise(f"({forms[op.type]})", x)]


@operator("PRelu")
def _prelu(r: Reader, op: Op) -> list[Value]:
    return [r.pointwise("rl::leaky({0}, {1})", _float(op), op.value(1))]


_CAST = {"float32": "float", "float64": "double", "int64": "int64_t", "int32": "int32_t"} | {
    "bool": "bool", "uint8": "uint8_t", "int8": "int8_t", "int16": "int16_t", "uint16": "uint16_t",
    "uint32": "uint32_t", "uint64": "uint64_t",
}  # fmt: skip


@operator("Cast")
def _cast(r: Reader, op: Op) -> list[Value]:
    import onnx_ir

    x, to = op.value(0), onnx_ir.DataType(op.attr("to"))
    dtype = np.dtype(to.numpy())
    if dtype == x.dtype:
        return [x]
    if dtype.name not in _CAST or x.dtype.name not in _CAST:
        raise No(f"Cast from {x.dtype} to {to.name}")
    form = f"({_CAST[dtype.name]})({{0}})"
    expr: Expr = Apply(form, (Load(x),), dtype, vector=False)
    return [r.loop(expr, x.shape, dtype)]


@operator("Identity", "Dropout")
def _identity(r: Reader, op: Op) -> list[Value]:
    return [op.value(0)]


@operator("BatchNormalization")
def _batch_norm(r: Reader, op: Op) -> list[Value]:
    x = _float(op)
    gain, bias, mean, variance = (op.const(i).astype(np.float64) for i in range(1, 5))
    scale = gain / np.sqrt(variance + op.attr("epsilon", 1e-5))
    shape = (-1, *[1] * (len(x.shape) - 2))
    from redline.native.read import constant

    a = constant(scale.astype(np.float32).reshape(shape))
    b = constant((bias - mean * scale).astype(np.float32).reshape(shape))
    return [r.pointwise("({0} * {1} + {2})", x, a, b)]


def literal(x: float) -> str:
    """A float as C++ reads it back exactly.

    Example:
        >>> literal(0.5), literal(float("inf"))
        ('0x1.0000000000000p-1f', 'HUGE_VALF')
    """
    if np.isinf(x):
        return "HUGE_VALF" if x > 0 else "-HUGE_VALF"
    return "NAN" if np.isnan(x) else f"{float(np.float32(x)).hex()}f"
