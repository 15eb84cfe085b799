"""Compare what an engine is given with its signature, and say precisely what is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redline.errors import SignatureError
from redline.signature import Signature, TensorSpec


def check_arrays(arrays: Sequence[np.ndarray], signature: Signature) -> None:
    """Dtypes and shapes of all inputs; a dynamic dim must have one size everywhere.

    Raises:
        SignatureError: names the input, what came, what was expected, and what to do.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for array, spec in zip(arrays, signature.inputs, strict=True):
        _check_dtype(array, spec)
        _check_rank(array, spec, signature)
        for axis, (size, wanted) in enumerate(zip(array.shape, spec.shape, strict=True)):
            if isinstance(wanted, int):
                if size != wanted:
                    raise _wrong_shape(array, spec, signature, axis)
                continue
            _check_range(size, wanted, spec, signature)
            before, other = sizes.setdefault(wanted, (size, spec.name))
            if before != size:
                raise SignatureError(
                    f"{wanted!r} is {size} in input {spec.name!r} but {before} in {other!r}",
                    hint="inputs that share a dim must agree in its size",
                )


def _check_dtype(array: np.ndarray, spec: TensorSpec) -> None:
    if array.dtype != np.dtype(spec.dtype):
        raise SignatureError(
            f"input {spec.name!r} is {array.dtype.name}, expected {spec.dtype}",
            hint=f"pass x.astype(np.{spec.dtype}) or, with torch, x.to(torch.{spec.dtype})",
        )


def _check_rank(array: np.ndarray, spec: TensorSpec, signature: Signature) -> None:
    if array.ndim == len(spec.shape):
        return
    hint = ""
    if array.ndim + 1 == len(spec.shape) and _fits(array.shape, spec.shape[1:]):
        hint = "add the first axis: x[None]"
    elif array.ndim == len(spec.shape) + 1 and _fits(array.shape[1:], spec.shape):
        hint = "take off the first axis: x[0]"
    raise SignatureError(
        f"input {spec.name!r} has {array.ndim} axes {array.shape}, "
        f"expected {len(spec.shape)}: {spell_shape(spec, signature)}",
        hint=hint,
    )


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    return all(isinstance(w, str) or w == size for size, w in zip(shape, wanted, strict=True))


def _check_range(size: int, name: str, spec: TensorSpec, signature: Signature) -> None:
    dim = signature.dim(name)
    if dim is not None and not dim.min <= size <= dim.max:
        low, high = min(dim.min, size), max(dim.max, size)
        raise SignatureError(
            f"{name!r} is {size} in input {spec.name!r}, expected {dim.min} to {dim.max}",
            hint=f'optimize with dynamic={{"{name}": ({low}, {dim.opt}, {high})}}',
        )


def _wrong_shape(
    array: np.ndarray, spec: TensorSpec, signature: Signature, axis: int
) -> SignatureError:
    return SignatureError(
        f"input {spec.name!r} has shape {array.shape}, expected {spell_shape(spec, signature)}",
        where=f"axis {axis}",
        hint="for an axis that varies, optimize with dynamic={...}",
    )


def spell_shape(spec: TensorSpec, signature: Signature) -> str:
    """A shape for people: "(batch 1..32, 3, 224, 224)"."""
    words = []
    for axis in spec.shape:
        dim = signature.dim(axis) if isinstance(axis, str) else None
        words.append(f"{axis} {dim.min}..{dim.max}" if dim else str(axis))
    return "(" + ", ".join(words) + ("," if len(words) == 1 else "") + ")"
