"""Every datatype, raw and typed, bit for bit; and what is refused."""

import grpc
import ml_dtypes
import numpy as np
import pytest
from grpc_fakes import SPECIAL, serving

from redline.serve import dtypes

grpcclient = pytest.importorskip("tritonclient.grpc")
pb = grpcclient.service_pb2

TYPED = {
    "BOOL": "bool", "INT8": "int", "INT16": "int", "INT32": "int", "INT64": "int64",
    "UINT8": "uint", "UINT16": "uint", "UINT32": "uint", "UINT64": "uint64",
    "FP32": "fp32", "FP64": "fp64", "BYTES": "bytes",
}  # fmt: skip
NAMES = [*TYPED, "FP16", "BF16"]


@pytest.fixture(scope="module")
def stub():
    with serving() as running, grpc.insecure_channel(running.url) as channel:
        yield grpcclient.service_pb2_grpc.GRPCInferenceServiceStub(channel)


def sample(datatype, shape):
    """Values at the ends of the type, NaN, infinities, denormals, and bytes that are no text."""
    dtype = dtypes.to_numpy_dtype(datatype)
    if datatype == "BYTES":
        values = [b"", b"\x00", b"\xff\xfe", b"text", b"a" * 300, b"\n"]
    elif datatype == "BOOL":
        values = [True, False, True, True, False, False]
    elif dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = [limits.min, limits.max, 0, 1, limits.max - 1, limits.min + 1]
    else:
        values = np.array(SPECIAL).astype(dtype)
    array = np.empty(6, dtype)
    array[:] = values
    count = int(np.prod(shape))
    return array[:count].reshape(shape)


def wire(array, datatype, typed):
    request = pb.ModelInferRequest(model_name="echo")
    found = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if typed:
        values = array.ravel().tolist()
        getattr(found.contents, f"{TYPED[datatype]}_contents").extend(values)
    else:
        request.raw_input_contents.append(bytes(dtypes.to_bytes(array)))
    return request


@pytest.mark.parametrize("shape", [(6,), (2, 3), (), (0,), (2, 0, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("datatype", NAMES)
def test_raw_and_typed_come_back_bit_for_bit(stub, datatype, shape):
    array = sample(datatype, shape)
    for typed in (False, True) if datatype in TYPED else (False,):
        answer = stub.ModelInfer(wire(array, datatype, typed))
        assert (answer.outputs[0].datatype, tuple(answer.outputs[0].shape)) == (datatype, shape)
        assert answer.raw_output_contents[0] == bytes(dtypes.to_bytes(array)), typed


def test_the_clients_own_bf16_and_strings(stub):
    import tritonclient.grpc as client

    given = client.InferInput("x", [2], "BF16")
    given.set_data_from_numpy(np.array([1.5, np.inf], ml_dtypes.bfloat16))
    request = pb.ModelInferRequest(model_name="echo", inputs=[given._get_tensor()])
    request.raw_input_contents.append(given._get_content())
    found = client.InferResult(stub.ModelInfer(request)).as_numpy("x")
    assert found.astype(np.float32).tolist() == [1.5, np.inf]
    text = np.array(["größe", "", "nul\0l"], dtype=object)
    given = client.InferInput("x", [3], "BYTES")
    given.set_data_from_numpy(text)
    request = pb.ModelInferRequest(model_name="echo", inputs=[given._get_tensor()])
    request.raw_input_contents.append(given._get_content())
    found = client.InferResult(stub.ModelInfer(request)).as_numpy("x")
    assert [value.decode() for value in found] == text.tolist()


def test_strides_do_not_matter():
    from redline.serve.grpc_tensors import from_response
    from redline.serve.messages import Response
    from redline.serve.shared_memory import SharedMemory

    array = np.arange(12, dtype=np.int32).reshape(3, 4).T
    with SharedMemory().lease() as lease:
        told = from_response(Response("m", "1", {"y": array}), {}, lease)
    assert told.raw_output_contents[0] == np.ascontiguousarray(array).tobytes()


def request(**changes):
    found = wire(np.zeros((1, 4), np.float32), "FP32", typed=False)
    for key, value in changes.items():
        setattr(found, key, value)
    return found


def short_raw(r):
    r.raw_input_contents[0] = b"123"


def no_raw(r):
    del r.raw_input_contents[:]


def extra_raw(r):
    r.raw_input_contents.append(b"")


def negative(r):
    r.inputs[0].shape[0] = -1


def overflow(r):
    r.inputs[0].shape[:] = [1 << 62, 1 << 62]


def overflow_of_bytes(r):
    r.inputs[0].shape[:] = [1 << 62]


def overflow_with_zero(r):
    r.inputs[0].shape[:] = [0, 1 << 62, 1 << 62]
    r.raw_input_contents[0] = b""


def unknown_type(r):
    r.inputs[0].datatype = "FP8"


def twice(r):
    r.inputs.add(name="x", datatype="FP32", shape=[1]).contents.fp32_contents.append(1)


def both(r):
    r.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])


def typed_half(r):
    no_raw(r)
    r.inputs[0].datatype = "FP16"
    r.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])


def typed_out_of_range(r):
    no_raw(r)
    r.inputs[0].datatype = "INT8"
    r.inputs[0].contents.int_contents.extend([1, 2, 3, 400])


def typed_in_the_wrong_field(r):
    no_raw(r)
    r.inputs[0].contents.fp64_contents.extend([1, 2, 3, 4])


def typed_in_two_fields(r):
    no_raw(r)
    r.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    r.inputs[0].contents.int_contents.extend([1])


def typed_too_few(r):
    no_raw(r)
    r.inputs[0].contents.fp32_contents.extend([1, 2, 3])


def output_twice(r):
    r.outputs.add(name="x")
    r.outputs.add(name="x")


def too_many_inputs(r):
    for number in range(2000):
        r.inputs.add(name=str(number))


def too_many_axes(r):
    r.inputs[0].shape[:] = [1] * 100


def reserved(r):
    r.parameters["triton_secret"].bool_param = True


def empty_parameter(r):
    r.parameters["mine"].SetInParent()


def negative_timeout(r):
    r.parameters["timeout"].int64_param = -1


def text_priority(r):
    r.parameters["priority"].string_param = "1"


def bytes_too_long(r):
    r.inputs[0].datatype = "BYTES"
    r.raw_input_contents[0] = b"\xff\xff\xff\xffabc" + bytes(9)


def shared(r):
    no_raw(r)
    r.inputs[0].parameters["shared_memory_region"].string_param = "a"


BROKEN = [
    short_raw, no_raw, extra_raw, negative, overflow, overflow_of_bytes, overflow_with_zero,
    unknown_type, twice, both, typed_half, typed_out_of_range, typed_in_the_wrong_field,
    typed_in_two_fields, typed_too_few, output_twice, too_many_inputs, too_many_axes, reserved,
    empty_parameter, negative_timeout, text_priority, bytes_too_long, shared,
]  # fmt: skip


@pytest.mark.parametrize("damage", BROKEN, ids=lambda f: f.__name__)
def test_what_is_wrong_is_one_clear_error(stub, damage):
    wrong = request()
    damage(wrong)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(wrong)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(caught.value.details()) > 15
    assert stub.ServerLive(pb.ServerLiveRequest()).live


def test_state_is_refused_and_parameters_of_ones_own_are_not(stub):
    wrong = request()
    wrong.parameters["sequence_id"].int64_param = 5
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(wrong)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    fine = request()
    fine.parameters["mine"].string_param = "yes"
    fine.parameters["triton_enable_empty_final_response"].bool_param = True
    assert stub.ModelInfer(fine).outputs[0].name == "x"


def test_an_id_and_a_version_come_back(stub):
    found = stub.ModelInfer(request(id="line\nbreak", model_version="1"))
    assert (found.id, found.model_version) == ("line\nbreak", "1")
