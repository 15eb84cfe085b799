"""Element types: their names in C++, and the groups in which operators take them."""

from __future__ import annotations

import numpy as np

from redline.native.ir import No

CTYPES = {
    "float32": "float", "float64": "double", "int64": "int64_t", "int32": "int32_t",
    "int16": "int16_t", "int8": "int8_t", "uint8": "uint8_t", "uint16": "uint16_t",
    "uint32": "uint32_t", "uint64": "uint64_t", "bool": "bool", "float16": "rl::half",
    "bfloat16": "rl::bfloat",
}  # fmt: skip

HALVES = ("float16", "bfloat16")
FLOATS = ("float32", "float64")
INTS = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8")
NUMBERS = (*FLOATS, *INTS)
ALL = (*NUMBERS, "bool", *HALVES)
# C computes these in a wider type: each result is cut back to its own before it is used again.
_WIDENED = ("int16", "int8", "uint16", "uint8", *HALVES)


def ctype(dtype: np.dtype) -> str:
    """The C++ name of a dtype.

    Raises:
        No: there is none, e.g. for strings and for types of four bits.
    """
    if dtype.name not in CTYPES:
        raise No(f"elements of type {dtype.name}")
    return CTYPES[dtype.name]


def half(dtype: np.dtype) -> bool:
    """Whether it is a float of two bytes, which is computed with as float32."""
    return dtype.name in HALVES


def narrowed(form: str, dtype: np.dtype) -> str:
    """A C++ expression cut back to `dtype` where C would carry on in a wider type.

    Example:
        >>> narrowed("{0} + {1}", np.dtype("uint8"))
        '((uint8_t)({0} + {1}))'
    """
    return f"(({ctype(dtype)})({form}))" if dtype.name in _WIDENED else form
