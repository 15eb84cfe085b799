"""Refuse an ONNX graph that names other files: loading it would read what lies on this machine.

OpenVINO follows such a name even for a model given as bytes. Walks the protobuf wire format
(protobuf.dev/programming-guides/encoding) along the fields of onnx.proto that can hold a tensor, so
that the run side needs no onnx.
"""

from __future__ import annotations

from redline.errors import TamperedError, UnsafeError

# message -> {field number: message inside it}; numbers from onnx/onnx.proto
_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_MAX_DEPTH = 64


def check_graph(data: bytes | memoryview) -> None:
    """Raise when a serialized ONNX model keeps tensors outside itself, or is no ONNX model.

    Example:
        >>> check_graph(b"")

    Raises:
        UnsafeError: a tensor's data lies in another file.
        TamperedError: the bytes are not an ONNX model.
    """
    if bytes(data[4:8]) == b"ORTM":  # ONNX Runtime's own format, which it would take as well
        raise UnsafeError("the graph is in ONNX Runtime's format, expected ONNX")
    try:
        _walk(memoryview(data), 0, len(data), "model", _MAX_DEPTH)
    except IndexError:
        raise TamperedError("the graph is cut off") from None


def _walk(data: memoryview, place: int, end: int, message: str, depth: int) -> None:
    if not depth or end > len(data):
        raise TamperedError("the graph is not an ONNX model")
    inside = _INSIDE[message]
    while place < end:
        key, place = _varint(data, place)
        field, wire = key >> 3, key & 7
        if wire == 2:
            size, place = _varint(data, place)
            value = size
        elif wire == 0:
            value, after = _varint(data, place)
            size = after - place
        elif wire in (1, 5):
            value, size = 1, 8 if wire == 1 else 4
        else:
            raise TamperedError("the graph is not an ONNX model")
        if message == "tensor" and (field == _EXTERNAL_DATA or (field == _DATA_LOCATION and value)):
            raise UnsafeError(
                "the graph keeps a tensor in another file",
                hint="an engine holds all its weights itself; optimize the model again",
            )
        if field in inside and wire == 2:
            _walk(data, place, place + size, inside[field], depth - 1)
        place += size
    if place != end:
        raise TamperedError("the graph is not an ONNX model")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise TamperedError("the graph is not an ONNX model")
