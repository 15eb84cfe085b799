"""Data in memory, and how any dataset is cut into seeded batches that can start anywhere."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from redline.errors import InputError


@dataclass(frozen=True)
class Data:
    """A training set, a test set, and what a network must know of them.

    Attributes:
        kind: "classes" (integer labels), "values" (floats), "tokens" (next character) or "other".
        classes: number of classes, values or characters.
        shape: of one input, without the batch.
        mean, std: of the training inputs, one for each channel or column; () where unknown.
        names: of the classes, or the characters of a text.
        remarks: what is odd about it, such as a class that is not tested.
    """

    name: str
    train: Any
    test: Any = None
    kind: str = "other"
    classes: int = 0
    shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    names: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class Arrays(Dataset[Any]):
    """Inputs and targets as two tensors; a batch is one indexing, without a loop over samples.

    Example:
        >>> Arrays(torch.zeros(10, 3), torch.zeros(10)).batch([0, 4])[0].shape
        torch.Size([2, 3])
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        if len(x) != len(y):
            raise InputError(f"{len(x)} inputs but {len(y)} targets")
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], self.y[index]

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Several samples at once."""
        rows = torch.as_tensor(indices)
        return self.x[rows], self.y[rows]


class Windows(Dataset[Any]):
    """Windows of `block` tokens, each with the same window one token later as its target.

    Training draws len(tokens) // block windows an epoch from every offset; a test set takes windows
    one after the other (stride = block).
    """

    def __init__(self, tokens: torch.Tensor, block: int, stride: int = 1) -> None:
        if len(tokens) <= block:
            raise InputError(f"{len(tokens)} characters, expected more than block = {block}")
        self.tokens, self.block, self.stride = tokens, block, stride
        self.epoch_size = max(1, len(tokens) // block) if stride == 1 else len(self)

    def __len__(self) -> int:
        return (len(self.tokens) - self.block - 1) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.batch([index])
        return x[0], y[0]

    def batch(self, indices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Several windows at once: (n, block) and (n, block)."""
        starts = torch.as_tensor(indices) * self.stride
        rows = self.tokens[starts[:, None] + torch.arange(self.block + 1)].long()
        return rows[:, :-1], rows[:, 1:]


class _Seeded(Dataset[Any]):
    """Seeds the random numbers of a worker for each sample, so that they do not depend on how many
    workers there are or where an epoch was resumed.
    """

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, index: int) -> Any:
        seed = (self.seed * 1_000_003 + index) % 2**32
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return self.dataset[index]


class Batches:
    """The batches of every epoch, in a seeded order that needs no state to be resumed.

    Args:
        source: a Dataset or a DataLoader. A DataLoader with a sampler of its own is run as it is;
            any other gives its dataset, batch size, collate function and workers.
        rank, world: this process and how many share the samples.

    Example:
        >>> [len(x) for x, _ in Batches(Arrays(torch.zeros(10), torch.zeros(10)), 4).epoch(0)]
        [4, 4, 2]
    """

    def __init__(
        self, source: Any, size: int, *, seed: int = 0, shuffle: bool = False, workers: int = 0,
        rank: int = 0, world: int = 1, pad: bool = False,
    ) -> None:  # fmt: skip
        self.loader: DataLoader[Any] | None = None
        self.collate: Any = default_collate
        if isinstance(source, DataLoader):
            plain = type(source.sampler) in (RandomSampler, SequentialSampler)
            if not plain or isinstance(source.dataset, IterableDataset):
                self.loader = source
            size = source.batch_size or size
            workers, self.collate = source.num_workers, source.collate_fn
            shuffle = isinstance(source.sampler, RandomSampler)
            source = source.dataset
        if self.loader is None and isinstance(source, IterableDataset):
            self.loader = DataLoader(source, batch_size=size, num_workers=workers)
        if self.loader is not None and world > 1:
            raise InputError(
                "a DataLoader with its own sampler cannot be shared by processes",
                hint="give the dataset itself, and batch_size",
            )
        if self.loader is None and not hasattr(source, "__len__"):
            raise InputError(f"{type(source).__name__} is not a Dataset or DataLoader")
        self.source, self.size, self.seed, self.shuffle = source, size, seed, shuffle
        self.workers, self.rank, self.world, self.pad = workers, rank, world, pad

    def __len__(self) -> int:
        """Batches of one epoch in this process; 0 when nobody knows before."""
        if self.loader is not None:
            try:
                return len(self.loader)
            except TypeError:
                return 0
        total = getattr(self.source, "epoch_size", len(self.source))
        if self.pad:
            total = -(-total // self.world) * self.world
        mine = len(range(self.rank, total, self.world))
        return -(-mine // self.size)

    def order(self, epoch: int) -> torch.Tensor:
        """The indices that this process sees in an epoch."""
        total = len(self.source)
        wanted = getattr(self.source, "epoch_size", total)
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(total, generator=generator)[:wanted]
        else:
            order = torch.arange(total)[:wanted]
        if self.pad and self.world > 1:  # every process must take as many steps
            order = torch.cat([order, order[: -len(order) % self.world]])
        return order[self.rank :: self.world]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on."""
        if self.loader is not None:
            for number, batch in enumerate(self.loader):
                if number >= start:
                    yield batch
            return
        order = self.order(epoch)
        direct = _direct(self.source)
        if direct is not None and self.collate is default_collate:
            yield from map(direct, torch.split(order, self.size)[start:])
            return
        rows = order.tolist()
        cut = [rows[at : at + self.size] for at in range(0, len(rows), self.size)][start:]
        source = _Seeded(self.source, self.seed + epoch) if self.workers else self.source
        # Its own generator: making a loader must not move the generator that dropout uses.
        yield from DataLoader(
            source, batch_sampler=cut, collate_fn=self.collate, num_workers=self.workers,
            generator=torch.Generator().manual_seed(self.seed + epoch),
        )  # fmt: skip


def _direct(source: Any) -> Any:
    """A function from indices to a batch, for data that lies in memory; None for other data."""
    if isinstance(source, Subset):
        inner = _direct(source.dataset)
        if inner is None:
            return None
        places = torch.as_tensor(source.indices)
        return lambda rows: inner(places[rows])
    if isinstance(source, TensorDataset):
        return lambda rows: [tensor[rows] for tensor in source.tensors]
    return getattr(source, "batch", None)
