"""Expressions about tensors, evaluated without eval: names, slices, views and a few makers.

Only what is in the tables below can be called, on tensors and with numbers, so that a typed
expression can make a tensor and look at it, and can do nothing else: no import, no file, no
attribute that is not listed. `redline layout` and `redline.why` use it.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from redline.errors import InputError

LARGEST = 1 << 24  # elements that an expression may make


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


_MAKERS = ("zeros", "ones", "empty", "full", "rand", "randn", "arange", "eye", "empty_strided")
_NUMPY_MAKERS = ("zeros", "ones", "empty", "full", "arange", "eye")
# Methods of tensors that give views or rearranged copies. None of them writes.
_METHODS = _words(
    "T adjoint as_strided bool broadcast_to byte chunk clone conj",
    "contiguous cpu detach diagonal double expand flatten flip float",
    "half int long movedim moveaxis mT narrow permute repeat",
    "repeat_interleave reshape select split squeeze swapaxes swapdims t to",
    "transpose unflatten unfold unsqueeze view bfloat16 H mH real",
    "imag size stride dim numel storage_offset roll rot90 tile",
    "unbind sum mean matmul softmax",
)
_ARRAY_METHODS = _words(
    "T reshape transpose ravel swapaxes squeeze copy diagonal flatten",
    "astype repeat view",
)
# Of these the result has no memory of its own, however large it is.
_VIEWS = _words(
    "as_strided broadcast_to chunk detach diagonal expand movedim moveaxis narrow",
    "permute select size split squeeze stride dim numel storage_offset",
    "swapaxes swapdims t transpose unbind unflatten unfold unsqueeze view",
    "conj adjoint",
)
_GROW = ("repeat", "repeat_interleave", "tile", "matmul")
_DTYPES = [
    "float16",
    "float32",
    "float64",
    "bfloat16",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "bool",
    "complex64",
    "complex128",
    "half",
    "float",
    "double",
    "long",
    "int",
    "cfloat",
]
_FORMATS = ("channels_last", "channels_last_3d", "contiguous_format", "preserve_format")
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.MatMult: operator.matmul,
}
_HINT = 'for example: redline layout "torch.zeros(4, 6).t()[1:]"'


class _Namespace:
    """`torch` or `np` as far as an expression may know it."""

    def __init__(self, name: str, members: Mapping[str, Any]) -> None:
        self.name, self.members = name, members


def evaluate(text: str, names: Mapping[str, Any] | None = None) -> Any:
    """The value of an expression, in which only what this module lists can be called.

    Args:
        names: values that it may name besides `torch` and `np`.

    Raises:
        InputError: it cannot be read, names or calls something else, or fails.

    Example:
        >>> evaluate("torch.zeros(4, 6).t()[1:]").stride()
        (1, 6)
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{text!r} cannot be read: {error}", hint=_HINT) from None
    return value_of(tree.body, names or {})


def value_of(node: ast.AST, names: Mapping[str, Any]) -> Any:
    """The value of a part of a parsed expression; see evaluate."""
    try:
        return _value(node, {**_spaces(), **names})
    except InputError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, MemoryError, OverflowError) as error:
        raise InputError(f"{ast.unparse(node)} fails: {error}") from error
    except (RecursionError, ZeroDivisionError, AttributeError, NotImplementedError) as error:
        raise InputError(f"{ast.unparse(node)} fails: {error}") from error


def _spaces() -> dict[str, Any]:
    import torch

    known = {name: getattr(torch, name) for name in (*_MAKERS, *_DTYPES, *_FORMATS)}
    arrays = {name: getattr(np, name) for name in (*_NUMPY_MAKERS, *_array_dtypes())}
    return {"torch": _Namespace("torch", known), "np": _Namespace("np", arrays)}


def _array_dtypes() -> list[str]:
    return [name for name in _DTYPES if isinstance(getattr(np, name, None), type)]


def _value(node: ast.AST, names: Mapping[str, Any]) -> Any:
    handler = _HANDLERS.get(type(node))
    if handler is None:
        raise _refusal(node)
    return handler(node, names)


def _refusal(node: ast.AST) -> InputError:
    return InputError(
        f"{ast.unparse(node)!r} is not allowed here: tensors, numbers, slices and views are",
        hint=_HINT,
    )


def _constant(node: Any, names: Mapping[str, Any]) -> Any:
    if isinstance(node.value, bool | int | float | None.__class__) or node.value is Ellipsis:
        return node.value
    raise _refusal(node)


def _name(node: Any, names: Mapping[str, Any]) -> Any:
    if node.id not in names:
        raise InputError(f"{node.id!r} is not known", hint="known: " + ", ".join(sorted(names)))
    return names[node.id]


def _sequence(node: Any, names: Mapping[str, Any]) -> Any:
    made = [_value(one, names) for one in node.elts]
    return tuple(made) if isinstance(node, ast.Tuple) else made


def _slice(node: Any, names: Mapping[str, Any]) -> slice:
    parts = (node.lower, node.upper, node.step)
    return slice(*(None if part is None else _value(part, names) for part in parts))


def _negative(node: Any, names: Mapping[str, Any]) -> Any:
    if not isinstance(node.op, ast.USub | ast.UAdd):
        raise _refusal(node)
    value = _value(node.operand, names)
    return -value if isinstance(node.op, ast.USub) else value


def _arithmetic(node: Any, names: Mapping[str, Any]) -> Any:
    compute = _BINARY.get(type(node.op))
    if compute is None:
        raise _refusal(node)
    left, right = _value(node.left, names), _value(node.right, names)
    for one in (left, right):
        number = isinstance(one, int | float) and abs(one) < 1 << 63
        if not number and not _is_tensor(one):
            raise _refusal(node)  # a list times a large number fills the memory
    shapes = [tuple(one.shape) for one in (left, right) if _is_tensor(one)]
    if len(shapes) == 2 and isinstance(node.op, ast.MatMult):
        _limited(math.prod(shapes[0]) * math.prod(shapes[1][-1:]), node)
    elif shapes:
        _limited(math.prod(np.broadcast_shapes(*shapes)), node)
    return compute(left, right)


def _item(node: Any, names: Mapping[str, Any]) -> Any:
    value = _value(node.value, names)
    if not _is_tensor(value) and not isinstance(value, tuple | list):
        raise _refusal(node)
    return value[_value(node.slice, names)]


def _attribute(node: Any, names: Mapping[str, Any]) -> Any:
    value, name = _value(node.value, names), node.attr
    if isinstance(value, _Namespace):
        if name in value.members:
            return value.members[name]
        raise InputError(
            f"{value.name}.{name} is not allowed here",
            hint=f"{value.name} has here: " + ", ".join(sorted(value.members)),
        )
    if name == "shape" and _is_tensor(value):
        return tuple(value.shape)
    if name in _allowed(value):
        return getattr(value, name)
    raise _refusal(node)


def _allowed(value: Any) -> frozenset[str]:
    if isinstance(value, np.ndarray):
        return _ARRAY_METHODS
    return _METHODS if _is_tensor(value) else frozenset()


def _call(node: Any, names: Mapping[str, Any]) -> Any:
    if not isinstance(node.func, ast.Attribute):
        raise _refusal(node)
    owner = _value(node.func.value, names)
    function = _attribute(node.func, names)
    args = [_value(one, names) for one in node.args]
    kwargs = {one.arg: _value(one.value, names) for one in node.keywords if one.arg}
    if len(kwargs) != len(node.keywords) or not callable(function):
        raise _refusal(node)
    name = node.func.attr
    if isinstance(owner, _Namespace) or name in _GROW:
        base = math.prod(owner.shape) if _is_tensor(owner) else 1
        sizes = args[:1] if name == "full" else [*args, *kwargs.values()]
        asked = _asked(sizes, largest=name == "arange")
        _limited(base * asked * (asked if name == "eye" else 1), node)
    elif name not in _VIEWS:
        _limited(math.prod(owner.shape), node)  # an expanded tensor is written out
    return function(*args, **kwargs)


def _asked(values: list[Any], largest: bool) -> int:
    """An upper bound of how many elements these sizes ask for."""
    numbers = []
    for value in values:
        found = value if isinstance(value, tuple | list) else [value]
        numbers += [abs(one) for one in found if isinstance(one, int | float)]
        numbers += [math.prod(one.shape) for one in found if _is_tensor(one)]
    if any(not math.isfinite(one) for one in numbers):
        return LARGEST + 1
    if largest:
        return math.ceil(sum(numbers) / min([1, *(one for one in numbers if one)]))
    return math.prod(max(1, math.ceil(one)) for one in numbers)


def _limited(count: int, node: ast.AST) -> None:
    if count > LARGEST:
        raise InputError(
            f"{ast.unparse(node)} may make {count:.3g} elements, at most {LARGEST} are made here",
            hint="strides show on small sizes as well",
        )


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor | np.ndarray)


_HANDLERS: dict[type[ast.AST], Callable[[Any, Mapping[str, Any]], Any]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Tuple: _sequence,
    ast.List: _sequence,
    ast.Slice: _slice,
    ast.UnaryOp: _negative,
    ast.BinOp: _arithmetic,
    ast.Subscript: _item,
    ast.Attribute: _attribute,
    ast.Call: _call,
}
