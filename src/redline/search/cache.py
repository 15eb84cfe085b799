"""The timing cache: measurements and built parts, by everything that decides them."""

from __future__ import annotations

import hashlib
import logging
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

_LOG = logging.getLogger("redline")
_TABLE = "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, time REAL, value BLOB)"
_PARTS_LIMIT = 8 << 30  # bytes of built parts; the least recently used go first


def make_key(**facts: Any) -> str:
    """A key from everything that can change the answer.

    Example:
        >>> make_key(graph="ab", threads=2) == make_key(threads=2, graph="ab")
        True
    """
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


class Cache:
    """Entries in one SQLite file, and folders of built parts beside it.

    A cache that cannot be read or written is no error: it says so in the log and stays empty.

    Example:
        >>> cache = Cache(Path("cache"))
        >>> cache.put("key", {"latency": 0.001})
        >>> cache.get("key")
        {'latency': 0.001}
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "timings.sqlite"

    def get(self, key: str) -> Any:
        """The value under the key, or None."""
        row = self._use(
            lambda base: base.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        )
        try:
            return msgspec.json.decode(row[0]) if row else None
        except msgspec.DecodeError:
            return None

    def put(self, key: str, value: Any) -> None:
        """Remember a value: builtins and dataclasses."""
        row = (key, time.time(), msgspec.json.encode(value))
        self._use(lambda base: base.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", row))

    def drop(self, key: str) -> None:
        """Forget a value."""
        self._use(lambda base: base.execute("DELETE FROM entries WHERE key = ?", (key,)))

    def part(self, key: str) -> Path | None:
        """The folder of a built part, or None."""
        folder = self.folder / "parts" / key
        if not (folder / "part.json").is_file():
            return None
        (folder / "part.json").touch()
        return folder

    def keep_part(self, key: str, folder: Path) -> Path:
        """Move a built part into the cache; returns where it lies now."""
        home = self.folder / "parts" / key
        beside = home.with_name(f".{key}-{uuid.uuid4().hex}")
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder, beside)
            shutil.rmtree(home, ignore_errors=True)
            beside.rename(home)
        except OSError as error:
            _LOG.warning("a built part could not be kept in %s: %s", home.parent, error)
            return beside if beside.is_dir() else folder
        self._prune()
        return home

    def _use(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=10)) as base, base:
                base.execute(_TABLE)
                return work(base)
        except (sqlite3.DatabaseError, OSError) as error:
            _LOG.warning("the timing cache %s cannot be used: %s", self._file, error)
            return None

    def _prune(self) -> None:
        folders = [path.parent for path in (self.folder / "parts").glob("*/part.json")]
        folders.sort(key=lambda folder: (folder / "part.json").stat().st_mtime, reverse=True)
        total = 0
        for folder in folders:
            total += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            if total > _PARTS_LIMIT:
                shutil.rmtree(folder, ignore_errors=True)
