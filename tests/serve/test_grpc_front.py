"""The gRPC front, through the client that people use."""

import asyncio
import queue
import threading
import time

import grpc
import numpy as np
import pytest
from grpc_fakes import CONFIG, METADATA, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from redline.serve.messages import ServeError, Status
from redline.serve.proto import SERVICE

grpcclient = pytest.importorskip("tritonclient.grpc")
pb = grpcclient.service_pb2
Error = grpcclient.InferenceServerException


@pytest.fixture(scope="module")
def server():
    with serving(control=True) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with grpcclient.InferenceServerClient(server.url) as found:
        yield found


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.url) as channel:
        yield grpcclient.service_pb2_grpc.GRPCInferenceServiceStub(channel)


def tensor(name, array, datatype=None):
    from tritonclient.utils import np_to_triton_dtype

    found = grpcclient.InferInput(
        name, list(array.shape), datatype or np_to_triton_dtype(array.dtype)
    )
    found.set_data_from_numpy(array)
    return found


X = np.arange(4, dtype=np.float32).reshape(1, 4)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_health_and_metadata(server, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("echo")
    assert not client.is_model_ready("echo", "7")
    assert client.get_server_metadata().name == "redline"
    told = client.get_model_metadata("echo", as_json=True)
    assert told["inputs"][0]["shape"] == ["-1", "4"]
    assert {key: told[key] for key in ("name", "versions", "platform")} == {
        key: METADATA[key] for key in ("name", "versions", "platform")
    }
    config = client.get_model_config("echo").config
    assert config.max_batch_size == CONFIG["max_batch_size"]
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    stats = client.get_inference_statistics("echo").model_stats
    assert stats[0].inference_stats.success.ns == 3000


def test_an_unknown_model(client):
    with pytest.raises(Error, match="Request for unknown model") as caught:
        client.infer("nobody", [tensor("x", X)])
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_sync_async_and_asyncio_clients_get_the_same(server, client):
    a, b = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)
    inputs = [tensor("INPUT0", a), tensor("INPUT1", b)]
    found = client.infer("add_sub", inputs, request_id="7")
    assert found.get_response().id == "7"
    got = queue.Queue()
    client.async_infer("add_sub", inputs, lambda result, error: got.put((result, error)))
    later, error = got.get(timeout=60)
    assert error is None

    async def aio():
        import tritonclient.grpc.aio as aioclient

        async with aioclient.InferenceServerClient(server.url) as other:
            return await other.infer("add_sub", inputs, compression_algorithm="gzip")

    for result in (found, later, asyncio.run(aio())):
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), a + b)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), a - b)


def test_only_the_outputs_that_are_asked_for(client):
    wanted = [grpcclient.InferRequestedOutput("b")]
    found = client.infer("echo", [tensor("a", X), tensor("b", X + 1)], outputs=wanted)
    assert [output.name for output in found.get_response().outputs] == ["b"]
    np.testing.assert_array_equal(found.as_numpy("b"), X + 1)


def test_classification(client):
    wanted = [grpcclient.InferRequestedOutput("x", class_count=2)]
    found = client.infer("echo", [tensor("x", X)], outputs=wanted).as_numpy("x")
    assert found.tolist() == [[b"3.000000:3", b"2.000000:2"]]


def test_timeout_priority_and_deadline_reach_the_plane(server, client):
    client.infer("echo", [tensor("x", X)], timeout=2_000_000, priority=3)
    assert (server.plane.seen[-1].timeout, server.plane.seen[-1].priority) == (2.0, 3)
    client.infer("echo", [tensor("x", X)], timeout=9_000_000_000, client_timeout=60.0)
    assert 0 < server.plane.seen[-1].timeout < 61  # the deadline of the call is shorter
    client.infer("echo", [tensor("x", X)], headers={"traceparent": "00-ab-cd-01"})
    assert server.plane.seen[-1].traceparent == "00-ab-cd-01"


def test_a_cancelled_call_cancels_its_task(server, client):
    before, seen = server.plane.cancelled, len(server.plane.seen)
    call = client.async_infer("slow", [tensor("x", X)], lambda result, error: None)
    wait_for(lambda: len(server.plane.seen) > seen)
    call.cancel()
    wait_for(lambda: server.plane.cancelled == before + 1)


def test_a_deadline_cancels_its_task(server, client):
    before = server.plane.cancelled
    with pytest.raises(Error, match="Deadline Exceeded"):
        client.infer("slow", [tensor("x", X)], client_timeout=0.2)
    wait_for(lambda: server.plane.cancelled == before + 1)


def test_what_is_unexpected_tells_nothing(client, caplog):
    with pytest.raises(Error) as caught:
        client.infer("broken", [tensor("x", X)])
    assert caught.value.message() == "internal error"
    assert "ZeroDivisionError" in caplog.text


def test_a_stream_keeps_order_and_survives_errors(client):
    got = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    for number in range(20):
        name = "nobody" if number == 7 else "echo"
        client.async_stream_infer(name, [tensor("x", X + number)], request_id=str(number))
    for number in range(20):
        result, error = got.get(timeout=60)
        if number == 7:
            assert "unknown model" in error.message()
            continue
        response = result.get_response()
        assert response.id == str(number)
        assert response.parameters["triton_final_response"].bool_param
        np.testing.assert_array_equal(result.as_numpy("x"), X + number)
    client.stop_stream()


def test_a_stream_of_the_asyncio_client(server):
    import tritonclient.grpc.aio as aioclient

    async def go():
        async def requests():
            for number in range(5):
                yield {
                    "model_name": "echo", "inputs": [tensor("x", X * number)],
                    "request_id": str(number),
                }  # fmt: skip

        found = []
        async with aioclient.InferenceServerClient(server.url) as client:
            async for result, error in client.stream_infer(requests()):
                assert error is None
                found.append((result.get_response().id, result.as_numpy("x").sum()))
        return found

    assert asyncio.run(go()) == [(str(number), X.sum() * number) for number in range(5)]


def test_a_slow_stream_does_not_read_ahead_without_end(server, client):
    seen = len(server.plane.seen)
    client.start_stream(lambda result, error: None)
    for _ in range(100):
        client.async_stream_infer("slow", [tensor("x", X)])
    wait_for(lambda: len(server.plane.seen) == seen + 32)
    time.sleep(0.1)
    assert len(server.plane.seen) == seen + 32  # GrpcOptions.stream_requests
    before = server.plane.cancelled
    client.stop_stream(cancel_requests=True)
    wait_for(lambda: server.plane.cancelled == before + 32)


def test_a_cancelled_stream_frees_its_requests(server, client):
    before, seen = server.plane.cancelled, len(server.plane.seen)
    client.start_stream(lambda result, error: None)
    for _ in range(5):
        client.async_stream_infer("slow", [tensor("x", X)])
    wait_for(lambda: len(server.plane.seen) == seen + 5)
    client.stop_stream(cancel_requests=True)
    wait_for(lambda: server.plane.cancelled == before + 5)


def test_a_stream_that_wants_grpc_errors_ends_with_one(client):
    got = queue.Queue()
    client.start_stream(lambda result, error: got.put(error), headers={"triton_grpc_error": "true"})
    client.async_stream_infer("nobody", [tensor("x", X)])
    assert got.get(timeout=60).status() == "StatusCode.NOT_FOUND"
    client.stop_stream()


def test_the_repository(server, client):
    assert [model.name for model in client.get_model_repository_index().models] == ["echo", "bad"]
    client.load_model("echo", config='{"max_batch_size": "16"}', files={"file:1/model.onnx": b"x"})
    client.unload_model("echo", unload_dependents=True)
    assert server.plane.loaded == [
        ("load", "echo", '{"max_batch_size": "16"}', {"file:1/model.onnx": b"x"}),
        ("unload", "echo", True),
    ]
    with pytest.raises(Error, match="failed to load"):
        client.load_model("bad")


BAD_NAMES = [
    "", " ", "..", "../etc", "a/../b", "/etc/passwd", "model/", " ..", "a\\b", "a\nb", ".hidden",
    "a..b", "x" * 300, "é",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_is_a_path(stub, name):
    for call, request in [
        (stub.ModelInfer, pb.ModelInferRequest(model_name=name)),
        (stub.ModelReady, pb.ModelReadyRequest(name=name)),
        (stub.ModelMetadata, pb.ModelMetadataRequest(name=name)),
        (stub.ModelConfig, pb.ModelConfigRequest(name=name)),
        (stub.ModelStatistics, pb.ModelStatisticsRequest(name=name or "/")),
        (stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name=name)),
        (stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name=name)),
        (stub.ModelReady, pb.ModelReadyRequest(name="echo", version="../1")),
    ]:
        with pytest.raises(grpc.RpcError) as caught:
            call(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert len(caught.value.details()) < 200


def test_cuda_is_refused_and_settings_are_not_there(client):
    with pytest.raises(Error, match="CUDA") as caught:
        client.register_cuda_shared_memory("a", b"x" * 64, 0, 64)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
    client.unregister_cuda_shared_memory()  # examples begin with it
    for call in (client.get_log_settings, client.get_trace_settings):
        with pytest.raises(Error) as caught:
            call()
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_standard_health_and_reflection(server):
    with grpc.insecure_channel(server.url) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        check = lambda name: health.Check(health_pb2.HealthCheckRequest(service=name)).status  # noqa: E731
        assert check("") == check(SERVICE) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check("nothing")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.plane.is_ready = False
        try:
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        finally:
            server.plane.is_ready = True
            watch.cancel()
        known = ProtoReflectionDescriptorDatabase(channel)
        assert SERVICE in known.get_services()
        file = known.FindFileContainingSymbol("inference.ModelInferRequest")
        assert "ModelInferRequest" in [message.name for message in file.message_type]


class Settings:
    def __init__(self):
        self.told = {"log_verbose_level": 0, "log_info": True, "log_format": "default"}

    def trace(self, model, changes):
        return {"trace_level": ["OFF"], **changes}

    def log(self, changes):
        self.told.update(changes)
        return self.told


def test_settings():
    with (
        serving(control=True, settings=Settings()) as running,
        grpcclient.InferenceServerClient(running.url) as client,
    ):
        found = client.update_log_settings({"log_verbose_level": 2}, as_json=True)["settings"]
        assert found["log_verbose_level"] == {"uint32_param": 2}
        trace = client.update_trace_settings(settings={"trace_rate": ["5"]}).settings
        assert list(trace["trace_rate"].value) == ["5"]


def test_control_is_off_by_default():
    with serving() as running, grpcclient.InferenceServerClient(running.url) as client:
        for call in (
            lambda: client.load_model("echo"),
            lambda: client.unload_model("echo"),
            client.get_log_settings,
            client.get_trace_settings,
            client.get_system_shared_memory_status,
        ):
            with pytest.raises(Error) as caught:
                call()
            assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        assert client.is_server_live()


def test_authorize_sees_every_method_first():
    asked = []

    def authorize(method, metadata):
        asked.append(method)
        if dict(metadata).get("x-api-key") != "right":
            raise ServeError(Status.UNAUTHENTICATED, "a key is needed")

    from redline.serve import proto

    with serving(authorize=authorize) as running, grpc.insecure_channel(running.url) as channel:
        methods = [f"/{SERVICE}/{name}" for name in proto.METHODS]
        methods += ["/grpc.health.v1.Health/Check", "/no.such/Thing"]
        methods += ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
        for method in methods:
            with pytest.raises(grpc.RpcError) as caught:
                next(channel.stream_stream(method)(iter([b""]), timeout=30))
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED, method
        assert set(asked) == set(methods)
        with grpcclient.InferenceServerClient(running.url) as client:
            assert client.is_server_live(headers={"x-api-key": "right"})


def test_messages_are_limited_also_after_decompression():
    with (
        serving(max_message=1 << 20) as running,
        grpcclient.InferenceServerClient(running.url) as client,
    ):
        big = np.zeros((1, 1 << 20), np.float32)
        for how in (None, "gzip"):
            with pytest.raises(Error) as caught:
                client.infer("echo", [tensor("x", big)], compression_algorithm=how)
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
            assert client.is_server_live()


def test_running_calls_are_answered_when_it_stops():
    with serving() as running, grpcclient.InferenceServerClient(running.url) as client:
        got = queue.Queue()
        client.async_infer("slow", [tensor("x", X)], lambda result, error: got.put(result))
        wait_for(lambda: running.plane.seen)
        stopping = threading.Thread(target=lambda: running.call(running.front.stop(30)))
        stopping.start()
        time.sleep(0.2)
        running.open()
        np.testing.assert_array_equal(got.get(timeout=60).as_numpy("x"), X)
        stopping.join(60)
