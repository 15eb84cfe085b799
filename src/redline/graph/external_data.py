"""Weights that lie beside an ONNX file, read without leaving its folder.

An ONNX file names the files of its weights, so a file from a stranger can name any. Absolute paths,
"..", symbolic and hard links, devices and pipes are refused, and every folder on the way is opened
relative to the one before it, so nothing can be swapped in between. ONNX's own loader has had
CVE-2022-25882, CVE-2024-27318, CVE-2026-34446 and CVE-2026-34447 in this place.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import onnx_ir

from redline.errors import InputError, UnsafeError

if TYPE_CHECKING:
    import onnx

# A protobuf message is shorter than 2 GiB; the rest is room for the nodes.
# https://protobuf.dev/programming-guides/proto-limits/
MAX_WEIGHTS = 2**31 - 2**24

_HINT = "put the weights into the .onnx file itself: onnx.save(model, path)"


def embed(model: onnx.ModelProto, folder: Path | None) -> None:
    """Read every weight that lies in another file into the message itself.

    Args:
        folder: where those files must lie; None where the model did not come from a file.

    Raises:
        UnsafeError: a weight lies outside the folder, or behind a link or a device.
        InputError: a file is missing, or too short for what the model says of it.

    Example:
        >>> embed(onnx.load("net.onnx", load_external_data=False), Path("."))
    """
    total = 0
    for tensor in _tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        if folder is None:
            raise InputError(
                f"the weight {tensor.name!r} lies in another file, and a model that is given as "
                "bytes has no folder to look in",
                hint="give the path of the .onnx file",
            )
        size = _size(tensor)
        total += size
        if total > MAX_WEIGHTS:
            raise InputError(
                f"the weights take more than {MAX_WEIGHTS / 2**30:.1f} GiB, which is more than "
                "one ONNX message can hold",
                hint="store the weights in float16",
            )
        entries = {entry.key: entry.value for entry in tensor.external_data}
        tensor.raw_data = read(
            folder,
            entries.get("location", ""),
            offset=_number(entries, "offset", tensor.name, 0),
            length=_number(entries, "length", tensor.name, size),
            size=size,
            name=tensor.name,
        )
        tensor.data_location = tensor.DEFAULT
        del tensor.external_data[:]


def read(folder: Path, location: str, *, offset: int, length: int, size: int, name: str) -> bytes:
    """The bytes of one weight.

    Args:
        location: the path, relative to the folder, that the model gives.
        size: how many bytes the shape and dtype of the weight take; `length` must agree.
        name: of the weight, for messages.

    Raises:
        UnsafeError, InputError: as `embed`.
    """
    where = f"weight {name!r}"
    if offset < 0 or length != size:
        raise InputError(
            f"external data at offset {offset} has length {length}, expected {size} bytes",
            where=where,
        )
    with ExitStack() as stack:
        file = _open(folder, _parts(location, where), where, stack)
        available = os.fstat(file).st_size - offset
        if available < size:
            raise InputError(
                f"external data {location!r} has {max(available, 0)} bytes after offset {offset}, "
                f"expected {size}",
                where=where,
                hint="the file is cut short; fetch it again",
            )
        with os.fdopen(os.dup(file), "rb") as stream:
            stream.seek(offset)
            return stream.read(size)


def _parts(location: str, where: str) -> tuple[str, ...]:
    """The folders and the file that a location names; backslashes and drives are no names."""
    path = PurePosixPath(location)
    windows = PureWindowsPath(location)
    parts = tuple(part for part in path.parts if part != ".")
    if path.is_absolute() or windows.drive or "\\" in location or ".." in parts:
        raise UnsafeError(
            f"external data {location!r} leaves the folder of the model", where=where, hint=_HINT
        )
    if not parts or "\0" in location:
        raise InputError(f"external data {location!r} names no file", where=where, hint=_HINT)
    return parts


def _open(folder: Path, parts: tuple[str, ...], where: str, stack: ExitStack) -> int:
    """A descriptor of a regular file that is reached without any link."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    shown = "/".join(parts)
    try:
        current = _keep(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), stack)
        for part in parts[:-1]:
            _refuse_link(part, current, shown, where)
            current = _keep(os.open(part, flags | os.O_DIRECTORY, dir_fd=current), stack)
        _refuse_link(parts[-1], current, shown, where)
        # O_NONBLOCK: opening a pipe must not wait for somebody to write to it.
        file = _keep(os.open(parts[-1], flags | os.O_NONBLOCK, dir_fd=current), stack)
    except OSError as error:
        raise InputError(
            f"cannot read external data {shown!r}: {error.strerror}",
            where=where,
            hint="keep the file beside the .onnx file",
        ) from error
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeError(f"external data {shown!r} is not a regular file", where=where, hint=_HINT)
    if status.st_nlink > 1:
        raise UnsafeError(
            f"external data {shown!r} is a hard link, which may lead out of the folder",
            where=where,
            hint=f"copy it: cp {shown} copy && mv copy {shown}",
        )
    return file


def _keep(descriptor: int, stack: ExitStack) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _refuse_link(part: str, folder: int, shown: str, where: str) -> None:
    if stat.S_ISLNK(os.stat(part, dir_fd=folder, follow_symlinks=False).st_mode):
        raise UnsafeError(
            f"external data {shown!r} is a symbolic link, which may lead out of the folder",
            where=where,
            hint="copy the folder with its links resolved: cp -rL folder copy",
        )


def _number(entries: dict[str, str], key: str, name: str, default: int) -> int:
    text = entries.get(key, str(default))
    try:
        return int(text)
    except ValueError:
        raise InputError(
            f"external data has {key} {text[:40]!r}, expected a whole number",
            where=f"weight {name!r}",
        ) from None


def _size(tensor: onnx.TensorProto) -> int:
    try:
        dtype = onnx_ir.DataType(tensor.data_type)
        bits = dtype.bitwidth
    except (ValueError, TypeError):
        raise InputError(
            f"a weight of type {tensor.data_type} cannot lie in another file",
            where=f"weight {tensor.name!r}",
        ) from None
    count = 1
    for dim in tensor.dims:
        if dim < 0:
            raise InputError(f"a weight has the size {dim}", where=f"weight {tensor.name!r}")
        count *= dim
    return (count * bits + 7) // 8


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _in_graph(model.graph)
    for function in model.functions:
        yield from _in_nodes(function.node)


def _in_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: object) -> Iterator[onnx.TensorProto]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            if attribute.HasField("g"):
                yield from _in_graph(attribute.g)
            for graph in attribute.graphs:
                yield from _in_graph(graph)
