"""A zip that holds nothing but what its directory says: stored, aligned, in order, without holes.

The writer is Python's zipfile. The reader takes only what the writer writes, so that no two
programs can see different things in one file. FORMAT.md lists what is refused and why.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from redline.engine.manifest import Member
from redline.errors import EngineFileError, TamperedError, TruncatedError, UnsafeError

ALIGNMENT = 64  # a cache line, and enough for every vector instruction
MAX_MEMBERS = 1024
MAX_DIRECTORY = 1 << 20
MAX_NAME = 255

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")
_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_UNSET = 0xFFFFFFFF
_PADDING_FIELD = 0xD935  # the extra field that Android's zipalign pads with
_UTF8_NAME = 0x800


@dataclass(frozen=True)
class Span:
    """Where a member's bytes lie in the file, and their CRC-32 by the directory."""

    start: int
    size: int
    crc: int


def check_name(name: str) -> str:
    """A name that stays inside its folder on every system.

    Example:
        >>> check_name("parts/0/model.bin")
        'parts/0/model.bin'

    Raises:
        UnsafeError: absolute, "..", a backslash, a hidden file, or too long.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise UnsafeError(
            f"the name {name[:80]!r} is not allowed in an engine file",
            hint="names are letters, digits and ._+- in folders separated by /",
        )
    return name


def write_member(archive: zipfile.ZipFile, name: str, source: bytes | Path) -> Member:
    """Append a member, stored and aligned; returns its size and SHA-256."""
    info = zipfile.ZipInfo(check_name(name))  # its date stays 1980
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.create_system = 3
    info.file_size = len(source) if isinstance(source, bytes) else source.stat().st_size
    assert archive.fp is not None
    large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT
    start = archive.fp.tell() + _LOCAL.size + len(name) + 4 + (20 if large else 0)
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2H", _PADDING_FIELD, padding) + bytes(padding)
    digest, size = hashlib.sha256(), 0
    with archive.open(info, "w", force_zip64=large) as target:
        for block in _blocks(source):
            digest.update(block)
            size += target.write(block)
    return Member(size, digest.hexdigest())


def _blocks(source: bytes | Path) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            yield block


def read_directory(data: mmap.mmap) -> dict[str, Span]:
    """The members of a mapped file by name, after checking that nothing else is in it.

    Raises:
        EngineFileError: TruncatedError, TamperedError or UnsafeError with the reason.
    """
    begin, end = _find_directory(data)
    try:
        archive = zipfile.ZipFile(cast(IO[bytes], data))
        infos = archive.infolist()
    except Exception as error:  # zipfile lets many kinds through on hostile bytes
        raise TamperedError(f"the directory cannot be read: {error}") from error
    if len(infos) > MAX_MEMBERS:
        raise UnsafeError(f"{len(infos)} members, the limit is {MAX_MEMBERS}")
    spans: dict[str, Span] = {}
    cursor = used = 0
    for info in infos:
        if info.orig_filename in spans:
            raise UnsafeError(f"two members are called {info.orig_filename!r}")
        span = _check_member(data, info, cursor, begin)
        spans[info.orig_filename] = span
        cursor = span.start + span.size
        used += 46 + len(info.orig_filename) + len(info.extra) + len(info.comment)
    if cursor != begin or used > end - begin:
        raise TamperedError("there are bytes that belong to no member")
    return spans


def _find_directory(data: mmap.mmap) -> tuple[int, int]:
    """First and last byte of the directory; the file must end with its end record."""
    size = len(data)
    if data[:4] != b"PK\x03\x04":
        if size < _LOCAL.size and b"PK\x03\x04".startswith(data[:4]):
            raise TruncatedError(f"the file ends after {size} bytes")
        raise EngineFileError(
            "this is not an engine file",
            hint="an ONNX file or a module becomes one with: redline optimize",
        )
    end = size - _END.size
    if end < 0 or data[end : end + 4] != b"PK\x05\x06":
        raise _no_end(data)
    _, disk, first_disk, here, count, length, begin, comment = _END.unpack(data[end:size])
    if disk or first_disk or comment or here != count:
        raise TamperedError("the end record is not as Redline writes it")
    if data[end - _LOCATOR64.size : end - _LOCATOR64.size + 4] == b"PK\x06\x07":
        end, count, length, begin = _read_end64(data, end)
    if count > MAX_MEMBERS or length > MAX_DIRECTORY:
        raise UnsafeError(
            f"{count} members in a directory of {length} bytes",
            hint=f"the limits are {MAX_MEMBERS} and {MAX_DIRECTORY}",
        )
    if begin + length != end:
        raise TamperedError("the directory is not where the end record says")
    return begin, end


def _read_end64(data: mmap.mmap, end: int) -> tuple[int, int, int, int]:
    """The end record of a file with more than 2 GiB: (its place, members, length, begin)."""
    locator = end - _LOCATOR64.size
    place = locator - _END64.size
    if place < 0:
        raise TruncatedError("the end record is cut off")
    where = _LOCATOR64.unpack(data[locator:end])[2]
    record = _END64.unpack(data[place:locator])
    if record[0] != b"PK\x06\x06" or where != place:
        raise TamperedError("the 64-bit end record is not as Redline writes it")
    return place, record[7], record[8], record[9]


def _no_end(data: mmap.mmap) -> EngineFileError:
    """Cut off, or followed by something else? A whole file's end record knows its own place."""
    place = data.rfind(b"PK\x05\x06")
    if 0 <= place <= len(data) - _END.size:
        *_, length, begin, _ = _END.unpack(data[place : place + _END.size])
        if begin + length == place:
            extra = len(data) - place - _END.size
            return TamperedError(f"{extra} bytes follow the end of the engine")
    return TruncatedError(
        f"the file is cut off after {len(data)} bytes", hint="copy or download it again"
    )


def _check_member(data: mmap.mmap, info: zipfile.ZipInfo, cursor: int, limit: int) -> Span:
    name = check_name(info.orig_filename)
    mode = info.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise UnsafeError(f"{name!r} is a link or another special file")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise UnsafeError(f"{name!r} is compressed", hint="members are stored, so none can swell")
    if info.flag_bits & ~_UTF8_NAME or info.comment:
        raise TamperedError(f"{name!r} is encrypted, streamed or commented")
    if info.header_offset != cursor:
        raise TamperedError(f"{name!r} does not begin where the member before it ends")
    if cursor + _LOCAL.size > limit:
        raise TamperedError(f"{name!r} lies outside the file")
    header = _LOCAL.unpack(data[cursor : cursor + _LOCAL.size])
    mark, flags, method = header[0], header[2], header[3]
    sizes, name_size, extra_size = header[7:9], header[9], header[10]
    begin = cursor + _LOCAL.size
    start = begin + name_size + extra_size
    agrees = (
        (mark, flags, method) == (b"PK\x03\x04", info.flag_bits, 0)
        and data[begin : begin + name_size] == name.encode()
        and all(size in (info.file_size, _UNSET) for size in sizes)
    )
    if not agrees or start + info.file_size > limit:
        raise TamperedError(f"the header of {name!r} does not agree with the directory")
    return Span(start, info.file_size, info.CRC)


def read_checked(data: mmap.mmap, span: Span, member: Member, name: str) -> memoryview:
    """A member's bytes without a copy, after comparing their SHA-256.

    Raises:
        TamperedError: they are not what the manifest says.
    """
    view = memoryview(data)[span.start : span.start + span.size].toreadonly()
    if span.size != member.size or hashlib.sha256(view).hexdigest() != member.sha256:
        view.release()
        raise TamperedError(
            f"{name!r} is not what the manifest says", hint="copy or download the file again"
        )
    return view
