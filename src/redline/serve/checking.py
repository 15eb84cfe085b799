"""Holds a request against a model before it is queued, so that it can fail nobody but itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from redline.serve.messages import Request, ServeError, Status
from redline.serve.opening import Tensor

Key = tuple[tuple[int, ...], ...]


class Checker:
    """What one model takes.

    Attributes:
        batched: the first axis is a batch, whose sizes may differ from request to request.
    """

    def __init__(
        self,
        model: str,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        *,
        min_batch: int,
        max_batch: int,
    ) -> None:
        self._model = model
        self._inputs = tuple(inputs)
        self._outputs = {tensor.name for tensor in outputs}
        self.batched = max_batch > 0
        self._min, self._max = min_batch, max_batch
        skip = 1 if self.batched else 0
        # What need not be looked at axis by axis: dtype, rank, and the shape behind the batch.
        self._fixed = tuple(tensor.shape[skip:] for tensor in self._inputs)
        self._skip = skip
        self._shared = any(
            axis >= skip for tensor in self._inputs for axis, _, _, _ in tensor.ranges
        )

    def check(self, request: Request) -> tuple[list[np.ndarray], int, Key]:
        """Arrays in the model's order, rows, and what requests of one batch must have in common.

        Raises:
            ServeError: INVALID, with the input and what was expected.
        """
        given = request.inputs
        if len(given) != len(self._inputs):
            raise self._wrong_names(request)
        for name in request.outputs:
            if name not in self._outputs:
                raise self._wrong(f"unexpected inference output {name[:200]!r}")
        arrays: list[np.ndarray] = []
        key = []
        for tensor, fixed in zip(self._inputs, self._fixed, strict=True):
            array = given.get(tensor.name)
            if array is None:
                raise self._wrong_names(request)
            arrays.append(array)
            key.append(self._check_one(tensor, array, fixed))
        rows = self._rows(arrays) if self._skip else 1
        if self._shared:
            self._check_same(arrays)
        return arrays, rows, tuple(key)

    def _check_one(
        self, tensor: Tensor, array: np.ndarray, fixed: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The shape behind the batch."""
        skip, shape = self._skip, array.shape
        if array.dtype != tensor.dtype:
            raise self._wrong_type(tensor, array)
        if len(shape) != len(tensor.shape):
            raise self._wrong_shape(tensor, array)
        if shape[skip:] != fixed and not _fits(shape, tensor, skip):
            raise self._wrong_shape(tensor, array)
        return shape[skip:]

    def _rows(self, arrays: Sequence[np.ndarray]) -> int:
        rows: int = arrays[0].shape[0]
        for tensor, array in zip(self._inputs, arrays, strict=True):
            if array.shape[0] != rows:
                raise self._wrong(
                    f"input '{tensor.name}' has {array.shape[0]} rows, the others have {rows}"
                )
        if not self._min <= rows <= self._max:
            raise self._wrong(
                f"inference request batch-size must be from {self._min} to {self._max}, got {rows}"
            )
        return rows

    def _check_same(self, arrays: Sequence[np.ndarray]) -> None:
        """Free axes that share a name and have a range must agree."""
        sizes: dict[str, int] = {}
        for tensor, array in zip(self._inputs, arrays, strict=True):
            for axis, name, _, _ in tensor.ranges:
                size = array.shape[axis]
                if axis >= self._skip and sizes.setdefault(name, size) != size:
                    raise self._wrong(
                        f"input {tensor.name!r} has {size} in axis {axis} ({name}), "
                        f"another input has {sizes[name]}"
                    )

    def _wrong(self, what: str) -> ServeError:
        return ServeError(Status.INVALID, f"{what} for model '{self._model}'")

    def _wrong_names(self, request: Request) -> ServeError:
        known = [tensor.name for tensor in self._inputs]
        for name in request.inputs:
            if name not in known:
                return self._wrong(f"unexpected inference input '{name[:200]}'")
        missing = [name for name in known if name not in request.inputs]
        return self._wrong(
            f"expected {len(known)} inputs but got {len(request.inputs)} inputs; "
            f"missing {', '.join(missing)}"
        )

    def _wrong_type(self, tensor: Tensor, array: np.ndarray) -> ServeError:
        from redline.serve.dtypes import to_datatype

        return self._wrong(
            f"inference input '{tensor.name}' data-type is '{to_datatype(array.dtype)}', but "
            f"'{tensor.datatype}' is expected"
        )

    def _wrong_shape(self, tensor: Tensor, array: np.ndarray) -> ServeError:
        want = [-1, *tensor.shape[1:]] if self.batched else list(tensor.shape)
        spelled = f"[{','.join(map(str, want))}], got [{','.join(map(str, array.shape))}]"
        limits = "".join(
            f" ({name} from {low} to {high})"
            for axis, name, low, high in tensor.ranges
            if axis >= self._skip
        )
        return self._wrong(
            f"unexpected shape for input '{tensor.name}': expected {spelled}{limits}"
        )


def _fits(shape: tuple[int, ...], tensor: Tensor, skip: int) -> bool:
    for axis in range(skip, len(shape)):
        if tensor.shape[axis] not in (-1, shape[axis]):
            return False
    return all(axis < skip or low <= shape[axis] <= high for axis, _, low, high in tensor.ranges)
