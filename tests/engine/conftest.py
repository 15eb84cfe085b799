"""Keys and cache in a folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDLINE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("REDLINE_CACHE_DIR", str(tmp_path / "cache"))
