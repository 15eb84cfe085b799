"""The gRPC front on the real data plane and real models, through the client that people use."""

import threading

import grpc
import numpy as np
import pytest
from google.protobuf import json_format
from grpc_fakes import serving
from grpc_models import identity, real_plane, simple
from test_grpc_tensors import NAMES, TYPED, sample, wire

from redline.serve import dtypes
from redline.serve.proto import message

grpcclient = pytest.importorskip("tritonclient.grpc")
pb = grpcclient.service_pb2
Error = grpcclient.InferenceServerException
A = np.arange(16, dtype=np.int32).reshape(1, 16)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    simple(root)
    for datatype in NAMES:
        identity(root, f"any_{datatype}", datatype, ["a", "b"])
        identity(root, f"scalar_{datatype}", datatype, [])
    with serving(real_plane(root, mode="explicit", load=("*",)), control=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with grpcclient.InferenceServerClient(server.url) as found:
        yield found


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.url) as channel:
        yield grpcclient.service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(name, array):
    found = grpcclient.InferInput(name, list(array.shape), "INT32")
    found.set_data_from_numpy(array)
    return found


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (2, 0), ()], ids=str)
@pytest.mark.parametrize("datatype", NAMES)
def test_raw_and_typed_come_back_bit_for_bit(stub, datatype, shape):
    array = sample(datatype, shape)
    if datatype == "BYTES" and array.size:
        array = np.full(shape, b"text")  # ONNX's strings are texts without zeros
        array = array.astype(object)
    for typed in (False, True) if datatype in TYPED else (False,):
        request = wire(array, datatype, typed)
        request.model_name = f"{'any' if shape else 'scalar'}_{datatype}"
        answer = stub.ModelInfer(request)
        assert (answer.outputs[0].datatype, tuple(answer.outputs[0].shape)) == (datatype, shape)
        assert answer.raw_output_contents[0] == bytes(dtypes.to_bytes(array)), typed


def test_concurrent_clients_get_their_own_answers(server):
    wrong = []

    def work(number):
        with grpcclient.InferenceServerClient(server.url) as client:
            for step in range(20):
                value = A + number * 1000 + step
                found = client.infer("simple", [tensor("INPUT0", value), tensor("INPUT1", A)])
                if not np.array_equal(found.as_numpy("OUTPUT1"), value - A):
                    wrong.append((number, step))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_config_statistics_and_metadata_are_all_told(server, client):
    """No field of the plane's JSON may be missing in the messages."""
    client.infer("simple", [tensor("INPUT0", A), tensor("INPUT1", A)])
    plane = server.plane
    for kind, told in [
        ("ServerMetadataResponse", plane.server_metadata()),
        ("ModelMetadataResponse", plane.metadata("simple")),
        ("ModelConfigResponse", {"config": plane.config("simple")}),
        ("ModelStatisticsResponse", plane.statistics("simple")),
        ("RepositoryIndexResponse", {"models": plane.index()}),
    ]:
        json_format.ParseDict(told, message(kind)())  # raises for an unknown field
    assert client.get_model_config("simple").config.max_batch_size == 8
    stats = client.get_inference_statistics("simple").model_stats[0]
    assert stats.inference_stats.success.count >= 1
    assert len(client.get_model_repository_index().models) == 1 + 2 * len(NAMES)
    inputs = client.get_model_metadata("simple").inputs
    assert [(found.name, found.datatype, list(found.shape)) for found in inputs] == [
        ("INPUT0", "INT32", [-1, 16]), ("INPUT1", "INT32", [-1, 16]),
    ]  # fmt: skip


def test_wrong_requests(client):
    for inputs, words in [
        ([tensor("INPUT0", A)], "INPUT1"),
        ([tensor("INPUT0", A), tensor("INPUT1", A), tensor("INPUT2", A)], "INPUT2"),
        ([tensor("INPUT0", A), tensor("INPUT1", A[:, :3])], "INPUT1"),
        ([tensor("INPUT0", A.repeat(9, 0)), tensor("INPUT1", A.repeat(9, 0))], "8"),
    ]:
        with pytest.raises(Error, match=words) as caught:
            client.infer("simple", inputs)
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    wanted = [grpcclient.InferRequestedOutput("NONE")]
    with pytest.raises(Error, match="NONE"):
        client.infer("simple", [tensor("INPUT0", A), tensor("INPUT1", A)], outputs=wanted)


def test_unload_and_load(client):
    client.unload_model("simple")
    assert not client.is_model_ready("simple")
    with pytest.raises(Error, match="Request for unknown model"):
        client.infer("simple", [tensor("INPUT0", A), tensor("INPUT1", A)])
    client.load_model("simple", config='{"max_batch_size":"4"}')
    assert client.get_model_config("simple").config.max_batch_size == 4
    client.load_model("simple")
    assert client.get_model_config("simple").config.max_batch_size == 8
    with pytest.raises(Error, match="failed to load"):
        client.load_model("nobody")
