"""Axes that may change: what the user asked for, which sizes to trace with, and whether it held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from redline.errors import InputError, SpecializedAxisError, UnknownNameError
from redline.signature import Dim

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Axes:
    """The dynamic dims, and for each input leaf which axis has which dim."""

    dims: tuple[Dim, ...]
    places: tuple[Mapping[int, str], ...]

    def shape(self, leaf: int, static: Shape, sizes: Mapping[str, int]) -> Shape:
        """A leaf's shape with its dynamic axes at the given sizes."""
        place = self.places[leaf]
        return tuple(
            sizes[place[axis]] if axis in place else size for axis, size in enumerate(static)
        )


def parse(dynamic: Mapping[str, Any] | None, names: Sequence[str], shapes: Sequence[Shape]) -> Axes:
    """Read the `dynamic` argument of optimize().

    {"batch": (1, 8, 32)} is axis 0 of every input whose axis 0 is as large as the first one's.
    {"ids": {0: ("batch", 1, 8, 32), 1: (16, 64, 128)}} names an input; an axis without a name of
    its own is called "<input>_<axis>".

    Raises:
        UnknownNameError: an input that does not exist.
        InputError: a range that is not min <= opt <= max, or an axis out of range.
    """
    dims: dict[str, Dim] = {}
    places: list[dict[int, str]] = [{} for _ in names]
    for key, wanted in (dynamic or {}).items():
        if isinstance(wanted, Mapping):
            if key not in names:
                raise UnknownNameError("input", key, names)
            leaf = list(names).index(key)
            for axis, span in wanted.items():
                _add(dims, places, leaf, _axis(key, axis, shapes[leaf]), span, f"{key}_{axis}")
        else:
            common = next((shape[0] for shape in shapes if shape), None)
            for leaf, shape in enumerate(shapes):
                if shape and shape[0] == common:
                    _add(dims, places, leaf, 0, (key, *_span(key, wanted)), key)
    return Axes(tuple(dims.values()), tuple(places))


def traced_sizes(axes: Axes) -> dict[str, int]:
    """A size for each dim to trace with: at least 2, since torch takes 0 and 1 for constants, and
    no two alike, so that one dim is never mistaken for another.
    """
    sizes: dict[str, int] = {}
    for dim in axes.dims:
        choices = [dim.opt, *range(dim.min, dim.max + 1)]
        fresh = [size for size in choices if size >= 2 and size not in sizes.values()]
        sizes[dim.name] = fresh[0] if fresh else max(2, dim.opt)
    return sizes


def resize(tensor: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Tile and crop a tensor to a shape of the same rank.

    Example:
        >>> resize(torch.tensor([1, 2]), (3,))
        tensor([1, 2, 1])
    """
    for axis, size in enumerate(shape):
        if tensor.shape[axis] != size:
            picks = torch.arange(size) % max(1, tensor.shape[axis])
            tensor = tensor.index_select(axis, picks)
    return tensor


def check_ends(
    axes: Axes,
    leaves: Sequence[torch.Tensor],
    program: torch.export.ExportedProgram,
    model: torch.nn.Module,
) -> None:
    """Run the program at both ends of every range: an axis that became fixed must not go unnoticed.

    Raises:
        SpecializedAxisError: it fails or gives other shapes than the model.
        InputError: the model itself fails there.
    """
    captured = program.module()
    for end in ("min", "max"):
        sizes = {dim.name: getattr(dim, end) for dim in axes.dims}
        inputs = [
            resize(leaf, axes.shape(i, tuple(leaf.shape), sizes)) for i, leaf in enumerate(leaves)
        ]
        wanted = [tuple(output.shape) for output in call_at(model, inputs, sizes)]
        try:
            with torch.no_grad():
                got = [tuple(output.shape) for output in captured(*inputs)]
        except Exception as error:
            raise _specialized(sizes, f"the captured program fails: {error}") from error
        if got != wanted:
            raise _specialized(sizes, f"it gives shapes {got}, the model gives {wanted}")


def call_at(
    model: torch.nn.Module, inputs: Sequence[torch.Tensor], sizes: Mapping[str, int]
) -> Sequence[torch.Tensor]:
    """The model's outputs for inputs of the given sizes.

    Raises:
        InputError: the model itself cannot take them.
    """
    try:
        with torch.no_grad():
            outputs: Sequence[torch.Tensor] = model(*inputs)
    except Exception as error:
        raise InputError(
            f"the model fails at {_words(sizes)}, which `dynamic` allows: {error}",
            hint="narrow the range; axes that must be equal are one dim: give them the same name",
        ) from error
    return outputs


def _words(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items())


def _specialized(sizes: Mapping[str, int], what: str) -> SpecializedAxisError:
    return SpecializedAxisError(
        f"an axis that must be dynamic was fixed by the model's code: at {_words(sizes)} {what}",
        hint="look for sizes written as numbers (view(2, -1), range(10)) in forward",
    )


def _add(
    dims: dict[str, Dim],
    places: list[dict[int, str]],
    leaf: int,
    axis: int,
    span: Any,
    default: str,
) -> None:
    name, sizes = default, span
    if isinstance(span, Sequence) and span and isinstance(span[0], str):
        name, sizes = span[0], span[1:]
    dim = Dim(name, *_span(name, sizes))
    if dims.setdefault(name, dim) != dim:
        raise InputError(f"dim {name!r} is given two ranges: {dims[name]} and {dim}")
    if dim.min != dim.max:
        places[leaf][axis] = name
    else:
        dims.pop(name)


def _span(name: str, sizes: Any) -> tuple[int, int, int]:
    """(min, opt, max) from three numbers, or from two with opt = max."""
    whole = isinstance(sizes, Sequence) and all(type(size) is int for size in sizes)
    if whole and len(sizes) in (2, 3):
        least, most = sizes[0], sizes[-1]
        opt = sizes[1] if len(sizes) == 3 else most
        if 1 <= least <= opt <= most:
            return least, opt, most
    raise InputError(
        f"dynamic dim {name!r} is {sizes!r}, expected whole numbers 1 <= min <= opt <= max",
        hint='for example dynamic={"batch": (1, 8, 32)}',
    )


def _axis(name: str, axis: Any, shape: Shape) -> int:
    if type(axis) is not int or not -len(shape) <= axis < len(shape):
        raise InputError(f"input {name!r} has no axis {axis!r}: its shape is {shape}")
    return axis % len(shape)
