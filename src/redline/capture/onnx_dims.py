"""Which sizes of an ONNX file's inputs are fixed, and which may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir

from redline.errors import InputError, UnknownNameError
from redline.graph.model import Note
from redline.signature import Dim

Axes = tuple[int | str, ...]

_RANGE = 'write {"batch": (min, opt, max)} or {"input": {axis: ("name", min, opt, max)}}'


@dataclass
class Sizes:
    """What every free axis of the inputs stands for.

    A free axis has a symbol: the name the file gives it, or "input.axis" where it gives none.

    Attributes:
        axes: for each input, its sizes and symbols in order.
        dims: symbol -> the dynamic dim it became.
        fixed: symbol -> the size it was fixed to.
    """

    axes: dict[str, Axes]
    dims: dict[str, Dim] = field(default_factory=dict)
    fixed: dict[str, int] = field(default_factory=dict)

    def shape(self, name: str) -> Axes:
        """The shape of an input as a TensorSpec has it."""
        return tuple(self._meaning(axis) for axis in self.axes[name])

    def _meaning(self, axis: int | str) -> int | str:
        if isinstance(axis, int):
            return axis
        return self.dims[axis].name if axis in self.dims else self.fixed[axis]


def settle(
    inputs: Sequence[onnx_ir.Value],
    example: Mapping[str, np.ndarray] | None,
    dynamic: Mapping[str, Any] | None,
) -> tuple[Sizes, tuple[Note, ...]]:
    """Give every free axis a range, or one size.

    The range comes from `dynamic`; without one the size is the example's, and without an example
    a free axis 0 is taken to be a batch of 1.

    Raises:
        InputError: a free axis has neither, or `dynamic` asks for what the file fixes.
    """
    sizes = Sizes({value.name or "": _axes(value) for value in inputs})
    for key, wanted in (dynamic or {}).items():
        if isinstance(wanted, Mapping):
            _set_axes(sizes, key, wanted)
        else:
            _set_named(sizes, key, wanted)
    ranges: dict[str, Dim] = {}
    for dim in sizes.dims.values():
        if ranges.setdefault(dim.name, dim) != dim:
            raise InputError(f"the dynamic dim {dim.name!r} is given two ranges", hint=_RANGE)
    return sizes, tuple(_fix_rest(sizes, example))


def _axes(value: onnx_ir.Value) -> Axes:
    return tuple(
        dim if isinstance(dim, int) else dim.value or f"{value.name}.{axis}"
        for axis, dim in enumerate(value.shape or ())  # the checker wants a shape
    )


def _set_axes(sizes: Sizes, name: str, wanted: Mapping[Any, Any]) -> None:
    """{"input": {axis: (min, opt, max)}}"""
    if name not in sizes.axes:
        raise UnknownNameError("input", name, sizes.axes)
    axes = sizes.axes[name]
    for axis, span in wanted.items():
        if not isinstance(axis, int) or not 0 <= axis < len(axes):
            raise InputError(f"the input {name!r} has axes 0 to {len(axes) - 1}, got {axis!r}")
        symbol = axes[axis]
        if isinstance(symbol, int):
            raise _fixed_in_file(name, axis, symbol)
        default = symbol if symbol.isidentifier() else f"{name}_{axis}"
        _assign(sizes, symbol, _dim(default, span))


def _set_named(sizes: Sizes, key: str, span: Any) -> None:
    """{"batch": (min, opt, max)}: what the file calls so, or axis 0 of every input."""
    dim = _dim(key, span)
    symbols = {axis for axes in sizes.axes.values() for axis in axes if isinstance(axis, str)}
    if key in symbols:
        _assign(sizes, key, dim)
        return
    first = {axes[0] for axes in sizes.axes.values() if axes and isinstance(axes[0], str)}
    if not first:
        name, axes = next((item for item in sizes.axes.items() if item[1]), ("", (0,)))
        if key in sizes.axes or not name:
            raise InputError(f"dynamic[{key!r}] is {span!r}, expected a dict of axes", hint=_RANGE)
        raise _fixed_in_file(name, 0, axes[0])
    for symbol in sorted(first):
        _assign(sizes, str(symbol), dim)


def _dim(name: str, span: Any) -> Dim:
    if isinstance(span, Sequence) and len(span) == 4 and isinstance(span[0], str):
        name, span = span[0], span[1:]
    whole = isinstance(span, Sequence) and all(type(size) is int for size in span)
    if not whole or len(span) != 3 or not 1 <= span[0] <= span[1] <= span[2]:
        raise InputError(
            f"the range of {name!r} is {span!r}, expected 1 <= min <= opt <= max", hint=_RANGE
        )
    return Dim(name, *span)


def _assign(sizes: Sizes, symbol: str, dim: Dim) -> None:
    if sizes.dims.setdefault(symbol, dim) != dim:
        raise InputError(
            f"the axis {symbol!r} is given two ranges: {sizes.dims[symbol]} and {dim}", hint=_RANGE
        )


def _fixed_in_file(name: str, axis: int, size: int | str) -> InputError:
    return InputError(
        f"the file fixes axis {axis} of the input {name!r} to {size}, so it cannot change",
        hint="export the model again with that axis dynamic, or leave `dynamic` out",
    )


def _fix_rest(sizes: Sizes, example: Mapping[str, np.ndarray] | None) -> Iterator[Note]:
    free = [
        (axis, symbol, name)
        for name, axes in sizes.axes.items()
        for axis, symbol in enumerate(axes)
        if isinstance(symbol, str)
    ]
    for axis, symbol, name in sorted(free, key=lambda item: item[0] > 0):
        if symbol in sizes.dims or symbol in sizes.fixed:
            continue
        if example is not None:
            sizes.fixed[symbol] = example[name].shape[axis]
        elif axis == 0:
            sizes.fixed[symbol] = 1
        else:
            named = f", or dynamic={{{symbol!r}: (min, opt, max)}}" if symbol.isidentifier() else ""
            raise InputError(
                f"the file leaves axis {axis} of the input {name!r} open ({symbol!r})",
                hint=f"give an example input{named}",
            )
        yield Note(
            f"axis {axis} of {name!r} is open in the file and is fixed to {sizes.fixed[symbol]}",
            hint=f'to let it change, give dynamic={{"{name}": {{{axis}: (min, opt, max)}}}}',
        )
