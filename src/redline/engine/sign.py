"""Who made an engine file: Ed25519 signatures over its manifest, which holds every member's hash.

This machine's own key lies in config_dir()/key and is made with the first signature; the public
keys that it trusts besides lie in config_dir()/trusted/*.pub. (RFC 8032, by `cryptography`.)
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from redline import knobs
from redline.errors import EngineFileError, InputError, TamperedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_SIGNATURE = 4096
_CONTEXT = b"redline engine manifest\n"  # a signature is good for nothing but a manifest
_PREFIX = "redline-ed25519"


class _Signature(msgspec.Struct, forbid_unknown_fields=True):
    """The member signature.json; bytes are base64."""

    algorithm: str
    key: bytes
    signature: bytes


def fingerprint(public: bytes) -> str:
    """A short name for a public key.

    Example:
        >>> fingerprint(bytes(32))
        'SHA256:Zmh6rfhivXdsj8GLjp+OIAiXFIVu4jOzkCpZHQ1fKSU'
    """
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")


def sign(manifest: bytes) -> bytes:
    """The member signature.json for a manifest, by this machine's key.

    Raises:
        ImportError: `cryptography` is not installed.
        OSError: the key cannot be read or made.
        InputError: others may read the key.
    """
    key = _own_key()
    public = key.public_key().public_bytes_raw()
    return msgspec.json.encode(_Signature("ed25519", public, key.sign(_CONTEXT + manifest)))


def verify(manifest: bytes, member: bytes) -> bytes:
    """The public key that signed a manifest.

    Raises:
        ImportError: `cryptography` is not installed.
        TamperedError: the signature does not fit.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        if len(member) > MAX_SIGNATURE:
            raise ValueError(f"{len(member)} bytes")
        found = msgspec.json.decode(member, type=_Signature)
        if found.algorithm != "ed25519":
            raise ValueError(f"algorithm {found.algorithm[:20]!r}")
        key = Ed25519PublicKey.from_public_bytes(found.key)
        key.verify(found.signature, _CONTEXT + manifest)
    except InvalidSignature:
        raise TamperedError(
            "the manifest was changed after it was signed", hint="copy or download the file again"
        ) from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise TamperedError(f"the signature cannot be read: {error}") from error
    return found.key


def is_trusted(public: bytes) -> bool:
    """Whether a key is this machine's own or lies among those it trusts.

    Raises:
        InputError: the own key or the folder of trusted keys is writable or readable by others.
    """
    folder = knobs.config_dir() / "trusted"
    if folder.is_dir():
        _refuse_loose(folder, stat.S_IWGRP | stat.S_IWOTH, "700")
    if any(
        public == _read_public(path.read_text(errors="replace"))
        for path in sorted(folder.glob("*.pub"))
    ):
        return True
    own = knobs.config_dir() / "key"
    return own.exists() and public == _own_key().public_key().public_bytes_raw()


def public_key() -> str:
    """This machine's public key as the line that another machine's trust_key() takes."""
    public = _own_key().public_key().public_bytes_raw()
    return f"{_PREFIX} {base64.b64encode(public).decode()}"


def trust_key(line: str, name: str = "") -> Path:
    """Trust engines signed by a public key; returns the file that says so. Delete it to undo.

    Example:
        >>> trust_key("redline-ed25519 AAAA...=", name="build-server")  # doctest: +SKIP

    Raises:
        InputError: this is no key, or the name is not a plain word.
    """
    public = _read_public(line)
    if public is None:
        raise InputError(
            f"this is not a key: {line[:60]!r}", hint=f"expected one line: {_PREFIX} <base64>"
        )
    name = name or hashlib.sha256(public).hexdigest()[:16]
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"{name!r} cannot name a key", hint="use letters, digits and ._-")
    folder = knobs.config_dir() / "trusted"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{name}.pub"
    path.write_text(f"{_PREFIX} {base64.b64encode(public).decode()}\n")
    return path


def _read_public(line: str) -> bytes | None:
    words = line.split()
    if len(words) < 2 or words[0] != _PREFIX:
        return None
    try:
        public = base64.b64decode(words[1], validate=True)
    except binascii.Error:
        return None
    return public if len(public) == 32 else None


def _own_key() -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = knobs.config_dir() / "key"
    if not path.exists():
        _make_key(path)
    _refuse_loose(path, stat.S_IRWXG | stat.S_IRWXO, "600")
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _broken(path, "it is of another kind")
    return key


def _broken(path: Path, reason: str) -> EngineFileError:
    return EngineFileError(
        f"this machine's signing key cannot be read: {reason}",
        where=str(path),
        hint="delete it to have a new one made",
    )


def _make_key(path: Path) -> None:
    """Written to the side and linked: of two processes one wins, and none sees half a key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with tempfile.NamedTemporaryFile(dir=path.parent) as beside:  # made with mode 600
        beside.write(pem)
        beside.flush()
        os.fsync(beside.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(beside.name, path)


def _refuse_loose(path: Path, forbidden: int, mode: str) -> None:
    """A key that others could read may have signed anything: refuse it rather than mend it."""
    status = path.stat()
    if status.st_mode & forbidden or status.st_uid not in (os.getuid(), 0):
        raise InputError(
            f"other users may use {path}, so it proves nothing",
            hint=f"chmod {mode} {path}, or delete it if they may have read it",
        )
