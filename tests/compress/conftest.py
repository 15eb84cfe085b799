"""A small network that knows the digits, and one whose int8 form is garbage."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from training_kit import skip, untouched  # noqa: F401  fixtures of the methods that train

from redline.train import load_data


class Planted(nn.Module):
    """A trained network with outlier channels: one channel in sixteen is a thousand times larger,
    as depthwise layers of real networks have them; the next layer takes it back.
    """

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.first, self.rest = net[:2], net[2:]
        channels = net[0].out_channels
        scale = torch.ones(channels)
        scale[0] = 1000.0
        self.grow = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.shrink = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        with torch.no_grad():
            self.grow.weight.copy_(scale.view(-1, 1, 1, 1))
            self.shrink.weight.copy_((1 / scale).view(-1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(self.shrink(self.grow(self.first(x))))


def _trained(x: torch.Tensor, y: torch.Tensor) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for epoch in range(12):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(64):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@pytest.fixture(scope="session")
def digits():
    """x, y for calibration; test_x, test_y; net; planted; accuracy(callable)."""
    data = load_data("digits")
    x, y = data.train.x / 16, data.train.y
    test_x, test_y = data.test.x / 16, data.test.y
    net = _trained(x, y)

    def accuracy(model) -> float:
        with torch.no_grad():
            found = [int(torch.as_tensor(model(row[None])).argmax()) for row in test_x]
        return float((torch.tensor(found) == test_y).float().mean())

    return SimpleNamespace(
        x=x, y=y, test_x=test_x, test_y=test_y, net=net, planted=Planted(net).eval(),
        accuracy=accuracy,
    )  # fmt: skip
