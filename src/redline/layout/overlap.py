"""May a tensor be written to: has every index an address of its own?"""

from __future__ import annotations

import math

from redline.layout.strides import Ints, Verdict, is_dense

_STEPS = 100_000  # of the search, after which the answer is "not known"

Index = tuple[int, ...]


class TooHardError(Exception):
    """The search for two indices with one address was given up."""


def may_write(shape: Ints, strides: Ints) -> Verdict:
    """May it be written in place, so that one write changes one element?

    torch refuses only the first kind of overlap, a dim of stride 0; the others it writes to, with
    results that depend on the order of the writes.

    Example:
        >>> print(may_write((3, 3), (1, 1)))
        no: [0, 2] and [2, 0] are the same element; torch does not notice
    """
    if 0 in shape:
        return Verdict(True, "it has no elements")
    for dim, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if size > 1 and stride == 0:
            told = f"dim {dim} has stride 0, so its {size} indices are one element; torch refuses"
            zeros = (0,) * len(shape)
            return Verdict(False, told, witness=(zeros, zeros[:dim] + (1,) + zeros[dim + 1 :]))
    try:
        pair = shared_address(shape, strides)
    except TooHardError:
        return Verdict(False, "whether two indices share an address was too hard to tell")
    if pair:
        first, second = (f"[{', '.join(map(str, index))}]" for index in pair)
        told = f"{first} and {second} are the same element; torch does not notice"
        return Verdict(False, told, witness=pair)
    return Verdict(True, "every index has an address of its own")


def shared_address(shape: Ints, strides: Ints) -> tuple[Index, Index] | None:
    """Two different indices with one address, or None if there are none.

    It looks for whole numbers d, not all zero, with |d[i]| < size[i] and sum(d[i]*stride[i]) == 0:
    two indices that differ by d have one address. Dims are taken by falling stride; what the
    smaller ones can still reach, and their common divisor, cut the search.

    Raises:
        TooHardError: the search was given up.

    Example:
        >>> shared_address((2, 3), (2, 1))
        ((0, 2), (1, 0))
    """
    if is_dense(shape, strides) or 0 in shape:
        return None
    dims = sorted((d for d in range(len(shape)) if shape[d] > 1), key=lambda d: -abs(strides[d]))
    steps = [abs(strides[d]) for d in dims]
    bounds = [shape[d] - 1 for d in dims]
    found = _search(steps, bounds)
    if found is None:
        return None
    first, second = [0] * len(shape), [0] * len(shape)
    for dim, difference in zip(dims, found, strict=True):
        signed = difference if strides[dim] >= 0 else -difference
        (first if signed < 0 else second)[dim] = abs(signed)
    return (tuple(first), tuple(second))


def _search(steps: list[int], bounds: list[int]) -> list[int] | None:
    """Differences, one a step, not all 0, that sum to 0; the steps fall."""
    count = len(steps)
    reach, divisor = [0] * (count + 1), [0] * (count + 1)
    for place in reversed(range(count)):
        reach[place] = reach[place + 1] + steps[place] * bounds[place]
        divisor[place] = math.gcd(divisor[place + 1], steps[place])
    tried = 0

    def go(place: int, total: int, started: bool) -> list[int] | None:
        nonlocal tried
        tried += 1
        if tried > _STEPS:
            raise TooHardError
        if place == count:
            return [] if started and total == 0 else None
        if abs(total) > reach[place] or (divisor[place] and total % divisor[place]):
            return None
        step, bound, rest = steps[place], bounds[place], reach[place + 1]
        if step == 0:
            after = go(place + 1, total, True)
            return None if after is None else [1, *after]
        low = max(-bound, -((total + rest) // step))
        high = min(bound, (rest - total) // step)
        # d and -d are one answer: the first difference that is not 0 may be taken positive.
        for value in range(high, (low if started else 0) - 1, -1):
            after = go(place + 1, total + value * step, started or value != 0)
            if after is not None:
                return [value, *after]
        return None

    return go(0, 0, False)
