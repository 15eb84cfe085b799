"""The networks that the views are tried on: small, seeded, and with planted faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Transformer(nn.Module):
    """Two encoder layers of 16 with 4 heads, over 10 tokens of a vocabulary of 50."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(ids)))


class Faulty(nn.Module):
    """A part for every reason for which a parameter has no gradient, and one that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.silent = nn.Linear(4, 4)
        self.cut = nn.Linear(4, 4)
        self.good = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.side = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = self.silent(x)
        y = y + self.cut(x).detach()
        self.aside = self.side(x)
        return self.frozen(self.good(y))


class Tied(nn.Module):
    """One weight used by two modules, and one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.twice(self.twice(self.embed(ids))))


class Lstm(nn.Module):
    """Two layers, 8 -> 16, both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, 2, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0][:, -1]


class LooksAtValues(nn.Module):
    """Takes another way when its input sums to more than zero."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x) if x.sum() > 0 else x


def lenet() -> tuple[nn.Module, Any]:
    from models import LeNet  # type: ignore[import-not-found]

    return LeNet(), torch.randn(2, 1, 28, 28)


def resnet50() -> tuple[nn.Module, Any]:
    import models

    return models.resnet50()[0].train(), torch.randn(2, 3, 64, 64)


def transformer() -> tuple[nn.Module, Any]:
    return Transformer(), torch.randint(0, 50, (2, 10))


def tied() -> tuple[nn.Module, Any]:
    return Tied(), torch.randint(0, 30, (2, 5))


def faulty() -> tuple[nn.Module, Any]:
    return Faulty(), torch.randn(8, 4)


def lstm() -> tuple[nn.Module, Any]:
    return Lstm(), torch.randn(2, 5, 8)


EXACT: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "lenet": lenet,
    "resnet50": resnet50,
    "transformer": transformer,
    "tied": tied,
    "faulty": faulty,
}
