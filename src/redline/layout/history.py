"""`writes`: a record of every write in place, so that an autograd error can name the line."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from redline.layout.trace import Place, line_of

_KEEP = "_redline_writes"


@dataclass(frozen=True)
class Written:
    """One write in place: the operator, its line, and what made the tensor before."""

    operator: str
    place: Place
    shape: tuple[int, ...]
    storage: int
    maker: str


class Writes:
    """Records writes in place while it is entered; see `writes`."""

    def __init__(self) -> None:
        self.log: list[Written] = []
        self._makers: dict[int, str] = {}
        self._mode = _Recorder(self)

    def __enter__(self) -> Writes:
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._mode.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        if error is not None:
            setattr(error, _KEEP, self)  # so that redline.why(error) finds it

    def of(self, shape: tuple[int, ...], maker: str = "") -> list[Written]:
        """The writes to storages of tensors of this shape, made by this operator if it is told."""
        return [
            one
            for one in self.log
            if one.shape == shape and (not maker or one.maker.strip("_") == maker)
        ]

    def note(self, func: Any, place: Place, args: Any, kwargs: Any, result: Any) -> None:
        """Take down one operator: what it wrote to, or what it made."""
        name = func.overloadpacket.__name__
        named = func._schema.arguments
        pairs = [*zip(named, args, strict=False)]
        pairs += [(one, (kwargs or {}).get(one.name)) for one in named[len(args) :]]
        for argument, value in pairs:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(value, torch.Tensor):
                storage = _address(value)
                maker = self._makers.get(storage, "")
                self.log.append(Written(name, place, tuple(value.shape), storage, maker))
        made = result if isinstance(result, tuple | list) else (result,)
        if not any(one.alias_info for one in func._schema.returns):
            for one in made:
                if isinstance(one, torch.Tensor):
                    self._makers[_address(one)] = name


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, writes: Writes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writes = writes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.writes.note(func, line_of(sys._getframe(1)), args, kwargs, result)
        return result


def _address(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (NotImplementedError, RuntimeError):
        return id(tensor)


def writes() -> Writes:
    """Record writes in place, with their lines, for `redline.why` and for yourself.

    An exception that leaves the block carries the record: `redline.why(error)` then says which
    line wrote to the tensor that the backward pass needed.

    Example:
        >>> with writes() as record:
        ...     _ = torch.zeros(3).add_(1)
        >>> record.log[0].operator
        'add_'
    """
    return Writes()


def record_of(error: BaseException) -> Writes | None:
    """The record that an exception carries, or None."""
    found: Writes | None = getattr(error, _KEEP, None)
    return found
