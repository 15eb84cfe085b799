"""The inputs that every candidate is verified on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from redline.signature import Signature

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One set of inputs, in the order of Signature.inputs, and a name for reports."""

    name: str
    inputs: tuple[np.ndarray, ...]


def make_cases(
    signature: Signature, example: Sequence[np.ndarray], *, seed: int = 0, extra: int = 2
) -> tuple[Case, ...]:
    """The example first, then random sets like it, then both ends of every dynamic dim.

    Random values keep to what the example shows to be legal: floats are normal with its mean and
    deviation, clipped to its range; integers are uniform from its least to its greatest, so
    embedding indices stay legal and a mask of ones stays one; booleans are as often True. An array
    of a single value, or with NaN or Inf in it, is kept; one of two values (an additive mask) is
    drawn from these two. Other sizes come from tiling or cropping the example first.

    Args:
        example: one array for each of signature.inputs, at the opt sizes.
        seed: the same seed gives the same cases.
        extra: how many random sets at the opt sizes.

    Example:
        >>> [case.name for case in make_cases(signature, example, extra=1)]
        ['example', 'random 1', 'batch=1', 'batch=32']
    """
    cases = [Case("example", tuple(example))]
    opt = tuple(array.shape for array in example)
    wanted = [(f"random {number + 1}", opt) for number in range(extra)]
    for number, (name, shapes) in enumerate([*wanted, *_ends(signature)]):
        random = np.random.default_rng((seed, number))
        arrays = zip(example, shapes, strict=True)
        cases.append(Case(name, tuple(_like(resize(a, shape), random) for a, shape in arrays)))
    return tuple(cases)


def resize(array: np.ndarray, shape: Sizes) -> np.ndarray:
    """The array cropped, or tiled, along each axis to a shape of the same rank.

    Example:
        >>> resize(np.array([1, 2, 3]), (5,))
        array([1, 2, 3, 1, 2])
    """
    for axis, size in enumerate(shape):
        if array.shape[axis] != size:
            array = np.take(array, np.arange(size) % array.shape[axis], axis)
    return array


def _ends(signature: Signature) -> Iterator[tuple[str, tuple[Sizes, ...]]]:
    """Each dim at its min and max with the others at opt, then all of them at once."""
    opt = {dim.name: dim.opt for dim in signature.dims}
    ends = [(f"{dim.name}={size}", {**opt, dim.name: size}) for dim in signature.dims
            for size in (dim.min, dim.max)]  # fmt: skip
    ends.append(("all at min", {dim.name: dim.min for dim in signature.dims}))
    ends.append(("all at max", {dim.name: dim.max for dim in signature.dims}))
    seen = [opt]
    for name, sizes in ends:
        if sizes not in seen:
            seen.append(sizes)
            yield (
                name,
                tuple(
                    tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
                    for spec in signature.inputs
                ),
            )


def _like(array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    if array.size == 0:
        return array
    if array.dtype == np.bool_:
        return _booleans_like(array, random)
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.integer):
        return np.asarray(random.integers(low, high, array.shape, array.dtype, endpoint=True))
    if low == high or not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
        return array
    if np.isin(array, (low, high)).all():
        return np.asarray(random.choice(np.array([low, high]), array.shape))
    wide = array.astype(np.float64)
    drawn = random.normal(wide.mean(), wide.std(), array.shape)
    return np.asarray(np.clip(drawn, float(low), float(high)).astype(array.dtype))


def _booleans_like(array: np.ndarray, random: np.random.Generator) -> np.ndarray:
    drawn = np.asarray(random.random(array.shape) < array.mean())
    if array.any() and not drawn.any():  # a mask that hides everything is rarely legal
        drawn.flat[random.integers(drawn.size)] = True
    return drawn
