"""The seam between an engine and a backend: open a part, run it, close it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import MissingError, UnknownNameError
from redline.signature import Signature


class Runner(Protocol):
    """A loaded part. `run` may be called from many threads at once.

    It may also have `offer(inputs)`, which takes anything: it runs where these are exactly the
    arrays of the signature, in C order, and gives None where they are not, having done nothing.
    """

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Arrays in the order of signature.inputs -> fresh arrays in the order of .outputs."""
        ...

    def close(self) -> None:
        """Let go of memory and threads; a second call does nothing."""
        ...


Opener = Callable[[Part, Store, Signature], Runner]

# A new backend adds one line: its name -> the module that has open_part().
RUNNERS = {
    "null": "redline.runtime.run_null",
    "onnxruntime": "redline.runtime.run_onnxruntime",
    "openvino": "redline.runtime.run_openvino",
    "ncnn": "redline.runtime.run_ncnn",
    "native": "redline.runtime.run_native",
    "inductor": "redline.runtime.run_inductor",
}


def open_part(part: Part, store: Store, signature: Signature) -> Runner:
    """Open a part with its backend's runner.

    Raises:
        UnknownNameError: no runner of that name.
        MissingError: its library is not installed; the hint says the command that mends it.
    """
    if part.backend not in RUNNERS:
        raise UnknownNameError("runner", part.backend, RUNNERS)
    try:
        module = importlib.import_module(RUNNERS[part.backend])
    except ImportError as error:
        raise MissingError(
            f"the engine's {part.backend} part needs a library that is not installed: {error}",
            hint=f"pip install {' '.join(part.needs) or part.backend}",
        ) from error
    opener: Opener = module.open_part
    return opener(part, store, signature)
