"""Runs an AOTInductor package. The only module of the run side that imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import RunError
from redline.runtime.settings import closed, failed, threads
from redline.signature import Signature, Tree


class InductorRunner:
    """A package loaded by torch's C++ loader, which many threads may call at once."""

    def __init__(self, part: Part, package: Any, signature: Signature) -> None:
        self._part = part
        self._loader = package.loader
        self._threads = threads(part)
        self._slots = list(_slots(signature.output_tree))

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self._loader is None:
            raise closed(self._part)
        try:
            with _thread_count(self._threads), torch.inference_mode():
                results = self._loader.run([_tensor(array) for array in inputs])
        except Exception as error:
            raise failed(self._part, error) from error
        if len(results) == len(self._slots):  # the package also returns the output's constants
            pairs = zip(results, self._slots, strict=True)
            results = [result for result, is_tensor in pairs if is_tensor]
        return [result.numpy() for result in results]

    def close(self) -> None:
        self._loader = None


def _slots(tree: Tree) -> Iterator[bool]:
    """For each leaf and constant of a nest in order: is it a tensor?"""
    if tree.kind in ("leaf", "constant"):
        yield tree.kind == "leaf"
    for child in tree.children:
        yield from _slots(child)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The same memory as a tensor; a read-only array is copied, as torch has no such thing."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@contextmanager
def _thread_count(count: int) -> Iterator[None]:
    """torch's thread count is the whole process's: set it for the call, and put it back.

    Two engines with different counts that run at the same time may see each other's.
    """
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_part(part: Part, store: Store, signature: Signature) -> InductorRunner:
    """Open "model.pt2", a package made by torch's AOTInductor. It is machine code.

    Setting: threads (int).

    Raises:
        RunError: torch cannot load the package, for one because another torch made it.
    """
    path = store.path("model.pt2")
    try:
        package = torch._inductor.aoti_load_package(str(path))
    except Exception as error:
        raise RunError(
            f"inductor cannot load the package: {str(error)[:500]}",
            hint=f"made by torch {part.needs.get('torch', '?')}, here is {torch.__version__}",
        ) from error
    return InductorRunner(part, package, signature)
