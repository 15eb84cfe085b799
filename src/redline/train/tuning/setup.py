"""Everything that the tuner may change about a training step, as one value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Feed = Literal["samples", "slices", "memory"]
Layout = Literal["as it is", "channels_last", "contiguous"]
Kernel = Literal["as it is", "foreach", "fused"]


@dataclass(frozen=True)
class Setup:
    """One way to run the same training step.

    Attributes:
        feed: how batches come: "samples" one by one through the DataLoader, "slices" of a
            TensorDataset's tensors, or "memory", samples that were transformed once and kept.
        workers, prefetch, persistent, pin: as DataLoader's num_workers, prefetch_factor,
            persistent_workers and pin_memory.
        non_blocking: copies to the device do not wait.
        set_to_none: of zero_grad().
        kernel: the optimizer's implementation.
        log_every: steps from one call of `log` to the next.
        autocast: dtype of torch.autocast, or "" for none.
        layout: memory format of weights and input together.
        threads: torch.set_num_threads(); compile: torch.compile(model).
        tf32, cudnn_benchmark: the flags of CUDA.
    """

    feed: Feed = "samples"
    workers: int = 0
    prefetch: int | None = None
    persistent: bool = False
    pin: bool = False
    non_blocking: bool = False
    set_to_none: bool = True
    kernel: Kernel = "as it is"
    log_every: int = 1
    autocast: str = ""
    layout: Layout = "as it is"
    threads: int = 1
    compile: bool = False
    tf32: bool = False
    cudnn_benchmark: bool = False


@dataclass(frozen=True)
class Change:
    """A change of a setup that is tried as one: what it is called and what it sets.

    `exact` says that the arithmetic stays as it is, up to the order of sums.
    """

    name: str
    fields: tuple[tuple[str, object], ...]
    exact: bool = True
    why: str = ""

    def of(self, setup: Setup) -> Setup:
        """The setup with this change."""
        return replace(setup, **dict(self.fields))  # type: ignore[arg-type]


def change(name: str, *, exact: bool = True, why: str = "", **fields: object) -> Change:
    """A change from keyword arguments.

    Example:
        >>> change("two workers", workers=2).of(Setup()).workers
        2
    """
    return Change(name, tuple(fields.items()), exact, why)
