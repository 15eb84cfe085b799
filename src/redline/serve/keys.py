"""API keys: read from a file, kept as digests, compared in constant time."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

from redline.errors import InputError

_LOG = logging.getLogger("redline.serve")
MIN_KEY = 16  # characters; a shorter key can be guessed
_MAX_KEYS = 1000
_REREAD = 5.0  # seconds between looks at whether the file of keys has changed


class Keys:
    """Keys that open one gate. Only keyed digests are kept, so no dump or log can tell a key.

    A file is looked at every 5 seconds and read anew when it has changed; one that has become
    unusable leaves the old keys in force, and the log says so.

    Example:
        >>> keys = Keys.of(["a-key-of-enough-length"])
        >>> keys.hold(b"a-key-of-enough-length"), keys.hold(b"another-key-of-length")
        (True, False)
    """

    def __init__(self, found: Iterable[bytes], file: Path | None = None) -> None:
        self._salt = secrets.token_bytes(32)
        self._file = file
        self._stamp = _stamp(file)
        self._looked = time.monotonic()
        self._digests = [self._digest(key) for key in found]

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        """Keys given as texts.

        Raises:
            InputError: one is shorter than 16 characters, or there is none.
        """
        return cls(_checked("\n".join(keys), "the key"))

    @classmethod
    def from_file(cls, path: str | Path) -> Keys:
        """Keys of a file: one a line; blank lines and lines that start with # do not count.

        Raises:
            InputError: it cannot be read, holds no key, or one shorter than 16 characters.
        """
        path = Path(path)
        return cls(_read(path), path)

    def hold(self, presented: bytes) -> bool:
        """Whether it is one of them; takes the same time whichever it is, and if it is none."""
        if self._file is not None and time.monotonic() - self._looked > _REREAD:
            self._reread(self._file)
        digest, found = self._digest(presented), False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._salt, key, "sha256")

    def _reread(self, file: Path) -> None:
        self._looked = time.monotonic()
        stamp = _stamp(file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._digests = [self._digest(key) for key in _read(file)]
        except InputError as error:
            _LOG.error("the keys are not read anew, the old ones stay: %s", error.what)
        else:
            _LOG.info("keys read anew: %d", len(self._digests))


def _stamp(file: Path | None) -> tuple[int, int] | None:
    try:
        state = file.stat() if file else None
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_size) if state else None


def _read(path: Path) -> list[bytes]:
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1 << 20)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"the file of keys cannot be read: {reason}", where=str(path)) from None
    if mode & 0o004:
        _LOG.warning("every user of this machine can read a file of keys; chmod 600 mends it")
    return _checked(text, "a line", str(path))


def _checked(text: str, what: str, where: str = "") -> list[bytes]:
    keys = [line.strip() for line in text.splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys or len(keys) > _MAX_KEYS:
        raise InputError(
            f"got {len(keys)} keys, expected 1 to {_MAX_KEYS}", where=where,
            hint='python -c "import secrets; print(secrets.token_urlsafe(32))" makes one',
        )  # fmt: skip
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(
                f"{what} has {len(key)} characters, expected a key of at least {MIN_KEY} "
                "printable ASCII characters without spaces",
                where=where or f"key {number}",
                hint='python -c "import secrets; print(secrets.token_urlsafe(32))" makes one',
            )
    return [key.encode() for key in keys]
