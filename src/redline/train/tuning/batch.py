"""A larger batch: how far the device goes, and until when it pays. Tried in a child process."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_map

from redline import knobs, machine
from redline.errors import OutOfMemoryError, RedlineError, RunError
from redline.measure.child import Child
from redline.train.tuning.loop import Loop, nbytes, tensors
from redline.train.tuning.rig import Rig
from redline.train.tuning.setup import Setup

_KNEE = 1.03  # samples/s must gain this much for twice the batch
_MARGIN = 0.9  # of the free memory


@dataclass(frozen=True)
class BatchOffer:
    """Batch sizes that were run, with samples/s (0.0: out of memory), and the one that is offered.

    `size` is None when the present one is best.
    """

    size: int | None
    rates: tuple[tuple[int, float], ...]
    why: str


def climb(
    start: int, measure: Callable[[int], float], cap: int, deadline: float
) -> tuple[int, dict[int, float]]:
    """Double until memory, the data or the gain ends; bisect twice after running out of memory.

    Args:
        measure: samples/s at a size; raises OutOfMemoryError.

    Returns:
        The size to offer, which has been run, and samples/s of each that was tried.
    """
    rates = {start: measure(start)}
    best, step, bisections = start, start * 2, 0
    while step <= cap and step not in rates and time.monotonic() < deadline:
        try:
            rates[step] = measure(step)
        except OutOfMemoryError:
            rates[step] = 0.0
        if rates[step] >= rates[best] * _KNEE:
            best = step
            step = best * 2 if not bisections else (best + _least_failed(rates)) // 2
        elif rates[step] == 0.0 and bisections < 2:
            bisections += 1
            step = (best + step) // 2
        else:
            break
    return best, rates


def _least_failed(rates: dict[int, float]) -> int:
    return min(size for size, rate in rates.items() if rate == 0.0)


def offer(loop: Loop, setup: Setup, batches: list[Any], seconds: float) -> BatchOffer:
    """Run larger batches of copied samples, the widest of those seen, in a child with a limit.

    Raises:
        RunError: the loop cannot be sent to a child process.
    """
    size = _size(batches[0])
    dataset = getattr(loop.loader, "dataset", None)
    cap = len(dataset) if dataset is not None and hasattr(dataset, "__len__") else 64 * size
    packed = _pack(replace(loop, loader=[max(batches, key=nbytes)], log=None, source=None), setup)
    limit = knobs.number("REDLINE_MEMORY_LIMIT") or int(_MARGIN * machine.memory_available())
    deadline = time.monotonic() + seconds
    held: list[Child] = []

    def measure(size: int) -> float:
        if not held:
            held.append(Child(memory=limit))
            held[0].call("redline.train.tuning.batch:receive", packed=packed, timeout=120)
        try:
            return float(
                held[0].call("redline.train.tuning.batch:run", size=size, timeout=max(30, seconds))
            )
        except OutOfMemoryError:
            held.pop().close()
            raise

    try:
        best, rates = climb(size, measure, cap, deadline)
        if best != size:  # what is offered is run once more
            rates[best] = min(rates[best], measure(best))
    finally:
        for child in held:
            child.close()
    if best == size or rates[best] < rates[size] * _KNEE:
        return BatchOffer(None, tuple(rates.items()), f"{size} is as quick a sample as any larger")
    times, more = rates[best] / rates[size], best / size
    return BatchOffer(
        best,
        tuple(rates.items()),
        f"{times:.2f}× the samples a second; {more:g}× fewer steps an epoch, so the learning rate "
        "and the schedule must be chosen anew",
    )


def receive(state: dict[str, Any], *, packed: bytes) -> None:
    """In the child: take the loop from the parent, through the pipe that only it writes to."""
    import cloudpickle

    state["loop"], state["setup"] = cloudpickle.loads(packed)
    state["available"] = machine.memory_available()


def run(state: dict[str, Any], *, size: int) -> float:
    """In the child: samples/s at a batch size."""
    loop, setup = state["loop"], state["setup"]
    (batch,) = loop.loader
    present = _size(batch)

    def grow(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.ndim and leaf.shape[0] == present:
            index = torch.arange(size, device=leaf.device) % present
            return leaf.index_select(0, index)
        return leaf

    rig = Rig(
        loop, replace(setup, feed="samples", workers=0, compile=False), [tree_map(grow, batch)]
    )
    rig.turn(0.0)
    seconds = min(rig.turn(0.3)[0] for _ in range(3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if loop.device.type == "cpu" and peak > _MARGIN * state["available"]:
        raise OutOfMemoryError(f"a batch of {size} took {peak / 2**20:.0f} MiB")
    return size / seconds


def _size(batch: Any) -> int:
    found = [one.shape[0] for one in tensors(batch) if one.ndim]
    if not found:
        raise RunError("a batch holds no tensor with a batch axis")
    return int(found[0])


def _pack(loop: Loop, setup: Setup) -> bytes:
    """As backends.worker.pack_module: bytes for our own child, never a file."""
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps((loop, setup)))
    except RedlineError:
        raise
    except Exception as error:  # pickling runs the user's own code
        raise RunError(
            f"the loop cannot be sent to a child process: {type(error).__name__}: {error}"
        ) from error
