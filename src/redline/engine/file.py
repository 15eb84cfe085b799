"""Write and open engine files. FORMAT.md is the page about them."""

from __future__ import annotations

import contextlib
import datetime
import errno
import logging
import mmap
import os
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from redline import __version__
from redline.engine import archive, sign
from redline.engine.arrays import pack_arrays, unpack_arrays
from redline.engine.cabinet import Cabinet
from redline.engine.manifest import SCHEMA, Check, Manifest, Part
from redline.engine.scan import check_graph
from redline.engine.store import Store
from redline.engine.validate import MAX_MANIFEST, decode_manifest, encode_manifest
from redline.errors import (
    EngineFileError,
    InputError,
    SaveError,
    TamperedError,
    TruncatedError,
    UnsafeError,
)
from redline.signature import Signature

_log = logging.getLogger("redline")
_OUTSIDE = {"manifest.json", "signature.json"}  # members that the manifest does not list


def save(
    path: str | Path,
    *,
    name: str,
    signature: Signature,
    parts: Sequence[tuple[Part, Path]],
    graph: bytes | None,
    check: Check | None,
    inputs: Sequence[np.ndarray] = (),
    outputs: Sequence[np.ndarray] = (),
    machine: dict[str, Any] | None = None,
    records: Sequence[dict[str, Any]] = (),
    provenance: dict[str, Any] | None = None,
    graph_hash: str = "",
    sign: bool = True,
) -> None:
    """Write an engine file in one step: it is there whole, or what was there before still is.

    Args:
        parts: in order of preference, each with the folder its files lie in.
        graph: a serialized ONNX model; needed when a part uses it.
        check: with `inputs` and `outputs`, the self-test that loading replays.
        sign: by this machine's key, so that compiled parts run here without trust=True.

    Raises:
        SaveError: no space, not writable, a part's file is missing; the hint says what to do.
    """
    sources: dict[str, bytes | Path] = {} if graph is None else {"graph.onnx": graph}
    for index, (part, folder) in enumerate(parts):
        sources |= {f"parts/{index}/{file}": folder / file for file in part.files}
    if check is not None:
        _check_counts(signature, inputs, outputs, path)
        sources["check.npz"] = pack_arrays(inputs, outputs)
    manifest = Manifest(
        schema=SCHEMA,
        redline=__version__,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        name=name,
        signature=signature,
        parts=tuple(part for part, _ in parts),
        members={},
        machine=machine or {},
        check=check,
        graph_hash=graph_hash,
        records=tuple(records),
        provenance=provenance or {},
    )
    _write(Path(path), sources, manifest, signed=sign)


def _check_counts(
    signature: Signature, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], path: object
) -> None:
    expected = (len(signature.inputs), len(signature.outputs))
    if (len(inputs), len(outputs)) != expected:
        raise SaveError(
            f"the self-test has {len(inputs)} inputs and {len(outputs)} outputs, "
            f"the signature {expected[0]} inputs and {expected[1]} outputs",
            where=str(path),
        )


def _write(
    path: Path, sources: dict[str, bytes | Path], manifest: Manifest, *, signed: bool
) -> None:
    target = path.resolve()  # through a link, so that the link stays one
    beside = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        with open(beside, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as zipped:
                _write_members(zipped, sources, manifest, signed=signed)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as error:
        raise _save_error(error, target, sources) from error
    except EngineFileError as error:
        raise SaveError(error.what, where=str(target), hint=error.hint) from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    _sync_folder(target.parent)


def _write_members(
    zipped: zipfile.ZipFile, sources: dict[str, bytes | Path], manifest: Manifest, *, signed: bool
) -> None:
    members = {name: archive.write_member(zipped, name, source) for name, source in sources.items()}
    text = encode_manifest(replace(manifest, members=members))
    archive.write_member(zipped, "manifest.json", text)
    signature = _try_sign(text) if signed else None
    if signature is not None:
        archive.write_member(zipped, "signature.json", signature)


def _try_sign(manifest: bytes) -> bytes | None:
    """An engine is of use without a signature, so what stands in its way is only said."""
    try:
        return sign.sign(manifest)
    except (ImportError, OSError, InputError) as error:
        _log.warning("the engine file is not signed: %s", error)
        return None


def _save_error(error: OSError, target: Path, sources: dict[str, bytes | Path]) -> SaveError:
    size = sum(len(s) if isinstance(s, bytes) else _size(s) for s in sources.values())
    reason = error.strerror or str(error)
    hint = "choose another path"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = shutil.disk_usage(target.parent).free
        hint = f"needs {size / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; make room or " + hint
    elif error.errno == errno.ENOENT and not target.parent.exists():
        reason, hint = "the folder does not exist", f"mkdir -p {target.parent}"
    elif error.errno == errno.ENOENT and f".{target.name}." in str(error.filename):
        reason = f"{target.parent} takes no new files"
    elif error.errno == errno.ENOENT:
        reason, hint = f"a part's file is missing: {error.filename}", "optimize the model again"
    return SaveError(f"the engine could not be saved: {reason}", where=str(target), hint=hint)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class EngineFile:
    """An open engine file; members are hashed when they are first read.

    Attributes:
        manifest: what the file says about itself, checked.
        signer: fingerprint of the key that signed it; None when unsigned or not verifiable here.

    The file is mapped, not read: do not change it in place while it is open (save() never does).
    """

    def __init__(self, path: Path, data: mmap.mmap, spans: dict[str, archive.Span]) -> None:
        self.path = path
        self._data = data
        self._spans = spans
        self._checked: dict[str, memoryview] = {}
        text = self._manifest_bytes()
        self.manifest = decode_manifest(text)
        if spans.keys() - _OUTSIDE != self.manifest.members.keys():
            wrong = sorted((spans.keys() - _OUTSIDE) ^ self.manifest.members.keys())[0]
            raise TamperedError(f"file and manifest do not agree about the member {wrong!r}")
        self._public = self._verify(text)
        self.signer = sign.fingerprint(self._public) if self._public else None
        self._cabinet = Cabinet()

    def _manifest_bytes(self) -> bytes:
        span = self._spans.get("manifest.json")
        if span is None:
            raise TamperedError("there is no manifest.json", hint="this is another kind of zip")
        if span.size > MAX_MANIFEST:
            raise UnsafeError(f"the manifest has {span.size} bytes, the limit is {MAX_MANIFEST}")
        text = self._data[span.start : span.start + span.size]
        if zlib.crc32(text) != span.crc:
            raise TamperedError("manifest.json is damaged", hint="copy or download the file again")
        return text

    def _verify(self, manifest: bytes) -> bytes | None:
        span = self._spans.get("signature.json")
        if span is None:
            return None
        try:
            return sign.verify(manifest, self._data[span.start : span.start + span.size])
        except ImportError:
            return None

    @property
    def trusted(self) -> bool:
        """Whether this machine, or one whose key it trusts, signed the file.

        Raises:
            InputError: keys lie open to other users.
        """
        return self._public is not None and sign.is_trusted(self._public)

    def read(self, name: str) -> memoryview:
        """A member's bytes, after their hash.

        Raises:
            TamperedError: they are not what the manifest says, or there is no such member.
        """
        if name not in self._checked:
            member = self.manifest.members.get(name)
            if member is None:
                raise TamperedError(f"the engine has no member {name!r}")
            view = archive.read_checked(self._data, self._spans[name], member, name)
            if name.endswith(".onnx"):
                check_graph(view)
            self._checked[name] = view
        return self._checked[name]

    def store(self, index: int) -> Store:
        """The files of part `index`, as its runner reads them."""
        return _PartStore(self, index)

    def graph(self) -> memoryview | None:
        """The ONNX graph that the portable part runs."""
        return self.read("graph.onnx") if "graph.onnx" in self.manifest.members else None

    def check_arrays(self) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """Inputs and expected outputs of the self-test; empty when there is none."""
        if self.manifest.check is None:
            return (), ()
        signature = self.manifest.signature
        return unpack_arrays(self.read("check.npz"), len(signature.inputs), len(signature.outputs))

    def extract(self, name: str) -> Path:
        """A member as a real file in a folder that only this user can enter."""
        return self._cabinet.place(self.read(name), self.manifest.members[name].sha256, name)

    def close(self) -> None:
        """Unmap the file; views that were handed out stay good."""
        self._checked.clear()
        self._cabinet.close()
        with contextlib.suppress(BufferError):  # someone still reads: the last view's end unmaps it
            self._data.close()

    def __enter__(self) -> EngineFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _PartStore:
    """One part of an engine file."""

    def __init__(self, file: EngineFile, index: int) -> None:
        self._file = file
        self._index = index

    def _member(self, name: str) -> str:
        return name if name == "graph.onnx" else f"parts/{self._index}/{name}"

    def read(self, name: str) -> memoryview:
        return self._file.read(self._member(name))

    def path(self, name: str) -> Path:
        return self._file.extract(self._member(name))


def open_file(path: str | Path) -> EngineFile:
    """Map an engine file and check everything but the members' hashes, which reading checks.

    Raises:
        EngineFileError: it is missing, truncated, tampered with, unsafe, or of a newer Redline.

    Example:
        >>> with open_file("model.redline") as file:
        ...     print(file.manifest.signature, file.signer)
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise TruncatedError("the file is empty", where=str(path))
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise EngineFileError(
            f"the engine cannot be opened: {error.strerror or error}", where=str(path)
        ) from error
    try:
        return EngineFile(path, data, archive.read_directory(data))
    except EngineFileError as error:
        data.close()
        error.where = error.where or str(path)
        raise
