"""Members as real files, for libraries that open nothing else."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from redline import knobs
from redline.errors import EngineFileError, TamperedError


class Cabinet:
    """A folder of extracted members, kept in the cache, each under its hash.

    A file that is already there is used only after its bytes were hashed again. Where the cache
    cannot be written, or others could write to it, a temporary folder takes its place.
    """

    def __init__(self) -> None:
        self._temporary: Path | None = None

    def place(self, data: memoryview, sha256: str, name: str) -> Path:
        """The path of a file with these bytes, whose hash is known to fit."""
        file = Path(name).name
        if self._temporary is None:
            try:
                return _fill(_private(knobs.cache_dir() / "parts" / sha256), file, data, sha256)
            except OSError:
                self._temporary = Path(tempfile.mkdtemp(prefix="redline-"))
        try:
            return _fill(_private(self._temporary / sha256), file, data, sha256)
        except OSError as error:
            raise EngineFileError(
                f"{file!r} of the engine cannot be unpacked: {error.strerror or error}",
                where=str(self._temporary),
                hint="make room, or set REDLINE_CACHE_DIR to a folder of yours",
            ) from error

    def close(self) -> None:
        """Remove the temporary folder, if there was one."""
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)


def _private(folder: Path) -> Path:
    """A folder that is ours alone. Raises OSError where it is not."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to someone else")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise PermissionError(f"{folder} is open to other users")
    return folder


def _fill(folder: Path, file: str, data: memoryview, sha256: str) -> Path:
    path = folder / file
    if _holds(path, sha256):
        return path
    handle, beside = tempfile.mkstemp(dir=folder)
    try:
        with os.fdopen(handle, "wb") as target:
            target.write(data)
        if not _holds(Path(beside), sha256):  # the mapped file was changed under us
            raise TamperedError(f"{file!r} changed while it was read")
        os.replace(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)
    return path


def _holds(path: Path, sha256: str) -> bool:
    """Whether a regular file, and no link, holds the bytes of that hash."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == sha256
    except OSError:
        return False
