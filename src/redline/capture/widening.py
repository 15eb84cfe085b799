"""Run any torch code in float64, whatever precision it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class Widening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside it every operator gets, makes and is asked for float64 instead of narrower floats.

    Example:
        >>> with Widening():
        ...     torch.ones(2).float().dtype
        torch.float64
    """

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        wide_args, wide_kwargs = tree_map(_widen, (tuple(args), dict(kwargs or {})))
        return tree_map(_widen, func(*wide_args, **wide_kwargs))


def _widen(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.dtype in _NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _NARROW else value
    return value
