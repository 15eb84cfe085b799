"""A module run where it is, behind the same seam as a packaged part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from redline.errors import RunError
from redline.signature import Signature
from redline.tree import as_call, flatten, unflatten


class ModuleRunner:
    """Runs a torch callable on arrays; `bind` is for timing it the way its users call it."""

    def __init__(
        self,
        call: Callable[..., Any],
        signature: Signature,
        *,
        threads: int = 0,
        channels_last: bool = False,
    ) -> None:
        self._call = call
        self._signature = signature
        self._threads = threads
        self._channels_last = channels_last

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Arrays in the order of signature.inputs -> arrays in the order of .outputs."""
        return [leaf.numpy(force=True) for leaf in self._leaves(self.bind(inputs)())]

    def bind(self, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """The call with its inputs as tensors, without conversions: what a PyTorch user pays."""
        tensors = [_tensor(array) for array in inputs]
        if self._channels_last:
            tensors = [_last(tensor) for tensor in tensors]
        given = unflatten(self._signature.input_tree, tensors)
        arguments, keywords = as_call(given)

        def call() -> Any:
            before = torch.get_num_threads()
            if self._threads in (0, before):
                with torch.inference_mode():
                    return self._call(*arguments, **keywords)
            torch.set_num_threads(self._threads)  # for the whole process, so it is put back
            try:
                with torch.inference_mode():
                    return self._call(*arguments, **keywords)
            finally:
                torch.set_num_threads(before)

        return call

    def close(self) -> None:
        """Nothing to let go of: the module belongs to its owner."""

    def _leaves(self, outputs: Any) -> list[torch.Tensor]:
        leaves: list[torch.Tensor] = flatten(self._signature.output_tree, outputs)
        if not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise RunError("the module returned something else than tensors")
        return leaves


def _tensor(array: np.ndarray) -> torch.Tensor:
    """Over the same memory, if it may be written to: torch warns of tensors that may not."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
