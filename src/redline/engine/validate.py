"""Decode a manifest from anyone: right types first (msgspec), then right meaning."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from redline.engine.archive import check_name
from redline.engine.manifest import SCHEMA, Manifest, Part
from redline.errors import SchemaError, TamperedError, UnsafeError
from redline.signature import Signature, TensorSpec, Tree

MAX_MANIFEST = 16 << 20
MAX_DEPTH = 64
MAX_PARTS = 64
MAX_TENSORS = 4096
MAX_RANK = 32
_NUMBERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_REALS = ("float16", "float32", "float64", "complex64", "complex128")
DTYPES = frozenset(("bool", *_NUMBERS, *_REALS))


class _Head(msgspec.Struct):
    """What is read before the rest may be understood."""

    schema: int
    redline: str = "?"


def decode_manifest(data: bytes) -> Manifest:
    """A manifest whose every field has been looked at.

    Raises:
        SchemaError: a newer Redline wrote it.
        EngineFileError: TamperedError or UnsafeError, with the field that is wrong.
    """
    if len(data) > MAX_MANIFEST:
        raise UnsafeError(f"the manifest has {len(data)} bytes, the limit is {MAX_MANIFEST}")
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.schema > SCHEMA:
            raise SchemaError(
                f"the file has schema {head.schema} of Redline {head.redline[:20]}; "
                f"this Redline reads up to {SCHEMA}",
                hint="pip install --upgrade redline",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TamperedError(f"the manifest cannot be read: {error}") from error
    check_manifest(manifest)
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON that people can read.

    Raises:
        EngineFileError: it would not be accepted when read.
    """
    check_manifest(manifest)
    return msgspec.json.format(msgspec.json.encode(manifest, enc_hook=_plain), indent=1)


def _plain(value: object) -> object:
    """Kinds of text and numbers that libraries hand out (torch.__version__, np.float64)."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a manifest cannot hold a {type(value).__qualname__}")


def check_manifest(manifest: Manifest) -> None:
    """Raise TamperedError or UnsafeError when a manifest contradicts itself."""
    _require(manifest.schema == SCHEMA, f"schema {manifest.schema}")
    _require(0 < len(manifest.parts) <= MAX_PARTS, f"{len(manifest.parts)} parts")
    for part in manifest.parts:
        _check_part(part)
    uses_graph = any(part.uses_graph for part in manifest.parts)
    _require(not uses_graph or "graph.onnx" in manifest.members, "a part needs graph.onnx")
    if manifest.check is not None:
        numbers = (manifest.check.tolerance, manifest.check.latency_s)
        _require(all(math.isfinite(n) and n >= 0 for n in numbers), "check")
    for name, member in manifest.members.items():
        _require(member.size >= 0 and len(member.sha256) == 64, f"member {name!r}")
    expected = member_names(manifest)
    if expected != manifest.members.keys():
        wrong = sorted(expected ^ manifest.members.keys())[0]
        raise TamperedError(f"the manifest does not account for the member {wrong!r}")
    _check_signature(manifest.signature)


def member_names(manifest: Manifest) -> set[str]:
    """The members that the parts need; graph.onnx may be there for a part made later."""
    names = {
        f"parts/{index}/{file}" for index, part in enumerate(manifest.parts) for file in part.files
    }
    names |= {"check.npz"} if manifest.check else set()
    return names | ({"graph.onnx"} & manifest.members.keys())


def _check_part(part: Part) -> None:
    _require(part.backend.isidentifier(), f"backend {part.backend[:40]!r}")
    _require(len(set(part.files)) == len(part.files), f"files of the {part.backend} part")
    _require("graph.onnx" not in part.files, f"files of the {part.backend} part")
    for file in part.files:
        check_name(file)


def _check_signature(signature: Signature) -> None:
    for tree, specs in (
        (signature.input_tree, signature.inputs),
        (signature.output_tree, signature.outputs),
    ):
        _require(len(specs) <= MAX_TENSORS, f"{len(specs)} tensors")
        _require(_count(tree, MAX_DEPTH) == len(specs), "number of tensors in a tree")
        for spec in specs:
            _check_spec(spec)
    _require(signature.input_tree.kind == "dict", "input_tree")
    names = [spec.name for spec in signature.inputs]
    _require(len(set(names)) == len(names), "names of inputs")
    for dim in signature.dims:
        _require(0 <= dim.min <= dim.opt <= dim.max, f"dim {dim.name!r}")


def _check_spec(spec: TensorSpec) -> None:
    _require(spec.dtype in DTYPES, f"dtype {spec.dtype[:40]!r} of {spec.name!r}")
    _require(len(spec.shape) <= MAX_RANK, f"rank of {spec.name!r}")
    sizes = [axis for axis in spec.shape if isinstance(axis, int)]
    _require(all(0 <= size < 1 << 63 for size in sizes), f"shape of {spec.name!r}")


def _count(tree: Tree, depth: int) -> int:
    """Tensors in a tree, while checking that keys and children fit."""
    _require(depth > 0, "depth of a tree")
    named = tree.kind in ("dict", "object")
    _require(len(tree.keys) == (len(tree.children) if named else 0), "keys of a tree")
    _require(len(set(tree.keys)) == len(tree.keys), "keys of a tree")
    if tree.kind in ("leaf", "constant"):
        _require(not tree.children, "children of a leaf")
        return int(tree.kind == "leaf")
    return sum(_count(child, depth - 1) for child in tree.children)


def _require(true: bool, what: str) -> None:
    if not true:
        raise TamperedError(f"the manifest contradicts itself or is out of bounds: {what}")
