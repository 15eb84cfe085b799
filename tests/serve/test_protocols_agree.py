"""The same tensors over binary REST, JSON, raw gRPC and typed gRPC: the same bits come back."""

import asyncio
import json
import threading
import urllib.error
import urllib.request
import uuid

import grpc
import numpy as np
import pytest
from grpc_models import ONNX, identity, simple
from test_grpc_tensors import NAMES, TYPED, sample, wire

from redline.serve import dtypes
from redline.serve.extension import Grpc
from redline.serve.server import Server
from redline.serve.settings import Settings
from redline.serve.shared_memory import SharedMemory

grpcclient = pytest.importorskip("tritonclient.grpc")
pb = grpcclient.service_pb2


class Both:
    """A whole server in a thread of its own."""

    def __init__(self, settings, grpc_side):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.server = Server(settings, [grpc_side])
        self.call(self.server.start())
        self.http = f"http://127.0.0.1:{self.server.http_port}"
        self.grpc = f"127.0.0.1:{grpc_side.front.port}"

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def close(self):
        self.call(self.server.stop(2))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()

    def post(self, path, body, headers=None):
        request = urllib.request.Request(self.http + path, body, headers or {}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    simple(root)
    for datatype in NAMES:
        identity(root, f"any_{datatype}", datatype, ["a", "b"])
        identity(root, f"scalar_{datatype}", datatype, [])
    running = Both(
        Settings(models=root, threads=1, grpc_port=0, http_port=0, mode="explicit", load=("*",)),
        Grpc(control=True),
    )
    yield running
    running.close()


@pytest.fixture(scope="module")
def stub(both):
    with grpc.insecure_channel(both.grpc) as channel:
        yield grpcclient.service_pb2_grpc.GRPCInferenceServiceStub(channel)


def over_binary(both, model, array, datatype):
    data = bytes(dtypes.to_bytes(array))
    tensor = {
        "name": "x", "datatype": datatype, "shape": list(array.shape),
        "parameters": {"binary_data_size": len(data)},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    status, headers, body = both.post(
        f"/v2/models/{model}/infer", head + data,
        {"Inference-Header-Content-Length": str(len(head))},
    )  # fmt: skip
    assert status == 200, body
    size = int({k.lower(): v for k, v in headers.items()}["inference-header-content-length"])
    output = json.loads(body[:size])["outputs"][0]
    assert (output["datatype"], output["shape"]) == (datatype, list(array.shape))
    return body[size:]


def over_json(both, model, array, datatype):
    """None where JSON has no such values."""
    if array.dtype == dtypes.BYTES:
        values = [value.decode() for value in array.ravel()]
    else:
        wide = array.astype(np.float32) if datatype in ("BF16", "FP16") else array
        if wide.dtype.kind == "f" and not np.isfinite(wide).all():
            return None
        values = wide.ravel().tolist()
    tensor = {"name": "x", "datatype": datatype, "shape": list(array.shape), "data": values}
    status, _, body = both.post(
        f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode()
    )
    assert status == 200, body
    output = json.loads(body)["outputs"][0]
    assert (output["datatype"], output["shape"]) == (datatype, list(array.shape))
    found = np.empty(array.size, array.dtype)
    found[:] = [v.encode() for v in output["data"]] if datatype == "BYTES" else output["data"]
    return bytes(dtypes.to_bytes(found))


@pytest.mark.parametrize("finite", [False, True], ids=["special", "finite"])
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (2, 0), ()], ids=str)
@pytest.mark.parametrize("datatype", NAMES)
def test_all_four_give_the_same_bits(both, stub, datatype, shape, finite):
    array = sample(datatype, shape)
    if datatype == "BYTES":
        array = np.full(shape, b"text \xc3\xbc").astype(object)
    elif finite and array.dtype.kind in "fV":
        array = (np.arange(array.size) / 7 - 0.3).astype(array.dtype).reshape(shape)
    expected = bytes(dtypes.to_bytes(array))
    model = f"{'any' if shape else 'scalar'}_{datatype}"
    assert over_binary(both, model, array, datatype) == expected
    assert over_json(both, model, array, datatype) in (None, expected)
    for typed in (False, True) if datatype in TYPED else (False,):
        request = wire(array, datatype, typed)
        request.model_name = model
        assert stub.ModelInfer(request).raw_output_contents[0] == expected


def test_every_datatype_of_the_protocol_is_covered():
    assert set(NAMES) == set(ONNX)


def test_classification_is_told_alike(both, stub):
    scores = np.array([[0.25, 0.5], [3, -1]], np.float32)
    request = wire(scores, "FP32", typed=False)
    request.model_name = "any_FP32"
    request.outputs.add(name="y").parameters["classification"].int64_param = 3
    from_grpc = grpcclient.InferResult(stub.ModelInfer(request)).as_numpy("y")
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": scores.ravel().tolist()}
    wanted = [{"name": "y", "parameters": {"classification": 3}}]
    body = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    _, _, answer = both.post("/v2/models/any_FP32/infer", body)
    output = json.loads(answer)["outputs"][0]
    assert output["shape"] == list(from_grpc.shape)
    assert output["data"] == [value.decode() for value in from_grpc.ravel()]


def test_errors_have_the_same_words(both, stub):
    for model, data, count in (("nobody", [1.0], 1), ("any_FP32", [1.0], 2)):
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, count], "data": data}
        status, _, body = both.post(
            f"/v2/models/{model}/infer", json.dumps({"inputs": [tensor]}).encode()
        )
        request = pb.ModelInferRequest(model_name=model)
        found = request.inputs.add(name="x", datatype="FP32", shape=[1, count])
        found.contents.fp32_contents.extend(data)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request)
        codes = {404: grpc.StatusCode.NOT_FOUND, 400: grpc.StatusCode.INVALID_ARGUMENT}
        assert codes[status] == caught.value.code()
        if model == "nobody":
            assert json.loads(body)["error"] == caught.value.details()


def test_the_http_client_and_metadata_agree(both):
    httpclient = pytest.importorskip("tritonclient.http")
    with (
        grpcclient.InferenceServerClient(both.grpc) as one,
        httpclient.InferenceServerClient(both.http.removeprefix("http://")) as other,
    ):
        config = one.get_model_config("simple", as_json=True)["config"]
        assert config["max_batch_size"] == other.get_model_config("simple")["max_batch_size"] == 8
        ours = [found["name"] for found in other.get_model_repository_index()]
        assert ours == [found.name for found in one.get_model_repository_index().models]


def test_shared_memory_over_rest(tmp_path_factory):
    httpclient = pytest.importorskip("tritonclient.http")
    shm = pytest.importorskip("tritonclient.utils.shared_memory")
    root = tmp_path_factory.mktemp("models")
    simple(root)
    settings = Settings(models=root, threads=1, grpc_port=0, http_port=0)
    running = Both(settings, Grpc(control=True, shared=SharedMemory(enabled=True)))
    key = f"/test_{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("all", key, 256)
    try:
        a = np.arange(16, dtype=np.int32).reshape(1, 16)
        shm.set_shared_memory_region(handle, [a, a * 2])
        with httpclient.InferenceServerClient(running.http.removeprefix("http://")) as client:
            client.register_system_shared_memory("all", key, 256)
            assert client.get_system_shared_memory_status()[0]["byte_size"] == 256
            inputs = [httpclient.InferInput(f"INPUT{n}", [1, 16], "INT32") for n in (0, 1)]
            for n, one in enumerate(inputs):
                one.set_shared_memory("all", 64, 64 * n)
            out = httpclient.InferRequestedOutput("OUTPUT0")
            out.set_shared_memory("all", 64, 128)
            found = client.infer("simple", inputs, outputs=[out])
            # Triton's C++ client takes them for those of binary data.
            assert "parameters" not in found.get_output("OUTPUT0")
            got = shm.get_contents_as_numpy(handle, np.int32, [1, 16], 128)
            np.testing.assert_array_equal(got, a * 3)
            out.set_shared_memory("all", 32, 128)
            with pytest.raises(httpclient.InferenceServerException, match="at least 64 bytes"):
                client.infer("simple", inputs, outputs=[out])
            out.set_shared_memory("all", 64, 250)
            with pytest.raises(httpclient.InferenceServerException, match="Invalid offset"):
                client.infer("simple", inputs, outputs=[out])
            client.unregister_system_shared_memory("all")
            assert client.get_system_shared_memory_status() == []
    finally:
        running.close()
        shm.destroy_shared_memory_region(handle)
