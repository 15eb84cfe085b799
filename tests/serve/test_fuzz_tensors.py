"""Random and damaged bytes for the tensor parsers: an array that is right, or a ServeError."""

import json
import random
import time

import numpy as np
import pytest
from fuzzing import fuzz_seconds
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.serve import dtypes
from redline.serve.grpc_tensors import TensorLimits, to_request
from redline.serve.messages import ServeError
from redline.serve.opening import Tensor
from redline.serve.proto import message
from redline.serve.rest_tensors import parse_request
from redline.serve.settings import Limits
from redline.serve.shared_memory import SharedMemory

NAMES = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "FP32", "FP64", "BF16", "BYTES",
]  # fmt: skip
LIMITS = TensorLimits(tensors=16, elements=1 << 16, rank=8)
REST = Limits(elements=1 << 16, json_elements=1 << 12, rank=8, tensors=16)
Wire = message("ModelInferRequest")


def parse(data, datatype, shape):
    """Parse, and hold the result against the bytes; whether it was taken."""
    try:
        count = dtypes.count_elements(shape, LIMITS.elements, "x")
        array = dtypes.from_bytes(memoryview(data), datatype, shape, count, "x")
    except ServeError:
        return False
    assert array.shape == shape
    assert dtypes.to_datatype(array.dtype) == datatype
    back = bytes(dtypes.to_bytes(array))
    assert back == (bytes(map(bool, data)) if datatype == "BOOL" else data)
    return True


def question(rng):
    """A request with a few random tensors, raw or typed, and parameters."""
    wire = Wire(model_name="m", id="1")
    for number in range(rng.randrange(1, 4)):
        datatype = rng.choice(NAMES)
        dtype = dtypes.to_numpy_dtype(datatype)
        shape = tuple(rng.randrange(4) for _ in range(rng.randrange(4)))
        array = np.full(shape, b"ab" if datatype == "BYTES" else 1, dtype)
        wire.inputs.add(name=f"x{number}", datatype=datatype, shape=shape)
        wire.raw_input_contents.append(bytes(dtypes.to_bytes(array)))
    wire.parameters["timeout"].int64_param = rng.randrange(100)
    wire.outputs.add(name="y").parameters["classification"].int64_param = rng.randrange(3)
    return wire.SerializeToString()


def damage(data, rng):
    """Flip, cut, repeat or insert a few bytes."""
    data = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(4)
        if how == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            del data[at : at + rng.randrange(8)]
        elif how == 2:
            data[at:at] = data[at : at + rng.randrange(16)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(4))
    return bytes(data)


def ask(data):
    """What becomes of a request's bytes: "garbled", "refused" or "taken"."""
    try:
        wire = Wire.FromString(data)
    except DecodeError:
        return "garbled"
    with SharedMemory(enabled=True).lease() as lease:
        try:
            request, _ = to_request(wire, lease, LIMITS)
        except ServeError:
            return "refused"
    assert len(request.inputs) == len(wire.inputs)
    for tensor in wire.inputs:
        assert request.inputs[tensor.name].shape == tuple(tensor.shape)
    return "taken"


def body_of(rng):
    """A request's body by the binary extension, and the length of its JSON."""
    specs, data = [], b""
    for number in range(rng.randrange(1, 4)):
        datatype = rng.choice(NAMES)
        shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
        array = np.full(shape, b"ab" if datatype == "BYTES" else 1, dtypes.to_numpy_dtype(datatype))
        packed = bytes(dtypes.to_bytes(array))
        spec = {"name": f"x{number}", "datatype": datatype, "shape": shape}
        specs.append(spec | {"parameters": {"binary_data_size": len(packed)}})
        data += packed
    outputs = [{"name": "y", "parameters": {"binary_data": True}}]
    text = json.dumps({"id": "1", "inputs": specs, "outputs": outputs}).encode()
    return text, data


def damaged_body(rng):
    """(body, what its header says of the JSON's length), one of them wrong or both."""
    text, data = body_of(rng)
    text = damage(text, rng) if rng.random() < 0.5 else text
    data = damage(data, rng) if rng.random() < 0.5 else data
    said = b"%d" % len(text)
    if rng.random() < 0.2:
        said = rng.choice([b"", b"-1", b"x", b"0", b"%d" % rng.randrange(400), b"9" * 30])
    return text + data, said


def ask_rest(body, said):
    """What becomes of a request's bytes over HTTP: "refused" or "taken"."""
    only = Tensor("x0", np.dtype(np.float32), "FP32", (-1, 4))
    try:
        request, _ = parse_request("m", "", body, said, REST, only)
    except ServeError as error:
        return "refused" if error.what else "refused without a reason"
    for array in request.inputs.values():
        assert array.size <= REST.elements
    return "taken"


def test_damaged_bodies():
    rng = random.Random(0)
    whole = body_of(rng)
    assert ask_rest(b"".join(whole), b"%d" % len(whole[0])) == "taken"
    assert {ask_rest(*damaged_body(rng)) for _ in range(1500)} == {"refused", "taken"}


def test_an_empty_tensor_that_no_array_can_have_is_refused():
    assert not parse(b"", "FP32", (0, 1 << 62, 1 << 62))
    assert parse(b"", "FP32", (0, 1 << 10))


SHAPES = st.lists(st.integers(-2, 1 << 63), max_size=6) | st.lists(st.integers(0, 6), max_size=4)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from(NAMES), SHAPES.map(tuple))
def test_random_bytes(data, datatype, shape):
    parse(data, datatype, shape)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=20), max_size=8))
def test_what_is_written_is_read_back(values):
    array = np.empty(len(values), object)
    array[:] = values
    assert parse(dtypes.pack_bytes(array), "BYTES", (len(values),))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4), st.data())
def test_damaged_strings(values, data):
    array = np.empty(len(values), object)
    array[:] = values
    packed = bytearray(dtypes.pack_bytes(array))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    parse(bytes(packed), "BYTES", (len(values),))


def test_damaged_messages():
    rng = random.Random(0)
    found = {ask(damage(question(rng), rng)) for _ in range(1500)}
    assert found == {"garbled", "refused", "taken"}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_fuzz_the_parsers_for_ten_minutes():
    seed = time.time_ns()
    print(f"seed {seed}")  # shown when it fails
    seconds = fuzz_seconds()
    rng, end, rounds = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < end:
        ask(damage(question(rng), rng))
        assert ask_rest(*damaged_body(rng)) in ("refused", "taken")
        shape = tuple(rng.choice([0, 1, 2, 3, -1, 1 << 40]) for _ in range(rng.randrange(4)))
        parse(rng.randbytes(rng.randrange(64)), rng.choice(NAMES), shape)
        rounds += 1
    assert rounds > 16 * seconds
