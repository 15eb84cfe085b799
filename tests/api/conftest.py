import sys
from pathlib import Path

import pytest
import torch

from redline import backends

sys.path.insert(0, str(Path(__file__).parent))  # children import `planted` from here


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REDLINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("REDLINE_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def plant(monkeypatch):
    """Put a planted class in the place of the null backend."""

    def put(name):
        monkeypatch.setitem(backends.BACKENDS, "null", f"planted:{name}")

    return put


@pytest.fixture
def net():
    """A small CNN with a batch norm, so that folding changes the numbers a little."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 64, 10),
    ]
    return torch.nn.Sequential(*layers).eval()


@pytest.fixture
def image():
    return torch.randn(1, 3, 8, 8)
