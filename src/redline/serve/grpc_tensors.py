"""Between gRPC's messages and the data plane's requests: tensors, parameters, shared memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from redline.serve import dtypes
from redline.serve.messages import Request, Response, ServeError, Status
from redline.serve.names import check_name, check_version
from redline.serve.proto import message
from redline.serve.rest_tensors import classify
from redline.serve.shared_memory import Lease, place, whole

ModelInferResponse = message("ModelInferResponse")

# What the protocol itself puts among the parameters; every other "triton_" key is refused.
_EMPTY_FINAL = "triton_enable_empty_final_response"
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")

# Which field of InferTensorContents holds a datatype; FP16 and BF16 travel raw only.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


@dataclass(frozen=True)
class TensorLimits:
    """Most inputs or outputs of a request, elements of a tensor, axes of a tensor."""

    tensors: int = 1024
    elements: int = 1 << 28
    rank: int = 32


@dataclass(frozen=True, slots=True)
class Wanted:
    """How one output is to be given: where in shared memory, or as the top `classes`."""

    region: str = ""
    offset: int = 0
    byte_size: int = 0
    classes: int = 0


def plain_parameters(found: Any) -> dict[str, Any]:
    """The values of a map of InferParameter.

    Raises:
        ServeError: INVALID, a parameter without a value.
    """
    plain = {}
    for key, value in found.items():
        kind = value.WhichOneof("parameter_choice")
        if kind is None:
            raise ServeError(Status.INVALID, f"parameter {_short(key)} has no value")
        plain[key] = getattr(value, kind)
    return plain


def to_request(wire: Any, lease: Lease, limits: TensorLimits) -> tuple[Request, dict[str, Wanted]]:
    """A ModelInferRequest as the data plane wants it, and how its outputs are to be given.

    Raises:
        ServeError: INVALID or UNSUPPORTED, what is wrong with it.
    """
    check_name(wire.model_name)
    check_version(wire.model_version)
    parameters = plain_parameters(wire.parameters) if wire.parameters else {}
    priority = whole(parameters.pop("priority", 0), "priority")
    timeout = whole(parameters.pop("timeout", 0), "timeout")
    _check_reserved(parameters)
    wanted = _wanted(wire.outputs, limits, lease)
    request = Request(
        wire.model_name,
        wire.model_version,
        _inputs(wire, lease, limits),
        outputs=tuple(wanted),
        id=wire.id,
        priority=priority,
        timeout=timeout / 1e6,
        parameters=parameters,
    )
    return request, wanted


def _check_reserved(parameters: dict[str, Any]) -> None:
    if parameters.get("sequence_id"):
        raise ServeError(Status.UNSUPPORTED, "sequence_id: models that keep state are not served")
    for key in (*_SEQUENCE, _EMPTY_FINAL):
        parameters.pop(key, None)
    for key in parameters:
        if key.startswith("triton_"):
            raise ServeError(Status.INVALID, f"parameter {_short(key)}: 'triton_' is reserved")


def _wanted(outputs: Any, limits: TensorLimits, lease: Lease) -> dict[str, Wanted]:
    if len(outputs) > limits.tensors:
        raise ServeError(Status.INVALID, f"more than {limits.tensors} outputs are asked for")
    found: dict[str, Wanted] = {}
    for output in outputs:
        if output.name in found:
            raise ServeError(Status.INVALID, f"output {_short(output.name)} is asked for twice")
        said = plain_parameters(output.parameters) if output.parameters else {}
        classes = whole(said.get("classification", 0), "classification")
        region, offset, size = place(said) or ("", 0, 0)
        if region and classes:
            raise ServeError(
                Status.INVALID,
                f"output {_short(output.name)}: classification cannot go into shared memory",
            )
        if region:
            lease.hold(region, offset, size)
        found[output.name] = Wanted(region, offset, size, classes)
    return found


def _inputs(wire: Any, lease: Lease, limits: TensorLimits) -> dict[str, np.ndarray]:
    if len(wire.inputs) > limits.tensors:
        raise ServeError(Status.INVALID, f"more than {limits.tensors} inputs")
    raw = wire.raw_input_contents
    found: dict[str, np.ndarray] = {}
    at = 0
    for tensor in wire.inputs:
        name, shape = tensor.name, tuple(tensor.shape)
        if not name or name in found:
            raise ServeError(Status.INVALID, f"input {_short(name)} has no name or comes twice")
        if len(shape) > limits.rank:
            raise ServeError(
                Status.INVALID, f"input {_short(name)} has more than {limits.rank} axes"
            )
        count = dtypes.count_elements(shape, limits.elements, name[:100])
        where = place(plain_parameters(tensor.parameters)) if tensor.parameters else None
        if where is not None:
            data: bytes | bytearray = lease.read(*where)
        elif raw:
            if at == len(raw) or tensor.HasField("contents"):
                raise _wrong_raw(wire.inputs, raw)
            data = raw[at]
            at += 1
        else:
            found[name] = _typed(tensor, shape, count)
            continue
        found[name] = dtypes.from_bytes(memoryview(data), tensor.datatype, shape, count, name[:100])
    if at != len(raw):
        raise _wrong_raw(wire.inputs, raw)
    return found


def _wrong_raw(inputs: Any, raw: Any) -> ServeError:
    return ServeError(
        Status.INVALID,
        f"got {len(raw)} raw_input_contents for {len(inputs)} inputs: one for each input that is "
        "not in shared memory, and then no input has 'contents'",
    )


def _typed(tensor: Any, shape: tuple[int, ...], count: int) -> np.ndarray:
    """A tensor of InferTensorContents."""
    dtype = dtypes.to_numpy_dtype(tensor.datatype)
    field = _CONTENTS.get(tensor.datatype)
    name = _short(tensor.name)
    if field is None:
        raise ServeError(
            Status.INVALID, f"input {name}: {tensor.datatype} has no typed contents, send it raw"
        )
    others = [known.name for known, _ in tensor.contents.ListFields() if known.name != field]
    values = getattr(tensor.contents, field)
    if others or len(values) != count:
        raise ServeError(
            Status.INVALID,
            f"input {name}: got {len(values)} values in {field}"
            f"{' and others in ' + others[0] if others else ''}, expected {count} for shape "
            f"{list(shape)}",
        )
    if dtype == dtypes.BYTES:
        array = np.empty(count, dtype=object)
        array[:] = list(values)
        return array.reshape(shape)
    wide = np.fromiter(values, dtype=_wide(dtype), count=count)
    if wide.dtype != dtype:
        limit = np.iinfo(dtype)
        if count and (wide.min() < limit.min or wide.max() > limit.max):
            raise ServeError(Status.INVALID, f"input {name}: a value is outside {tensor.datatype}")
        wide = wide.astype(dtype)
    return wide.reshape(shape)


def _wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """What the wire has for an integer that is narrower than 32 bits."""
    if dtype.kind in "iu" and dtype.itemsize < 4:
        return np.dtype(np.int32 if dtype.kind == "i" else np.uint32)
    return dtype


def from_response(
    response: Response, wanted: dict[str, Wanted], lease: Lease, batched: bool = False
) -> Any:
    """The ModelInferResponse: one raw content for each output, empty where shared memory has it.

    batched: the first axis of outputs is the batch, for classification.

    Raises:
        ServeError: INVALID, an output does not fit its place in shared memory.
    """
    wire = ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.id
    )
    for key, value in response.parameters.items():
        put_parameter(wire.parameters, key, value)
    raw = wire.raw_output_contents
    for name, found in response.outputs.items():
        how = wanted.get(name)
        array = classify(found, how.classes, batched) if how and how.classes else found
        output = wire.outputs.add(
            name=name, datatype=dtypes.to_datatype(array.dtype), shape=array.shape
        )
        if how is None or not how.region:
            is_bytes = array.dtype == dtypes.BYTES
            raw.append(dtypes.pack_bytes(array) if is_bytes else array.tobytes())
            continue
        data = dtypes.to_bytes(array)
        lease.write_output(name, (how.region, how.offset, how.byte_size), data)
        raw.append(b"")
        output.parameters["shared_memory_region"].string_param = how.region
        output.parameters["shared_memory_byte_size"].int64_param = len(data)
        if how.offset:
            output.parameters["shared_memory_offset"].int64_param = how.offset
    return wire


def put_parameter(into: Any, key: str, value: Any) -> None:
    """Set an InferParameter by the type of its value."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    kind = kinds.get(type(value))
    if kind is None:
        raise TypeError(f"parameter {key} is a {type(value).__name__}")
    setattr(into[key], kind, value)


def _short(name: str) -> str:
    return repr(name[:100])
