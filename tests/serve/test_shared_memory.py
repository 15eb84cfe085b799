"""Tensors in shared memory: the client's own regions, and everything that must be refused."""

import os
import queue
import uuid
from pathlib import Path

import numpy as np
import pytest
from grpc_fakes import serving
from test_grpc_front import wait_for

from redline.serve.messages import ServeError, Status
from redline.serve.shared_memory import SharedMemory, routes

if not Path("/dev/shm").is_dir():
    pytest.skip("this system keeps shared memory elsewhere", allow_module_level=True)

grpcclient = pytest.importorskip("tritonclient.grpc")
shm = pytest.importorskip("tritonclient.utils.shared_memory")
Error = grpcclient.InferenceServerException
A = np.arange(16, dtype=np.int32).reshape(1, 16)


@pytest.fixture
def key():
    found = f"/test_{uuid.uuid4().hex}"
    yield found
    Path(f"/dev/shm{found}").unlink(missing_ok=True)


@pytest.fixture
def region(key):
    handle = shm.create_shared_memory_region("in", key, 256)
    shm.set_shared_memory_region(handle, [A, A + 1])
    yield handle
    shm.destroy_shared_memory_region(handle)


@pytest.fixture
def shared(tmp_path):
    """Regions in a folder of the test's own; `object` there has 128 bytes."""
    found = SharedMemory(enabled=True, folder=tmp_path, max_regions=3)
    (tmp_path / "object").write_bytes(bytes(range(128)))
    yield found
    found.close()


@pytest.fixture(scope="module")
def server():
    with serving(shared=SharedMemory(enabled=True), control=True) as running:
        yield running


@pytest.fixture
def client(server):
    with grpcclient.InferenceServerClient(server.url) as found:
        yield found
        found.unregister_system_shared_memory()


def placed(name, size=64, offset=0, model_input="INPUT0"):
    found = grpcclient.InferInput(model_input, [1, 16], "INT32")
    found.set_shared_memory(name, size, offset)
    return found


def test_inputs_and_outputs_in_shared_memory(client, region, key):
    client.register_system_shared_memory("all", key, 256)
    assert "system_shared_memory" in client.get_server_metadata().extensions
    told = client.get_system_shared_memory_status(as_json=True)["regions"]["all"]
    assert (told["key"], told["byte_size"]) == (key, "256")
    raw = grpcclient.InferInput("INPUT1", [1, 16], "INT32")
    raw.set_data_from_numpy(A * 3)
    out = grpcclient.InferRequestedOutput("OUTPUT0")
    out.set_shared_memory("all", 64, 128)
    plain = grpcclient.InferRequestedOutput("OUTPUT1")
    found = client.infer("add_sub", [placed("all", 64, 64), raw], outputs=[out, plain])
    got = shm.get_contents_as_numpy(region, np.int32, [1, 16], 128)
    np.testing.assert_array_equal(got, A + 1 + A * 3)
    np.testing.assert_array_equal(found.as_numpy("OUTPUT1"), A + 1 - A * 3)
    assert found.get_response().raw_output_contents[0] == b""
    small = grpcclient.InferRequestedOutput("OUTPUT0")
    small.set_shared_memory("all", 32, 128)
    with pytest.raises(Error, match="should be at least 64 bytes"):
        client.infer("add_sub", [placed("all"), raw], outputs=[small])


def test_unregistering_in_use_waits_for_the_answer(server, client, region, key):
    client.register_system_shared_memory("all", key, 256)
    got = queue.Queue()
    before = len(server.plane.seen)
    client.async_infer("slow", [placed("all")], lambda result, error: got.put(error))
    wait_for(lambda: len(server.plane.seen) > before)
    client.unregister_system_shared_memory("all")
    assert "all" in client.get_system_shared_memory_status().regions
    with pytest.raises(Error, match="Unable to find"):
        client.infer("echo", [placed("all")])
    server.open()
    assert got.get(timeout=60) is None
    assert not client.get_system_shared_memory_status().regions


def test_it_is_off_by_default(region, key):
    with (
        serving(control=True) as running,
        grpcclient.InferenceServerClient(running.url) as client,
    ):
        for call in (
            lambda: client.register_system_shared_memory("all", key, 256),
            client.get_system_shared_memory_status,
            lambda: client.infer("echo", [placed("all")]),
        ):
            with pytest.raises(Error, match="shared memory is off") as caught:
                call()
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


@pytest.mark.parametrize(
    "key",
    [
        "", "/", "///", "//object", "/a/b", "/../etc/passwd", "..", "/.hidden", "a\0b", "/missing",
        "/sem.lock", "///triton_python_backend_shm_region_1", "redline_x", "/" + "x" * 300,
        "/folder", "/link", "/pipe",
    ],
)  # fmt: skip
def test_keys_that_are_refused(shared, tmp_path, key):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "object")
    os.mkfifo(tmp_path / "pipe")
    for name in ("sem.lock", "triton_python_backend_shm_region_1", "redline_x"):
        (tmp_path / name).write_bytes(bytes(128))
    with pytest.raises(ServeError) as caught:
        shared.register("r", key, 0, 8)
    assert caught.value.status is Status.INVALID
    assert str(tmp_path) not in str(caught.value)
    assert shared.status() == []


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 129), (120, 9), (0, 0), (-1, 4), (0, -1), (2**64 - 32, 64), (True, 4), (0.0, 4), (0, "4")],
)
def test_sizes_that_are_refused(shared, offset, size):
    with pytest.raises(ServeError) as caught:
        shared.register("r", "/object", offset, size)
    assert caught.value.status is Status.INVALID


def test_names(shared):
    shared.register("r", "object", 0, 8)
    with pytest.raises(ServeError, match="already in manager"):
        shared.register("r", "/object", 0, 8)
    for name in ("", "x" * 256):
        with pytest.raises(ServeError, match="needs a name"):
            shared.register(name, "/object", 0, 8)
    shared.register("s", "/object", 8, 8)
    shared.register("t", "/object", 8, 8)
    with pytest.raises(ServeError, match="limit"):
        shared.register("u", "/object", 8, 8)
    shared.unregister("unknown")
    shared.unregister("s")
    assert [found["name"] for found in shared.status()] == ["r", "t"]
    with pytest.raises(ServeError, match="Unable to find"):
        shared.status("s")


@pytest.mark.parametrize(("offset", "size"), [(0, 65), (64, 1), (-1, 2), (2**64 - 32, 64)])
def test_reads_stay_in_the_region(shared, offset, size):
    shared.register("r", "/object", 64, 64)
    with shared.lease() as lease:
        assert lease.read("r", 62, 2) == bytes([126, 127])
        with pytest.raises(ServeError, match="Invalid offset"):
            lease.read("r", offset, size)
        with pytest.raises(ServeError, match="Invalid offset"):
            lease.write("r", 63, b"ab")


def test_an_object_that_was_cut_short_is_an_error_and_no_signal(shared, tmp_path):
    shared.register("r", "/object", 0, 128)
    os.truncate(tmp_path / "object", 10)
    with shared.lease() as lease:
        with pytest.raises(ServeError, match="made smaller"):
            lease.read("r", 0, 64)
        with pytest.raises(ServeError, match="made smaller"):
            lease.write("r", 0, bytes(64))
    assert (tmp_path / "object").stat().st_size == 10


def test_descriptors_are_given_back(shared):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        shared.register("r", "/object", 0, 8)
        with pytest.raises(ServeError):
            shared.register("big", "/object", 0, 1000)
        with shared.lease() as lease:
            lease.read("r", 0, 8)
            shared.unregister()
            assert shared.status()
        assert not shared.status()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_routes_of_rest(shared):
    table = routes(shared)
    base = "/v2/systemsharedmemory"
    body = {"key": "/object", "offset": 8, "byte_size": 16}
    assert table["POST", f"{base}/region/{{name}}/register"]("r", body) == {}
    told = [{"name": "r", **body}]
    assert table["GET", f"{base}/status"]("", {}) == told
    assert table["GET", f"{base}/region/{{name}}/status"]("r", {}) == told
    for wrong in ({}, {"key": 5, "byte_size": 8}, {"key": "/object"}, {**body, "byte_size": 1e9}):
        with pytest.raises(ServeError) as caught:
            table["POST", f"{base}/region/{{name}}/register"]("x", wrong)
        assert caught.value.status is Status.INVALID
    assert table["POST", f"{base}/unregister"]("", {}) == {}
    assert table["GET", f"{base}/status"]("", {}) == []
    with pytest.raises(ServeError, match="CUDA"):
        table["POST", "/v2/cudasharedmemory/region/{name}/register"]("r", {})
    assert table["GET", "/v2/cudasharedmemory/status"]("", {}) == []
    assert table["POST", "/v2/cudasharedmemory/unregister"]("", {}) == {}
