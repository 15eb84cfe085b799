"""The body of an inference request as a Request, and a Response as a body: JSON and binary."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from redline.serve.dtypes import (
    BYTES,
    as_bytes,
    count_elements,
    from_bytes,
    to_bytes,
    to_datatype,
    to_numpy_dtype,
)
from redline.serve.messages import Request, Response, ServeError, Status
from redline.serve.opening import Tensor
from redline.serve.rest_body import JSON, Answer, Part, decode_json
from redline.serve.settings import Limits
from redline.serve.shared_memory import Lease, place

Parameter = bool | int | float | str | None


class JsonInput(msgspec.Struct):
    """One input as it is written; its data stays text until its size is known to be right."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class JsonOutput(msgspec.Struct):
    """One wanted output."""

    name: str
    parameters: dict[str, Parameter] = {}


class JsonRequest(msgspec.Struct):
    """The head of a request."""

    inputs: list[JsonInput]
    outputs: list[JsonOutput] = []
    id: str = ""
    parameters: dict[str, Parameter] = {}


_REQUEST = msgspec.json.Decoder(JsonRequest)
_FLAT = {
    "f": msgspec.json.Decoder(list[float]),
    "i": msgspec.json.Decoder(list[int]),
    "b": msgspec.json.Decoder(list[bool | int]),
    "O": msgspec.json.Decoder(list[str]),
}
_ANY = msgspec.json.Decoder()


class Wanted:
    """How the client wants its outputs."""

    __slots__ = ("binary", "by_name")

    def __init__(self, head: JsonRequest) -> None:
        self.binary = _flag(head.parameters, "binary_data_output")
        self.by_name = {output.name: output.parameters for output in head.outputs}


def parse_request(
    model: str, version: str, body: Part, header: bytes | None, limits: Limits,
    raw_input: Tensor | None = None, lease: Lease | None = None,
) -> tuple[Request, Wanted]:  # fmt: skip
    """A request from its body.

    Args:
        header: what Inference-Header-Content-Length says: bytes of JSON before the binary data.
        raw_input: the model's only input, which a body without any JSON is for.
        lease: shared memory that the request may use; None where there is none.

    Raises:
        ServeError: INVALID, with the input or field that is wrong.
    """
    view = memoryview(body)
    size = _header_size(header, len(view))
    if size == 0 and header is not None:
        head = JsonRequest([], parameters={"binary_data_output": True})
        return Request(model, version, _raw(view, raw_input, limits)), Wanted(head)
    head = decode_json(view[:size], _REQUEST, limits)
    if max(len(head.inputs), len(head.outputs)) > limits.tensors:
        raise _invalid(f"the request has more than {limits.tensors} inputs or outputs")
    names = tuple(output.name for output in head.outputs)
    if len(set(names)) != len(names):
        raise _invalid("the request names an output twice")
    for output in head.outputs:  # before the work, not after it
        if (where := place(output.parameters)) is not None:
            _lent(lease).hold(*where)
    request = Request(model, version, _inputs(head, view[size:], limits, lease), names, head.id)
    if head.parameters:
        _apply(request, head.parameters)
    return request, Wanted(head)


def _invalid(what: str) -> ServeError:
    return ServeError(Status.INVALID, what)


def _header_size(header: bytes | None, body: int) -> int:
    if header is None:
        return body
    if not header.isdigit() or len(header) > 12 or int(header) > body:
        raise _invalid(
            f"Inference-Header-Content-Length is {header[:40].decode('latin-1')!r}, the body has "
            f"{body} bytes"
        )
    return int(header)


def _apply(request: Request, parameters: dict[str, Parameter]) -> None:
    """What parameters of the request say about its queueing; the others stay with it."""
    priority, timeout = parameters.get("priority", 0), parameters.get("timeout", 0)
    for name, value in (("priority", priority), ("timeout", timeout)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
            raise _invalid(f"the parameter {name!r} is {value!r:.40}, expected a whole number")
    request.priority = int(priority or 0)
    request.timeout = int(timeout or 0) * 1e-6
    own = ("priority", "timeout", "binary_data_output")
    request.parameters = {name: v for name, v in parameters.items() if name not in own}


def _lent(lease: Lease | None) -> Lease:
    if lease is None:
        raise ServeError(Status.UNSUPPORTED, "shared memory is not enabled in this server")
    return lease


def _inputs(
    head: JsonRequest, data: memoryview, limits: Limits, lease: Lease | None
) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    at = 0
    for one in head.inputs:
        if one.name in found:
            raise _invalid(f"the request has the input {one.name[:200]!r} twice")
        if len(one.shape) > limits.rank:
            raise _invalid(f"input {one.name[:200]!r} has more than {limits.rank} axes")
        count = count_elements(one.shape, limits.elements, one.name[:200])
        if (where := place(one.parameters)) is not None:
            copy = memoryview(_lent(lease).read(*where))
            shape = tuple(one.shape)
            found[one.name] = from_bytes(copy, one.datatype, shape, count, one.name[:200])
            continue
        size = one.parameters.get("binary_data_size")
        if size is None:
            found[one.name] = _from_json(one, count, limits)
            continue
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(data) - at:
            raise _invalid(
                f"binary_data_size of input {one.name[:200]!r} is {size!r:.40}, "
                f"{len(data) - at} bytes are there"
            )
        if one.data is not msgspec.UNSET:
            raise _invalid(f"input {one.name[:200]!r} has both data and binary_data_size")
        shape = tuple(one.shape)
        found[one.name] = from_bytes(
            data[at : at + size], one.datatype, shape, count, one.name[:200]
        )
        at += size
    if at != len(data):
        raise _invalid(f"{len(data) - at} bytes follow the binary data of the inputs")
    return found


def _raw(data: memoryview, tensor: Tensor | None, limits: Limits) -> dict[str, np.ndarray]:
    """A body that is nothing but the data of the only input; a free axis is what is left over."""
    if tensor is None:
        raise _invalid("a body without JSON needs a model with exactly one input")
    free = [axis for axis, size in enumerate(tensor.shape) if size < 0]
    fixed = math.prod(size for size in tensor.shape if size >= 0)
    shape = list(tensor.shape)
    if tensor.dtype == BYTES:
        count = 1
        shape = [1 if size < 0 else size for size in shape]
    else:
        count = len(data) // tensor.dtype.itemsize
        for axis in free[:-1]:
            shape[axis] = 1
        if free:
            shape[free[-1]] = count // fixed if fixed else 0
    count = count_elements(shape, limits.elements, tensor.name)
    return {tensor.name: from_bytes(data, tensor.datatype, tuple(shape), count, tensor.name)}


def _from_json(one: JsonInput, count: int, limits: Limits) -> np.ndarray:
    """An input whose data is JSON. Commas are counted first: memory is for what the shape says."""
    name = one.name[:200]
    if one.data is msgspec.UNSET:
        raise _invalid(f"input {name!r} has neither data nor binary_data_size")
    if count > limits.json_elements:
        raise _invalid(
            f"input {name!r} has {count} elements, JSON may have {limits.json_elements}: "
            "send binary"
        )
    dtype = to_numpy_dtype(one.datatype)
    text = bytes(one.data)
    commas = text.count(b",")
    if commas + 1 < count or (dtype != BYTES and commas > max(count, 1) - 1):
        raise _invalid(f"input {name!r} has {commas + 1} values, its shape {one.shape} {count}")
    if dtype == BYTES and commas > len(text) // 2:
        raise _invalid(f"input {name!r} is not a list of texts")
    try:
        return _decode(text, dtype, count).reshape(one.shape)
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _invalid(
            f"data of input {name!r} is not {one.datatype} {one.shape}: {str(error)[:200]}"
        ) from error


def _decode(text: bytes, dtype: np.dtype[Any], count: int) -> np.ndarray:
    kind = {"u": "i", "V": "f"}.get(dtype.kind, dtype.kind)
    try:
        values: list[Any] = _FLAT[kind].decode(text)  # type: ignore[attr-defined]
    except msgspec.ValidationError:
        values = _flatten(_ANY.decode(text), kind)
    if dtype == BYTES:
        array = np.empty(len(values), object)
        array[:] = [value.encode() for value in values]
    elif kind == "b":
        if any(value not in (0, 1) for value in values):
            raise ValueError("BOOL is true, false, 1 or 0")
        array = np.array(values, np.bool_)
    elif kind == "f":
        array = np.array(values, np.float64).astype(dtype)
    else:
        array = np.array(values, dtype)
    if array.size != count:
        raise ValueError(f"there are {array.size} values")
    return array


def _flatten(nest: Any, kind: str) -> list[Any]:
    """Nested lists as one; each leaf is held against its kind."""
    allowed = {"f": (int, float), "i": (int,), "b": (bool, int), "O": (str,)}[kind]
    found: list[Any] = []
    stack = [iter([nest])]
    while stack:
        value = next(stack[-1], _END)
        if value is _END:
            stack.pop()
        elif isinstance(value, list):
            stack.append(iter(value))
        elif not isinstance(value, allowed) or (kind in "if" and isinstance(value, bool)):
            raise ValueError(f"{value!r:.40} is not expected here")
        else:
            found.append(value)
    return found


_END = object()


def _flag(parameters: dict[str, Parameter], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise _invalid(f"the parameter {name!r} is {value!r:.40}, expected true or false")
    return value


def compose(
    response: Response, wanted: Wanted, batched: bool, lease: Lease | None = None
) -> Answer:
    """The answer's body: a JSON head, and behind it the data of binary outputs.

    Raises:
        ServeError: INVALID, a value that JSON cannot hold, or a parameter that is wrong.
    """
    rows, parts = [], []
    for name, array in response.outputs.items():
        parameters = wanted.by_name.get(name, {})
        classes = parameters.get("classification", 0)
        if classes:
            array = classify(array, classes, batched)
        binary = _flag(parameters, "binary_data") if "binary_data" in parameters else wanted.binary
        row: dict[str, Any] = {
            "name": name, "datatype": to_datatype(array.dtype), "shape": list(array.shape)
        }  # fmt: skip
        if (where := place(parameters)) is not None:
            # No parameters: Triton's C++ client takes those of an output for those of binary data.
            _lent(lease).write_output(name, where, to_bytes(array))
        elif binary:
            data = to_bytes(array)
            row["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            row["data"] = to_json(array, name)
        rows.append(row)
    head: dict[str, Any] = {
        "model_name": response.model, "model_version": response.version, "outputs": rows
    }  # fmt: skip
    if response.id:
        head["id"] = response.id
    if response.parameters:
        head["parameters"] = dict(response.parameters)
    text = msgspec.json.encode(head)
    if not parts:
        return Answer(200, [text], JSON)
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", b"%d" % len(text)),
    ]
    return Answer(200, [text, *parts], headers)


def to_json(array: np.ndarray, name: str) -> list[Any]:
    """A tensor's values in row-major order.

    Raises:
        ServeError: INVALID, not a number, infinite, or bytes that are no text.
    """
    if array.dtype == BYTES:
        try:
            return [as_bytes(value).decode("utf-8") for value in array.reshape(-1)]
        except UnicodeDecodeError:
            raise _invalid(f"output {name!r} is not UTF-8: ask for binary_data") from None
    if array.dtype.kind in "fV":
        array = array.astype(np.float32) if array.dtype.itemsize < 4 else array
        if not np.isfinite(array).all():
            raise _invalid(
                f"output {name!r} has a NaN or an infinity, which JSON lacks: ask for binary_data"
            )
    values: list[Any] = array.reshape(-1).tolist()
    return values


def classify(array: np.ndarray, classes: Any, batched: bool) -> np.ndarray:
    """The `classes` largest values as texts "value:index", of each row where there is a batch.

    Raises:
        ServeError: INVALID, not a count, or values that have no order.
    """
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise _invalid(f"classification is {classes!r:.40}, expected how many classes")
    if array.dtype == BYTES or not array.ndim:
        raise _invalid("classification needs an output of numbers")
    rows = array.reshape(array.shape[0], -1) if batched else array.reshape(1, -1)
    numbers = rows.astype(np.float64)
    best = np.argsort(-numbers, axis=1, kind="stable")[:, : min(classes, rows.shape[1])]
    texts = np.empty(best.shape, object)
    whole = array.dtype.kind in "iub"
    for row, column in np.ndindex(best.shape):
        index = int(best[row, column])
        value = rows[row, index]
        spelled = f"{int(value)}" if whole else f"{float(value):f}"
        texts[row, column] = f"{spelled}:{index}".encode()
    return texts if batched else texts[0]
