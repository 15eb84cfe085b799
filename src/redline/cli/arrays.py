"""Arrays on the command line: put in order, shown and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from redline.errors import InputError, SaveError, SignatureError, UnknownNameError

_SHOWN = 6  # values of each array


def ordered(given: Any, names: Sequence[str]) -> list[np.ndarray]:
    """Arrays, by position or by name, in the order of the signature's inputs.

    Raises:
        SignatureError: too many, or one is missing.
        UnknownNameError: a name that is no input.
    """
    if not isinstance(given, dict):
        if len(given) != len(names):
            raise SignatureError(
                f"got {len(given)} inputs, expected {len(names)}: {', '.join(names)}",
                hint="give --input once for each",
            )
        return [np.asarray(array, order="C") for array in given]
    for name in given:
        if name not in names:
            raise UnknownNameError("input", name, names)
    if lacking := [name for name in names if name not in given]:
        raise SignatureError(f"input {lacking[0]!r} is missing", hint=f"needed: {', '.join(names)}")
    return [np.asarray(given[name], order="C") for name in names]


def summary(array: np.ndarray) -> dict[str, Any]:
    """What a person wants to know of an array at a glance."""
    spread = {}
    if array.size and array.dtype.kind in "fiu":
        spread = {key: float(getattr(array, key)()) for key in ("min", "mean", "max")}
    first = array.ravel()[:_SHOWN].tolist()
    return {"dtype": str(array.dtype), "shape": list(array.shape), **spread, "first": first}


def table(outputs: Mapping[str, np.ndarray]) -> Table:
    """One row an array."""
    grid = Table("output", "dtype", "shape", "min", "mean", "max", "first values", box=None)
    for name, array in outputs.items():
        row = summary(array)
        spread = [f"{row[key]:.4g}" if key in row else "" for key in ("min", "mean", "max")]
        first = " ".join(
            f"{one:.4g}" if array.dtype.kind == "f" else str(one) for one in row["first"]
        )
        more = " …" if array.size > _SHOWN else ""
        grid.add_row(name, row["dtype"], str(row["shape"]), *spread, first + more)
    return grid


def save(path: Path, outputs: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an .npz, or the only one to an .npy; all of it or nothing.

    Raises:
        InputError: several arrays for an .npy.
        SaveError: the file cannot be written; what was there is untouched.
    """
    if path.suffix == ".npy" and len(outputs) > 1:
        raise InputError(
            f"an .npy file holds one output, the engine has {len(outputs)}", hint="save to an .npz"
        )
    beside = path.with_name(f".{path.name}")
    try:
        with beside.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, next(iter(outputs.values())), allow_pickle=False)
            else:
                np.savez(file, allow_pickle=False, **outputs)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise SaveError(
            f"the outputs cannot be written: {error.strerror or error}", where=str(path)
        ) from error
