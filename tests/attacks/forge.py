"""Rewrites a small engine as an attacker would, with every hash mended."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redline.engine import archive

Members = dict[str, bytes]


def read_members(path: Path) -> Members:
    with zipfile.ZipFile(path) as zipped:
        return {name: zipped.read(name) for name in zipped.namelist()}


def write_members(path: Path, members: Members) -> Path:
    """A well-formed archive of these members, as Redline lays it out."""
    with zipfile.ZipFile(path, "w") as zipped:
        for name, data in members.items():
            archive.write_member(zipped, name, data)
    return path


def forge(path: Path, change: Callable[[dict[str, Any], Members], None]) -> Path:
    """Change manifest and members, mend every hash and drop the signature."""
    members = read_members(path)
    members.pop("signature.json", None)
    manifest = json.loads(members.pop("manifest.json"))
    change(manifest, members)
    for name, data in members.items():
        if name in manifest["members"]:
            digest = hashlib.sha256(data).hexdigest()
            manifest["members"][name] = {"size": len(data), "sha256": digest}
    return write_members(path, {**members, "manifest.json": json.dumps(manifest).encode()})


def change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the manifest only."""
    return forge(path, lambda manifest, _: change(manifest) and None)


def zip_of(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> bytes:
    """An archive with whatever entries, by zipfile."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for info, data in entries:
            zipped.writestr(info, data)
    return buffer.getvalue()


def overlapping_zip() -> bytes:
    """Two members over the same bytes: a file that would unpack to more than it is (D. Fifield)."""
    data = b"x" * 50
    crc = zlib.crc32(data)
    local = (
        struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 33, crc, 50, 50, 1, 0) + b"a" + data
    )
    central = b"".join(
        struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 33, crc, 50, 50, 1, 0, 0, 0, 0, 0, 0
        )
        + b"a"
        for _ in range(2)
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, len(central), len(local), 0)
    return local + central + end
