"""Operators that work element by element: one C++ expression each."""

from __future__ import annotations

import numpy as np

from redline.native.dtypes import ALL, FLOATS, INTS, NUMBERS, ctype
from redline.native.ir import No, Value
from redline.native.literals import literal
from redline.native.read import Op, Reader, constant, operator

# ONNX operator -> C++ over {0}; good for a float, a double, and for a vector of floats.
_UNARY = {
    "Exp": "rl::exp({0})",
    "Log": "rl::log({0})",
    "Tanh": "rl::tanh({0})",
    "Erf": "rl::erf({0})",
    "Sigmoid": "rl::sigmoid({0})",
    "Sqrt": "rl::sqrt({0})",
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
_ORDER = {"Greater": ">", "GreaterOrEqual": ">=", "Less": "<", "LessOrEqual": "<="}
_LOGIC = {"And": "&&", "Or": "||", "Xor": "!="}
_BITS = {"BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^"}
_VARIADIC = {"Max": "rl::maximum({0}, {1})", "Min": "rl::minimum({0}, {1})", "Sum": "{0} + {1}"}


@operator(*_UNARY, types=FLOATS)
def _unary(r: Reader, op: Op) -> list[Value]:
    return [r.pointwise(f"({_UNARY[op.type]})", op.value(0))]


@operator("Relu", "Neg", "Abs", "Sign", types=NUMBERS)
def _signed(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    kind = ctype(x.dtype)
    own = f"(({kind})({{0}}))"
    if x.dtype.kind == "f" and op.type != "Sign":
        form = {"Relu": "rl::relu({0})", "Neg": "(-({0}))", "Abs": "rl::abs({0})"}[op.type]
        return [r.pointwise(form, x)]
    form = {
        "Relu": f"rl::larger<{kind}>({{0}}, 0)",
        "Neg": f"(({kind})(0 - {own}))",
        "Abs": f"({own} < 0 ? ({kind})(0 - {own}) : {own})",
        "Sign": f"rl::sign_of{own}",
    }[op.type]
    return [r.pointwise(form, x, vector=False)]


@operator(*_LIBM, types=FLOATS)
def _libm(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    if x.dtype == np.float64:
        return [r.pointwise(f"__builtin_{_LIBM[op.type]}({{0}})", x, vector=False)]
    function = f"__builtin_{_LIBM[op.type]}f"
    return [r.pointwise(f"rl::each([](float v) {{{{ return {function}(v); }}}}, {{0}})", x)]


@operator(*_BINARY, types=NUMBERS)
def _binary(r: Reader, op: Op) -> list[Value]:
    a, b = op.value(0), op.value(1)
    if op.type == "Div" and a.dtype.kind in "iu":
        return [r.pointwise(f"rl::divide<{ctype(a.dtype)}>({{0}}, {{1}})", a, b)]
    return [r.pointwise(f"({_BINARY[op.type]})", a, b)]


@operator("Pow", types=NUMBERS)
def _pow(r: Reader, op: Op) -> list[Value]:
    x, power = op.value(0), op.value(1)
    if power.const is not None and power.size == 1 and x.dtype == np.float32:
        n = float(power.const.reshape(-1)[0])
        simple = {2.0: "({0}) * ({0})", 3.0: "({0}) * ({0}) * ({0})", 0.5: "rl::sqrt({0})"}
        if n in simple:
            seen = r.pointwise(f"({simple[n]})", x)
            return [r.reshape(seen, np.broadcast_shapes(x.shape, power.shape))]
    return [r.pointwise("rl::power({0}, {1})", x, power, vector=False)]


@operator("Mod", types=NUMBERS)
def _mod(r: Reader, op: Op) -> list[Value]:
    kernel = "trunc_mod" if op.attr("fmod", 0) else "floor_mod"
    a, b = op.value(0), op.value(1)
    return [r.pointwise(f"rl::{kernel}<{ctype(a.dtype)}>({{0}}, {{1}})", a, b, vector=False)]


@operator("BitShift", types=INTS)
def _shift(r: Reader, op: Op) -> list[Value]:
    kernel = "shift_left" if op.attr("direction") == "LEFT" else "shift_right"
    kind = ctype(op.value(0).dtype)
    return [r.pointwise(f"rl::{kernel}<{kind}>({{0}}, {{1}})", op.value(0), op.value(1))]


@operator(*_BITS, types=INTS)
def _bits(r: Reader, op: Op) -> list[Value]:
    return [r.pointwise(f"(({{0}}) {_BITS[op.type]} ({{1}}))", op.value(0), op.value(1))]


@operator("BitwiseNot", types=INTS)
def _bits_not(r: Reader, op: Op) -> list[Value]:
    return [r.pointwise("(~({0}))", op.value(0))]


@operator(*_ORDER, types=NUMBERS)
def _order(r: Reader, op: Op) -> list[Value]:
    form = f"(({{0}}) {_ORDER[op.type]} ({{1}}))"
    return [r.pointwise(form, op.value(0), op.value(1), dtype=bool, vector=False)]


@operator("Equal", types=ALL)
def _equal(r: Reader, op: Op) -> list[Value]:
    return [r.pointwise("(({0}) == ({1}))", op.value(0), op.value(1), dtype=bool, vector=False)]


@operator(*_LOGIC, types=("bool",))
def _logic(r: Reader, op: Op) -> list[Value]:
    form = f"(({{0}}) {_LOGIC[op.type]} ({{1}}))"
    return [r.pointwise(form, op.value(0), op.value(1), dtype=bool, vector=False)]


@operator("Not", types=("bool",))
def _not(r: Reader, op: Op) -> list[Value]:
    return [r.pointwise("(!({0}))", op.value(0), dtype=bool, vector=False)]


@operator("IsNaN", types=FLOATS)
def _is_nan(r: Reader, op: Op) -> list[Value]:
    return [r.pointwise("(({0}) != ({0}))", op.value(0), dtype=bool, vector=False)]


@operator("IsInf", types=FLOATS)
def _is_inf(r: Reader, op: Op) -> list[Value]:
    ends = []
    if op.attr("detect_positive", 1):
        ends.append("({0}) == HUGE_VAL")
    if op.attr("detect_negative", 1):
        ends.append("({0}) == -HUGE_VAL")
    form = f"({' || '.join(ends)})" if ends else "(({0}) != ({0}) && false)"
    return [r.pointwise(form, op.value(0), dtype=bool, vector=False)]


@operator(*_VARIADIC, types=NUMBERS)
def _variadic(r: Reader, op: Op) -> list[Value]:
    result = op.value(0)
    form = f"({_VARIADIC[op.type]})"
    if result.dtype.kind in "iu" and op.type != "Sum":
        function = "larger" if op.type == "Max" else "smaller"
        form = f"rl::{function}<{ctype(result.dtype)}>({{0}}, {{1}})"
    for index in range(1, len(op.ins)):
        result = r.pointwise(form, result, op.value(index))
    return [result]


@operator("Mean", types=FLOATS)
def _mean(r: Reader, op: Op) -> list[Value]:
    result = op.value(0)
    for index in range(1, len(op.ins)):
        result = r.pointwise("({0} + {1})", result, op.value(index))
    return [r.pointwise(f"({{0}} / {len(op.ins)}.f)", result)]


@operator("Where", types=ALL, typed=1)
def _where(r: Reader, op: Op) -> list[Value]:
    test, a, b = op.value(0), op.value(1), op.value(2)
    form = "(({0}) ? ({1}) : ({2}))"
    return [r.pointwise(form, test, a, b, dtype=a.dtype, vector=False)]


@operator("Clip", types=NUMBERS)
def _clip(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    known = all(not op.has(i) or op.value(i).const is not None for i in (1, 2))
    if x.dtype == np.float32 and known:
        low = op.const(1, op.attr("min", -np.inf))
        high = op.const(2, op.attr("max", np.inf))
        bounds = f"{literal(float(low))}, {literal(float(high))}"
        return [r.pointwise(f"rl::clip({{0}}, {bounds})", x)]
    for index, function in ((1, "larger"), (2, "smaller")):
        if op.has(index):
            form = f"rl::{function}<{ctype(x.dtype)}>({{0}}, {{1}})"
            x = r.pointwise(form, x, op.value(index), vector=False)
    return [x]


@operator("LeakyRelu", "Elu", "Selu", "HardSigmoid", "ThresholdedRelu", "Celu", "Gelu", "Swish")
def _activation(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
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
    return [r.pointwise("rl::leaky({0}, {1})", op.value(0), op.value(1))]


@operator("Identity", types=ALL)
def _identity(r: Reader, op: Op) -> list[Value]:
    return [op.value(0)]


@operator("Dropout", types=(*FLOATS, "float16", "bfloat16"), note="training mode")
def _dropout(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    if bool(op.const(2, False)) and float(op.const(1, 0.5)) != 0:
        raise No("Dropout in training mode draws random numbers")
    kind = bool if op.opset >= 10 else x.dtype
    return [x, constant(np.ones(x.shape, kind))] if op.count > 1 else [x]


@operator("BatchNormalization", note="training mode")
def _batch_norm(r: Reader, op: Op) -> list[Value]:
    x = op.value(0)
    if op.attr("training_mode", 0) or op.count > 1:
        raise No("BatchNormalization in training mode")
    shape = (-1, *[1] * (len(x.shape) - 2))
    epsilon = op.attr("epsilon", 1e-5)
    values = [op.value(i) for i in range(1, 5)]
    if any(value.const is None for value in values):
        per = [r.reshape(v, (v.size, *shape[1:])) for v in values]
        form = f"(({{0}} - {{3}}) * ({{1}} / rl::sqrt({{4}} + {literal(epsilon)})) + {{2}})"
        return [r.pointwise(form, x, *per)]
    gain, bias, mean, variance = (op.const(i).astype(np.float64) for i in range(1, 5))
    scale = gain / np.sqrt(variance + epsilon)
    a = constant(scale.astype(np.float32).reshape(shape))
    b = constant((bias - mean * scale).astype(np.float32).reshape(shape))
    return [r.pointwise("({0} * {1} + {2})", x, a, b)]


@operator("Shrink", types=FLOATS)
def _shrink(r: Reader, op: Op) -> list[Value]:
    lambd, bias = (literal(float(op.attr(n, d))) for n, d in (("lambd", 0.5), ("bias", 0.0)))
    form = f"(({{0}}) < -{lambd} ? ({{0}}) + {bias} : ({{0}}) > {lambd} ? ({{0}}) - {bias} : 0)"
    return [r.pointwise(form, op.value(0), vector=False)]
