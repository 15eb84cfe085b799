"""Bad files, each refused with its own error and never with a crash or a traceback of zipfile's."""

from __future__ import annotations

import stat
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from engine_samples import GRAPH, save_sample
from forge import change_manifest, forge, overlapping_zip, read_members, write_members, zip_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from redline.engine import archive
from redline.engine.file import open_file
from redline.errors import (
    EngineFileError,
    SchemaError,
    TamperedError,
    TruncatedError,
    UnsafeError,
)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return save_sample(tmp_path / "sample.redline")


def read_all(path: Path) -> None:
    """Everything that load() would read."""
    with open_file(path) as file:
        for name in file.manifest.members:
            file.read(name)
        file.check_arrays()


def test_the_sample_is_sound(engine: Path) -> None:
    read_all(engine)
    forge(engine, lambda manifest, members: None)
    read_all(engine)


def test_truncated_anywhere(engine: Path) -> None:
    whole = engine.read_bytes()
    for size in [*range(64), *range(64, len(whole), 37), *range(len(whole) - 64, len(whole))]:
        engine.write_bytes(whole[:size])
        with pytest.raises(TruncatedError):
            open_file(engine)


@pytest.mark.parametrize("prefix", [b"#!/bin/sh\n", b"PK\x03\x04", bytes(64)])
def test_something_before_it(engine: Path, prefix: bytes) -> None:
    engine.write_bytes(prefix + engine.read_bytes())
    with pytest.raises(EngineFileError):
        open_file(engine)


@pytest.mark.parametrize("suffix", [b"\0", b"#!/bin/sh\nrm -rf", bytes(70_000)])
def test_something_after_it(engine: Path, suffix: bytes) -> None:
    engine.write_bytes(engine.read_bytes() + suffix)
    with pytest.raises(TamperedError, match=f"{len(suffix)} bytes follow the end"):
        open_file(engine)


def test_two_engines_in_one_file(engine: Path) -> None:
    engine.write_bytes(engine.read_bytes() * 2)
    with pytest.raises(TamperedError, match="not where the end record says"):
        open_file(engine)


@pytest.mark.parametrize("data", [b"", b"\x08\x0a onnx", b"PK", b"\x7fELF" + bytes(99)])
def test_another_kind_of_file(engine: Path, data: bytes) -> None:
    engine.write_bytes(data)
    with pytest.raises(EngineFileError):
        open_file(engine)


def test_every_flipped_byte_of_a_member_is_seen(engine: Path) -> None:
    whole = bytearray(engine.read_bytes())
    with open_file(engine) as file:
        spans = dict(file._spans)
    for span in spans.values():
        for place in range(span.start, span.start + span.size, 29):
            changed = bytearray(whole)
            changed[place] ^= 0x20
            engine.write_bytes(changed)
            with pytest.raises(TamperedError):
                read_all(engine)


def test_every_flipped_byte_of_the_directory_is_seen_or_harmless(engine: Path) -> None:
    whole = bytearray(engine.read_bytes())
    begin = struct.unpack("<I", whole[-6:-2])[0]
    for place in range(begin, len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 0x01
        engine.write_bytes(changed)
        with suppress(EngineFileError):  # what passes is a date or a version, which nobody reads
            read_all(engine)


def test_a_member_changed_with_its_crc_mended(engine: Path) -> None:
    members = read_members(engine)
    members["graph.onnx"] = GRAPH[:-1] + b"!"
    write_members(engine, members)
    with pytest.raises(TamperedError, match=r"'graph.onnx' is not what the manifest says"):
        read_all(engine)


def test_a_manifest_changed_with_its_crc_mended(engine: Path) -> None:
    members = read_members(engine)
    members["manifest.json"] = members["manifest.json"].replace(b'"sample"', b'"sampla"')
    write_members(engine, members)
    with pytest.raises(TamperedError, match="changed after it was signed"):
        open_file(engine)


def test_a_member_swapped_for_another(engine: Path) -> None:
    members = read_members(engine)
    members["graph.onnx"], members["check.npz"] = members["check.npz"], members["graph.onnx"]
    write_members(engine, members)
    with pytest.raises(TamperedError):
        read_all(engine)


def test_a_zip_bomb(engine: Path) -> None:
    info = zipfile.ZipInfo("graph.onnx")
    info.compress_type = zipfile.ZIP_DEFLATED
    engine.write_bytes(zip_of([(info, bytes(10_000_000))]))
    assert engine.stat().st_size < 20_000
    with pytest.raises(UnsafeError, match="compressed"):
        open_file(engine)


def test_a_size_that_lies(engine: Path) -> None:
    """Stored, but claiming to unpack to 4 GB."""
    whole = bytearray(engine.read_bytes())
    begin = struct.unpack("<I", whole[-6:-2])[0]
    whole[begin + 24 : begin + 28] = struct.pack("<I", 0xFFFFFFF0)
    engine.write_bytes(whole)
    with pytest.raises(UnsafeError, match="compressed"):
        open_file(engine)
    whole[begin + 20 : begin + 24] = struct.pack("<I", 0xFFFFFFF0)
    engine.write_bytes(whole)
    with pytest.raises(TamperedError, match="does not agree"):
        open_file(engine)


NAMES = [
    "../evil",
    "a/../../evil",
    "/etc/evil",
    "C:/evil",
    "a\\..\\evil",
    "parts//evil",
    "./evil",
    ".hidden",
    "folder/",
    "nul\0byte",
    "new\nline",
    "a" * 300,
    "pärts",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leaves_its_folder(engine: Path, name: str) -> None:
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    engine.write_bytes(zip_of([(info, b"data")]))
    with pytest.raises(UnsafeError, match="not allowed"):
        open_file(engine)
    with pytest.raises(UnsafeError, match="not allowed"):
        archive.check_name(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_part_that_names_a_file_outside(engine: Path, name: str) -> None:
    change_manifest(engine, lambda m: m["parts"][0].update(files=[name]))
    with pytest.raises(UnsafeError, match="not allowed"):
        open_file(engine)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name(engine: Path) -> None:
    entries = [(zipfile.ZipInfo("graph.onnx"), data) for data in (GRAPH, b"another")]
    engine.write_bytes(zip_of(entries))
    with pytest.raises(UnsafeError, match="two members"):
        open_file(engine)


def test_members_over_the_same_bytes(engine: Path) -> None:
    engine.write_bytes(overlapping_zip())
    with pytest.raises(EngineFileError):
        open_file(engine)


def test_bytes_between_members(engine: Path) -> None:
    whole = engine.read_bytes()
    begin = struct.unpack("<I", whole[-6:-2])[0]
    hidden = b"hidden bytes"
    end = whole[-22:-6] + struct.pack("<I", begin + len(hidden)) + whole[-2:]
    engine.write_bytes(whole[:begin] + hidden + whole[begin:-22] + end)
    with pytest.raises(TamperedError, match="belong to no member"):
        open_file(engine)


def test_bytes_in_the_directory(engine: Path) -> None:
    whole = engine.read_bytes()
    length = struct.unpack("<I", whole[-10:-6])[0]
    end = whole[-22:-10] + struct.pack("<I", length + 4) + whole[-6:]
    engine.write_bytes(whole[:-22] + b"hide" + end)
    with pytest.raises(EngineFileError):
        open_file(engine)


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO])
def test_a_link_or_a_device(engine: Path, mode: int) -> None:
    info = zipfile.ZipInfo("graph.onnx")
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    engine.write_bytes(zip_of([(info, b"/etc/passwd")]))
    with pytest.raises(UnsafeError, match="link"):
        open_file(engine)


def test_too_many_members(engine: Path) -> None:
    entries = [(zipfile.ZipInfo(f"m{i}"), b"") for i in range(archive.MAX_MEMBERS + 1)]
    engine.write_bytes(zip_of(entries))
    with pytest.raises(UnsafeError, match="members"):
        open_file(engine)


def test_an_encrypted_or_commented_member(engine: Path) -> None:
    info = zipfile.ZipInfo("graph.onnx")
    info.comment = b"hello"
    engine.write_bytes(zip_of([(info, b"")]))
    with pytest.raises(TamperedError, match="commented"):
        open_file(engine)
    whole = bytearray(zip_of([(zipfile.ZipInfo("graph.onnx"), b"data")]))
    begin = struct.unpack("<I", whole[-6:-2])[0]
    whole[begin + 8] |= 1
    engine.write_bytes(whole)
    with pytest.raises(TamperedError, match="encrypted"):
        open_file(engine)


def test_a_comment_on_the_archive(engine: Path) -> None:
    with zipfile.ZipFile(engine, "a") as zipped:
        zipped.comment = b"hello"
    with pytest.raises(EngineFileError):
        open_file(engine)


def test_a_zip_without_a_manifest(engine: Path) -> None:
    write_members(engine, {"graph.onnx": GRAPH})
    with pytest.raises(TamperedError, match=r"no manifest.json"):
        open_file(engine)


def test_a_newer_schema_is_named_before_anything_else_is_read(engine: Path) -> None:
    change_manifest(
        engine, lambda m: (m.clear(), m.update(schema=9, redline="9.1", members={}, new="field"))
    )
    with pytest.raises(SchemaError, match=r"schema 9 of Redline 9\.1") as error:
        open_file(engine)
    assert "upgrade" in error.value.hint
    assert str(engine) in str(error.value)


def test_a_manifest_that_is_too_long(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redline.engine.file.MAX_MANIFEST", 100)
    with pytest.raises(UnsafeError, match="the limit is 100"):
        open_file(engine)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("whole")
        patch.setenv("REDLINE_CONFIG_DIR", str(folder))
        return save_sample(folder / "sample.redline").read_bytes()


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_damage_never_ends_in_another_error(
    whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(damaged)))
        removed = data.draw(st.integers(0, 8))
        damaged[start : start + removed] = data.draw(st.binary(max_size=8))
    path = tmp_path / "damaged.redline"
    path.write_bytes(damaged)
    with suppress(EngineFileError):
        read_all(path)
