"""From the caller's loader to calibration data: arrays that fit the graph's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from redline.compress.scheme import Calibration
from redline.errors import InputError
from redline.signature import Signature, TensorSpec

SAMPLES = 300  # more moves the ranges little


def collect(loader: Any, signature: Signature, samples: int = SAMPLES) -> Calibration:
    """The first samples of a loader, cut into batches that the graph takes.

    Args:
        loader: a DataLoader or any iterable of batches: a tensor or array; a tuple, of which the
            first entries are the inputs, so that (x, label) is fine; or a dict by input name.
        signature: whose inputs they are.
        samples: how many at most, counted along the first axis.

    Raises:
        InputError: it gives nothing, or something that does not fit; got and expected, by name.

    Example:
        >>> collect([torch.rand(8, 3, 32, 32)], engine.signature).batches[0][0].shape
        (1, 3, 32, 32)
    """
    if not isinstance(loader, Iterable) or isinstance(loader, str | bytes):
        raise InputError(
            f"calibration is a {type(loader).__name__}, expected a loader",
            hint="give a DataLoader, or a list of batches",
        )
    found: list[tuple[np.ndarray, ...]] = []
    count = longest = 0
    for number, batch in _numbered(loader):
        arrays = _fitting(batch, signature, f"calibration batch {number}")
        for piece in _cut(arrays, signature):
            found.append(piece)
            count += piece[0].shape[0] if piece[0].ndim else 1
            if count >= samples:
                break
        longest = max([longest, *(len(array) for array in arrays if array.ndim)])
        if count >= samples:
            break
    if not found and longest:
        raise InputError(
            f"no calibration batch holds as many samples as a call takes: at most {longest}, "
            f"expected {signature.inputs[0].shape[0]}",
            hint="give larger batches, or a model with a dynamic batch",
        )
    if not found:
        raise InputError("the calibration loader gave no batch", hint="check its length")
    return Calibration(tuple(found), f"{count} samples of a {type(loader).__name__}")


def _numbered(loader: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """The batches with their numbers; what the loader raises is told as its error."""
    number, batches = 0, iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # the caller's code
            raise InputError(
                f"the calibration loader raised {type(error).__name__}: {error}",
                where=f"calibration batch {number}",
            ) from error
        yield number, batch
        number += 1


def _fitting(batch: Any, signature: Signature, where: str) -> list[np.ndarray]:
    specs = signature.inputs
    if isinstance(batch, Mapping):
        missing = [spec.name for spec in specs if spec.name not in batch]
        if missing:
            raise InputError(
                f"it has no input {missing[0]!r}, but {', '.join(map(str, batch))}", where=where
            )
        values: Sequence[Any] = [batch[spec.name] for spec in specs]
    elif isinstance(batch, list | tuple):
        if len(batch) < len(specs):
            raise InputError(f"it has {len(batch)} entries for {len(specs)} inputs", where=where)
        values = batch[: len(specs)]
    elif len(specs) == 1:
        values = [batch]
    else:
        names = ", ".join(spec.name for spec in specs)
        raise InputError(f"one {type(batch).__name__} for the inputs {names}", where=where)
    return [_array(value, spec, where) for value, spec in zip(values, specs, strict=True)]


def _array(value: Any, spec: TensorSpec, where: str) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array, wanted = np.asarray(value), np.dtype(spec.dtype)
    fits = array.dtype == wanted or (array.dtype.kind == wanted.kind and wanted.kind in "fiu")
    if not fits:
        raise InputError(f"input {spec.name!r} is {array.dtype}, expected {wanted}", where=where)
    pairs = list(zip(array.shape, spec.shape, strict=False))[1:]
    if array.ndim != len(spec.shape) or any(isinstance(w, int) and n != w for n, w in pairs):
        told = list(spec.shape)
        raise InputError(
            f"input {spec.name!r} has shape {list(array.shape)}, expected {told}", where=where
        )
    if wanted.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"input {spec.name!r} holds values that are not finite", where=where)
    return np.ascontiguousarray(array, wanted)


def _cut(arrays: list[np.ndarray], signature: Signature) -> Iterator[tuple[np.ndarray, ...]]:
    """Pieces of as many samples as the graph takes: its first axis, or the best of a free one."""
    sizes = {spec.shape[0] for spec in signature.inputs if spec.shape}
    lengths = {array.shape[0] for array in arrays if array.ndim}
    if len(sizes) != 1 or len(lengths) != 1:
        yield tuple(arrays)
        return
    size, length = sizes.pop(), lengths.pop()
    dim = signature.dim(size) if isinstance(size, str) else None
    step = min(length, dim.max) if dim else int(size)
    least = dim.min if dim else step
    for start in range(0, length, max(1, step)):
        if min(step, length - start) >= least:
            yield tuple(array[start : start + step] for array in arrays)
