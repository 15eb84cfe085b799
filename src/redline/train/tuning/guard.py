"""The user's state as it was: random numbers, threads, flags, gradients, parameters, modes."""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from redline.errors import InputError
from redline.train.tuning.loop import Loop


@contextlib.contextmanager
def untouched(loop: Loop) -> Iterator[None]:
    """Put back, at the end and after any error, all that a trial may change around the loop.

    Raises:
        InputError: a parameter of the user's own model was changed, which only a `compute`, `loss`
            or `log` that holds that model can have done.
    """
    generators = _generators(loop)
    states = [(one, one.get_state()) for one in generators]
    threads, modes = torch.get_num_threads(), [(m, m.training) for m in loop.model.modules()]
    numbers = random.getstate(), np.random.get_state()
    flags = _flags()
    held = [(p, p.grad) for p in loop.model.parameters()]
    versions = [(one, one._version) for one in (*loop.model.parameters(), *loop.model.buffers())]
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            yield
    finally:
        for generator, state in states:
            generator.set_state(state)
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        torch.set_num_threads(threads)
        for module, training in modes:
            module.training = training
        set_flags(*flags)
        changed = [one for one, version in versions if one._version != version]
        for parameter, grad in held:
            parameter.grad = grad
    if changed:
        raise InputError(
            f"{len(changed)} tensors of your model were written to during the trials",
            hint="compute, loss and log must use the model they are given, not one around them",
        )


def _flags() -> tuple[bool, bool, bool]:
    return (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )


def set_flags(matmul: bool, convolution: bool, benchmark: bool) -> None:
    """TF32 of products and of convolutions, and cuDNN's search; only what differs is set."""
    if torch.backends.cuda.matmul.allow_tf32 != matmul:
        torch.backends.cuda.matmul.allow_tf32 = matmul
    if torch.backends.cudnn.allow_tf32 != convolution:
        torch.backends.cudnn.allow_tf32 = convolution
    if torch.backends.cudnn.benchmark != benchmark:
        torch.backends.cudnn.benchmark = benchmark


def _generators(loop: Loop) -> list[torch.Generator]:
    """The generators that the loader and its samplers hold, each once."""
    loader = loop.loader
    holders = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    holders.append(getattr(holders[-1], "sampler", None))
    found = [getattr(one, "generator", None) for one in holders]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())


class Quiet:
    """What `log` prints goes to a file that is thrown away, a line at a time as to a terminal."""

    def __enter__(self) -> None:
        self._file = tempfile.TemporaryFile("w", buffering=1, encoding="utf-8")
        self._redirect = contextlib.redirect_stdout(self._file)
        self._redirect.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._redirect.__exit__(*error)
        self._file.close()
