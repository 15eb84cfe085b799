"""From what the user has to a checked ONNX message, at its own opset and at ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir

from redline.capture.onnx_reference import one_line
from redline.errors import ModelError
from redline.graph.external_data import MAX_WEIGHTS, embed
from redline.graph.model import Note
from redline.graph.opset import OLDEST_OPSET, OPSET
from redline.graph.serialize import to_bytes

if TYPE_CHECKING:
    import onnx


def original_and_converted(
    source: Any,
) -> tuple[onnx.ModelProto, onnx.ModelProto | None, tuple[Note, ...]]:
    """The message that a source holds, and the same at our opset where it needs and bears it.

    Raises:
        ModelError: it is no valid ONNX graph, or older than we take and not convertible.
        UnsafeError, InputError: of its external data; see graph/external_data.py.
    """
    proto = _read(source)
    _check(proto)
    version = next((item.version for item in proto.opset_import if not item.domain), OPSET)
    if version >= OPSET:
        return proto, None, ()
    try:
        return proto, _convert(proto), ()
    except Exception as error:  # the converter raises what its C++ raises
        reason = one_line(error)
    if version < OLDEST_OPSET:
        raise ModelError(
            f"the file is of opset {version}, and onnx cannot bring it to opset {OPSET}: {reason}",
            hint=f"export it again with opset {OLDEST_OPSET} or newer",
        )
    return proto, None, (Note(f"kept at opset {version}: onnx's converter refuses it ({reason})"),)


def _read(source: Any) -> onnx.ModelProto:
    import onnx

    if isinstance(source, onnx_ir.Model):
        return _parse(to_bytes(source), "the graph")
    if isinstance(source, bytes):
        proto, folder = _parse(source, "what was given"), None
    elif isinstance(source, onnx.ModelProto):
        proto, folder = onnx.ModelProto(), None
        proto.CopyFrom(source)
    elif isinstance(source, str | Path):
        path = Path(source)
        proto, folder = _parse(_read_file(path), str(path)), path.parent
    else:
        raise ModelError(f"got a {type(source).__name__}, expected a path, bytes or an ONNX model")
    embed(proto, folder)
    return proto


def _read_file(path: Path) -> bytes:
    if not path.exists():
        raise ModelError(f"{path} does not exist")
    if not path.is_file():
        raise ModelError(f"{path} is not a file", hint="give the path of an .onnx file")
    if path.stat().st_size > MAX_WEIGHTS:
        raise ModelError(
            f"{path} has {path.stat().st_size / 2**30:.1f} GiB, and an ONNX file with its weights "
            "inside is shorter than 2 GiB"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def _parse(data: bytes, what: str) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    hint = ""
    if data.startswith(b"PK\x03\x04"):
        hint = "it is a zip archive: a PyTorch file has the suffix .pt or .pt2"
    try:
        proto = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise ModelError(f"{what} is not an ONNX model", hint=hint) from error
    if not proto.HasField("graph"):
        raise ModelError(f"{what} is not an ONNX model: it holds no graph", hint=hint)
    return proto


def _check(proto: onnx.ModelProto) -> None:
    import onnx

    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"not a valid ONNX model: {one_line(error)}", hint="export it again"
        ) from error


def _convert(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnx
    from onnx import inliner, version_converter

    if proto.functions:  # the converter does not look into them
        proto = inliner.inline_local_functions(proto)
    converted = version_converter.convert_version(proto, OPSET)
    onnx.checker.check_model(converted)
    return converted
