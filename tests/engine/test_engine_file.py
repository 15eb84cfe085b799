"""Engine files: what goes in comes out, and a failed save leaves what was there."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_samples import CODE, GRAPH, PORTABLE, SIGNATURE, X, Y, save_sample

from redline.engine import archive
from redline.engine.arrays import pack_arrays, unpack_arrays
from redline.engine.file import open_file
from redline.engine.manifest import Part
from redline.errors import EngineFileError, SaveError, TamperedError
from redline.signature import Tree


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "model.bin").write_bytes(b"weights")
    part = Part("ncnn", {"threads": 2, "winograd": True}, files=("model.bin",))
    path = save_sample(
        tmp_path / "a.redline",
        (part, tmp_path / "part"),
        (PORTABLE, tmp_path),
        records=[{"id": "ncnn", "outcome": "ok"}],
        provenance={"study": {"seconds": 1.5}},
        graph_hash="abc",
    )
    with open_file(path) as file:
        manifest = file.manifest
        assert (manifest.name, manifest.parts) == ("sample", (part, PORTABLE))
        assert manifest.signature == SIGNATURE
        assert manifest.records == ({"id": "ncnn", "outcome": "ok"},)
        assert (manifest.provenance, manifest.graph_hash) == ({"study": {"seconds": 1.5}}, "abc")
        assert bytes(file.store(0).read("model.bin")) == b"weights"
        assert bytes(file.store(1).read("graph.onnx")) == GRAPH == bytes(file.graph() or b"")
        (x,), (y,) = file.check_arrays()
        np.testing.assert_array_equal(x, X)
        np.testing.assert_array_equal(y, Y)
        with pytest.raises(TamperedError, match="no member"):
            file.store(1).read("model.bin")


def test_what_libraries_call_text_and_numbers(tmp_path: Path) -> None:
    class Version(str):
        """torch.__version__ is such a one."""

    part = replace(PORTABLE, needs={"onnxruntime": Version("1.2")})
    path = save_sample(
        tmp_path / "a.redline",
        (part, tmp_path),
        machine={"peak": np.float64(2.5), "n": np.int64(3)},
    )
    with open_file(path) as file:
        assert file.manifest.parts[0].needs == {"onnxruntime": "1.2"}
        assert file.manifest.machine == {"peak": 2.5, "n": 3}
    with pytest.raises(TypeError, match="cannot hold a object"):
        save_sample(path, machine={"cpu": object()})


def test_members_are_stored_and_aligned_and_any_zip_tool_reads_them(tmp_path: Path) -> None:
    path = save_sample(tmp_path / "a.redline")
    with zipfile.ZipFile(path) as zipped:
        assert zipped.testzip() is None
        assert zipped.read("graph.onnx") == GRAPH
    with open_file(path) as file:
        assert all(span.start % archive.ALIGNMENT == 0 for span in file._spans.values())


def test_the_graph_is_read_without_a_copy(tmp_path: Path) -> None:
    with open_file(save_sample(tmp_path / "a.redline")) as file:
        assert file.graph() is file.graph()
        assert isinstance(file.graph(), memoryview)


def test_a_file_beyond_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)  # as if 100 bytes were 2 GiB
    path = save_sample(tmp_path / "a.redline")
    assert b"PK\x06\x06" in path.read_bytes()
    with open_file(path) as file:
        assert bytes(file.graph() or b"") == GRAPH
        assert file.trusted


def test_views_outlive_the_file(tmp_path: Path) -> None:
    file = open_file(save_sample(tmp_path / "a.redline"))
    view = file.graph()
    file.close()
    file.close()
    assert view is not None
    assert bytes(view) == GRAPH


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32),
        np.array(3.5),
        np.array([True, False]),
        np.arange(4, dtype=np.int64)[::-1],
        np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        np.zeros(2, np.complex64),
    ],
)
def test_arrays_of_every_kind(array: np.ndarray) -> None:
    (back,), () = unpack_arrays(pack_arrays([array], []), 1, 0)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_extracted_files_are_private_and_made_once(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    part = Part("ncnn", files=("model.bin",))
    path = save_sample(tmp_path / "a.redline", (part, tmp_path))
    with open_file(path) as file:
        found = file.store(0).path("model.bin")
        assert found.read_bytes() == b"weights"
        assert found.is_relative_to(tmp_path / "cache")
        assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700
        before = found.stat().st_ino
        assert file.store(0).path("model.bin").stat().st_ino == before


@pytest.mark.parametrize("planted", ["bytes", "link"])
def test_a_planted_file_in_the_cache_is_not_used(tmp_path: Path, planted: str) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    part = Part("ncnn", files=("model.bin",))
    path = save_sample(tmp_path / "a.redline", (part, tmp_path))
    with open_file(path) as file:
        found = file.store(0).path("model.bin")
    found.unlink()
    if planted == "bytes":
        found.write_bytes(b"evil")
    else:
        found.symlink_to(tmp_path / "model.bin")
    with open_file(path) as file:
        again = file.store(0).path("model.bin")
        assert again.read_bytes() == b"weights"
        assert not again.is_symlink()


def test_an_open_cache_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    part = Part("ncnn", files=("model.bin",))
    path = save_sample(tmp_path / "a.redline", (part, tmp_path))
    with open_file(path) as file:
        file.store(0).path("model.bin").parent.chmod(0o777)
    with open_file(path) as file:
        found = file.store(0).path("model.bin")
        assert not found.is_relative_to(tmp_path / "cache")
        assert found.read_bytes() == b"weights"
    assert not found.exists()


def check_untouched(path: Path, before: bytes) -> None:
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_sample(tmp_path / "a.redline")
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "write_member", full)
    with pytest.raises(SaveError, match="No space left on device") as error:
        save_sample(path)
    assert "MB are free" in error.value.hint
    assert error.value.where == str(path)
    check_untouched(path, before)


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from engine_samples import save_sample
from redline.errors import SaveError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    save_sample(Path(sys.argv[1]))
except SaveError as error:
    print("SaveError", error.what)
"""


@pytest.mark.parametrize("limit", [100, 1000])
def test_a_write_that_fails_half_way(tmp_path: Path, limit: int) -> None:
    path = save_sample(tmp_path / "a.redline")
    before = path.read_bytes()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, path, Path(__file__).parent, str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "SaveError the engine could not be saved: File too large" in done.stdout
    check_untouched(path, before)


def test_an_interrupt_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_sample(tmp_path / "a.redline")
    before = path.read_bytes()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_sample(path, name="other")
    monkeypatch.undo()
    check_untouched(path, before)


def test_a_missing_folder_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="the folder does not exist") as error:
        save_sample(tmp_path / "no" / "a.redline")
    assert error.value.hint == f"mkdir -p {tmp_path / 'no'}"


def test_a_folder_or_a_file_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="Is a directory"):
        save_sample(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match="Not a directory"):
        save_sample(tmp_path / "file" / "a.redline")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)  # root may write anywhere, so chmod shows nothing
    with pytest.raises(SaveError, match="Permission denied"):
        save_sample(tmp_path / "a.redline")


def test_a_part_that_lost_a_file(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="a part's file is missing"):
        save_sample(tmp_path / "a.redline", (Part("ncnn", files=("gone.bin",)), tmp_path))
    assert list(tmp_path.iterdir()) == [tmp_path / "config"] or not list(tmp_path.glob(".a*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": [(Part("ncnn", files=("../up",)), Path())]}, "not allowed"),
        ({"graph": None}, "needs graph.onnx"),
        ({"signature": replace(SIGNATURE, output_tree=Tree("tuple"))}, "number of tensors"),
        ({"parts": []}, "0 parts"),
        ({"inputs": []}, "0 inputs and 1 outputs"),
    ],
)
def test_what_could_not_be_opened_is_not_saved(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SaveError, match=message):
        save_sample(tmp_path / "a.redline", **{"parts": [(PORTABLE, tmp_path)], **changes})
    assert not (tmp_path / "a.redline").exists()


def test_saving_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    save_sample(tmp_path / "a.redline")
    (tmp_path / "link").symlink_to("a.redline")
    save_sample(tmp_path / "link", name="second")
    assert (tmp_path / "link").is_symlink()
    with open_file(tmp_path / "a.redline") as file:
        assert file.manifest.name == "second"


def test_the_file_has_the_users_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = save_sample(tmp_path / "a.redline")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["missing.redline", "."])
def test_what_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineFileError, match="cannot be opened"):
        open_file(tmp_path / name)


def test_code_is_signed_by_default(tmp_path: Path) -> None:
    with open_file(save_sample(tmp_path / "a.redline", (CODE, tmp_path))) as file:
        assert file.signer
        assert file.trusted
    with open_file(save_sample(tmp_path / "b.redline", (CODE, tmp_path), sign=False)) as file:
        assert file.signer is None
        assert not file.trusted
