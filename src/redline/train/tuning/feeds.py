"""Batches for trials: the user's loader made anew under a setup, never the loader itself."""

from __future__ import annotations

import copy
import cProfile
import itertools
import pstats
import random
import signal
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    TensorDataset,
    default_collate,
)

from redline import machine
from redline.train.tuning.loop import Loop, nbytes
from redline.train.tuning.setup import Setup

_KEPT = 0.25  # of the free memory: what samples held in memory may take
_SAMPLES_SECONDS = 1.5  # for filling the memory feed of a trial; the real loop fills all of it


class Feed:
    """Endless batches. Worker processes stand still between `resume()` and `pause()`: a lane that
    waits for its turn neither fills its queue nor takes cores from the one that runs.

    `restart` is the seconds that the first batch of an epoch took beyond the others.
    """

    def __init__(self, source: Any) -> None:
        self.source = source
        self.restarts: list[float] = []
        self._iterator: Iterator[Any] | None = None

    def next(self) -> tuple[Any, bool]:
        """A batch, and whether it is the first of an epoch."""
        if self._iterator is not None:
            batch = next(self._iterator, None)
            if batch is not None:
                return batch, False
        start = time.perf_counter()
        self._iterator = iter(self.source)
        batch = next(self._iterator)
        self.restarts.append(time.perf_counter() - start)
        return batch, True

    def start_over(self) -> None:
        """Begin an epoch at the next batch, and forget what earlier beginnings took."""
        self._iterator = None
        self.restarts.clear()

    def pause(self) -> None:
        """Hold the workers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the workers go on."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the workers."""
        self.resume()
        for holder in (self._iterator, getattr(self.source, "_iterator", None)):
            shutdown = getattr(holder, "_shutdown_workers", None)
            if shutdown is not None:
                shutdown()
        self._iterator = None

    def _signal(self, number: int) -> None:
        for worker in getattr(self._iterator, "_workers", ()):
            with suppress(psutil.Error, OSError, ValueError):
                psutil.Process(worker.pid).send_signal(number)


class Kept:
    """The same batches again and again, already made: what the input pipeline cannot beat."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = itertools.cycle(batches)

    def __iter__(self) -> Iterator[Any]:
        return self._batches


class _Held:
    """Samples that were transformed once, repeated so that an epoch of a trial is long enough."""

    def __init__(self, samples: list[Any], length: int) -> None:
        self._samples, self._length = samples, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._samples[index % len(self._samples)]


def is_tunable(loop: Loop) -> bool:
    """Whether the loader is a DataLoader over a dataset with an index."""
    return isinstance(loop.loader, DataLoader) and not isinstance(
        loop.loader.dataset, IterableDataset
    )


def can_slice(loop: Loop) -> bool:
    """Whether batches could be slices of tensors that are in memory already."""
    loader = loop.loader
    return (
        is_tunable(loop)
        and type(loader.dataset) is TensorDataset  # type: ignore[attr-defined]
        and loader.collate_fn is default_collate  # type: ignore[attr-defined]
        and loader.batch_size is not None  # type: ignore[attr-defined]
    )


def make(loop: Loop, setup: Setup) -> Feed:
    """The user's loader under a setup; the order of samples is drawn as the user's would be."""
    loader = loop.loader
    if not isinstance(loader, DataLoader):
        return Feed(loader)
    settings: dict[str, Any] = {
        "collate_fn": loader.collate_fn,
        "timeout": loader.timeout if setup.workers else 0,
        "worker_init_fn": loader.worker_init_fn,
        "num_workers": setup.workers,
        "pin_memory": setup.pin,
        "generator": _own(loader.generator, loader.dataset),
    }
    if setup.workers:
        settings["prefetch_factor"] = setup.prefetch or 2
        settings["persistent_workers"] = setup.persistent
        settings["multiprocessing_context"] = loader.multiprocessing_context
    dataset = loader.dataset
    if setup.feed == "memory":
        dataset = _Held(_some_samples(loop), len(dataset))  # type: ignore[arg-type,assignment]
    if setup.feed == "slices":
        sampler = BatchSampler(
            _own(loader.sampler, loader.dataset), loader.batch_size or 1, loader.drop_last
        )
        settings.pop("collate_fn")
        return Feed(DataLoader(dataset, sampler=sampler, batch_size=None, **settings))
    if isinstance(dataset, IterableDataset):
        return Feed(
            DataLoader(
                dataset, batch_size=loader.batch_size, drop_last=loader.drop_last, **settings
            )
        )
    if loader.batch_size is None:
        kind = "batch_sampler" if loader.batch_sampler is not None else "sampler"
        given = _own(getattr(loader, kind), loader.dataset)
        if kind == "sampler":
            settings["batch_size"] = None
        return Feed(DataLoader(dataset, **{kind: given}, **settings))
    sampler = _own(loader.sampler, loader.dataset)
    return Feed(
        DataLoader(
            dataset, batch_size=loader.batch_size, sampler=sampler,
            drop_last=loader.drop_last, **settings,
        )
    )  # fmt: skip


def first_batches(loop: Loop, setup: Setup, most: int = 8, seconds: float = 2.0) -> list[Any]:
    """Batches to be used again and again: as many as come in the time, at least two."""
    feed = make(loop, setup)
    try:
        start, batches = time.perf_counter(), [feed.next()[0]]
        while len(batches) < 2 or (len(batches) < most and time.perf_counter() - start < seconds):
            batches.append(feed.next()[0])
        return batches
    finally:
        feed.close()


def can_hold(loop: Loop) -> tuple[bool, str]:
    """Whether transformed samples may be kept in memory: (yes, why not)."""
    dataset = loop.loader.dataset  # type: ignore[attr-defined]
    one, again = _sample(dataset, 0, 1), _sample(dataset, 0, 2)
    if not _equal(one, again):
        return False, "dataset[0] is random: it gave other values the second time"
    needed, room = nbytes(one) * len(dataset), _KEPT * machine.memory_available()
    if not nbytes(one):
        return False, "a sample holds no tensor, so its memory is not known"
    if needed > room:
        return False, f"all samples take {needed / 2**20:.0f} MiB, {room / 2**20:.0f} are allowed"
    return True, ""


def slowest_function(loop: Loop, seconds: float = 0.5) -> tuple[str, float] | None:
    """The user's own function that dataset[i] spends its time in: ("name (file:line)", share)."""
    dataset = loop.loader.dataset  # type: ignore[attr-defined]
    profile, end, index = cProfile.Profile(), time.perf_counter() + seconds, 0
    while index < len(dataset) and (index == 0 or time.perf_counter() < end):
        profile.runcall(dataset.__getitem__, index)
        index += 1
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]]
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = max((row[3] for row in stats.values()), default=0.0)
    library = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
    mine = [
        (key, row[3]) for key, row in stats.items()
        if key[0][:1] not in ("~", "<") and not key[0].startswith(library)
        and key[2][:1] != "<" and total  # a comprehension has no name worth telling
    ]  # fmt: skip
    heavy = [(key, spent) for key, spent in mine if spent > 0.6 * total]
    if not heavy:
        return None
    key, spent = min(heavy, key=lambda pair: pair[1])  # the deepest that still has most of the time
    return f"{key[2]} ({Path(key[0]).name}:{key[1]})", min(1.0, spent / total)


def _some_samples(loop: Loop) -> list[Any]:
    loader: Any = loop.loader
    least = min(len(loader.dataset), loader.batch_size or 1)
    end, samples = time.perf_counter() + _SAMPLES_SECONDS, []
    for index in range(len(loader.dataset)):
        if index >= least and time.perf_counter() > end:
            break
        samples.append(loader.dataset[index])
    return samples


def _own(sampler: Any, dataset: Any) -> Any:
    """A copy of a sampler or generator; the dataset inside stays the one object it is."""
    if isinstance(sampler, torch.Generator):
        return sampler.clone_state()
    try:
        return copy.deepcopy(sampler, {id(dataset): dataset})
    except Exception:  # a sampler with a lock or a file: it is used as it is, and only iterated
        return sampler


def _sample(dataset: Any, index: int, seed: int) -> Any:
    random.seed(seed)
    torch.manual_seed(seed)
    return dataset[index]


def _equal(one: Any, other: Any) -> bool:
    from torch.utils._pytree import tree_leaves

    same: Callable[[Any, Any], bool] = lambda a, b: (  # noqa: E731
        torch.equal(a, b) if isinstance(a, torch.Tensor) else bool((a == b) if a is not None else 1)
    )
    ones, others = tree_leaves(one), tree_leaves(other)
    return len(ones) == len(others) and all(map(same, ones, others))
