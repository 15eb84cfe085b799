"""Keys and cache in a folder of the test's own; the sample engine lies with the engine's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "engine"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDLINE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("REDLINE_CACHE_DIR", str(tmp_path / "cache"))
