"""Every way into a real server asks for the key, and none of them unpickles."""

from __future__ import annotations

import re
import time
from pathlib import Path

import grpc
import httpx
import pytest
import serve_models
import yaml
from faults import Process, process

import redline.serve
from redline.serve.proto import METHODS, SERVICE
from redline.serve.routes import Gate, classify, classify_rpc

USER, ADMIN = "user-key-0123456789", "admin-key-0123456789"
OPENAPI = Path(redline.serve.__file__).with_name("openapi.yaml")
METHODS_OF_HTTP = ("GET", "POST", "PUT", "DELETE", "PATCH")
# Told to every Python process of the server: whoever unpickles ends it.
HOOK = """
import os, pickle, _pickle
def refuse(*arguments, **named):
    os.write(2, b"UNPICKLED\\n")
    os._exit(99)
for module in (pickle, _pickle):
    module.load = module.loads = module.Unpickler = refuse
pickle._Unpickler = pickle._load = pickle._loads = refuse
if os.environ.get("TEST_CONTROL"):
    import atexit
    atexit.register(pickle.loads, b"")
"""


def paths() -> list[str]:
    """Every path of the description and of ours, with names filled in."""
    described = yaml.safe_load(OPENAPI.read_text(encoding="utf-8"))["paths"]
    names = {"model": "mlp", "name": "mlp", "version": "1"}
    found = [re.sub(r"\{(.*?)\}", lambda m: names.get(m[1].lower(), "1"), one) for one in described]
    found = [one.replace("/models/1", "/models/mlp") for one in found]
    return [*found, "/metrics", "/page/state", "/v2/logging", "/v2/trace/setting"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    serve_models.save(tmp_path / "models/mlp/1/model.onnx", serve_models.mlp())
    return tmp_path / "models"


def grpc_port(server: Process) -> int:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if found := re.search(r"gRPC on [^:]+:(\d+)", "".join(server.said)):
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError(server.said)


def code(channel: grpc.Channel, name: str, key: str) -> grpc.StatusCode:
    metadata = [("x-api-key", key)] if key else []
    path = f"/{SERVICE}/{name}"
    try:
        if name == "ModelStreamInfer":
            list(channel.stream_stream(path)(iter([]), metadata=metadata, timeout=20))
        else:
            channel.unary_unary(path)(b"", metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_every_route_and_every_rpc_of_a_real_server(root: Path) -> None:
    (root.parent / "user").write_text(USER)
    (root.parent / "admin").write_text(ADMIN)
    files = (
        "--api-key-file", str(root.parent / "user"),
        "--admin-key-file", str(root.parent / "admin"),
    )  # fmt: skip
    with process(root, *files) as server:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
            for path in paths():
                gate = classify(path)
                assert gate is not None, path
                for method in METHODS_OF_HTTP:
                    none = client.request(method, path).status_code
                    user = client.request(method, path, headers={"x-api-key": USER}).status_code
                    assert (none == 401) == (gate is not Gate.OPEN), (method, path, none)
                    assert (user == 403) == (gate is Gate.CONTROL), (method, path, user)
            assert client.get("/v2", headers={"x-api-key": USER}).status_code == 200
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port(server)}") as channel:
            refused = grpc.StatusCode.UNAUTHENTICATED
            denied = grpc.StatusCode.PERMISSION_DENIED
            for name in METHODS:
                gate = classify_rpc(f"/{SERVICE}/{name}")
                assert (code(channel, name, "") is refused) == (gate is not Gate.OPEN), name
                assert (code(channel, name, USER) is denied) == (gate is Gate.CONTROL), name
                assert code(channel, name, ADMIN) not in (refused, denied), name
        assert server.live()
        assert server.terminate() == 0
    assert "key-0123456789" not in "".join(server.said)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_nothing_is_unpickled(root: Path, isolation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "sitecustomize.py").write_text(HOOK)
    source = Path(redline.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root.parent}:{source}")
    serve_models.save_engine(root / "engine/1/model.redline")
    options = ("--isolation", isolation, "--mode", "explicit", "--load", "*", "--allow-control")
    with process(root, *options) as server:
        spec = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": [1.0] * 8}
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
            for name in ("mlp", "engine"):
                for _ in range(2):
                    told = client.post(f"/v2/models/{name}/infer", json={"inputs": [spec]})
                    assert told.status_code == 200, told.text
                    told = client.post(f"/v2/repository/models/{name}/load")
                    assert told.status_code == 200, told.text
            assert client.get("/metrics").status_code == 200
        assert server.terminate() == 0
    assert "UNPICKLED" not in "".join(server.said)


def test_the_hook_would_see_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the check: the same server, made to unpickle once at its end."""
    (root.parent / "sitecustomize.py").write_text(HOOK)
    source = Path(redline.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root.parent}:{source}")
    monkeypatch.setenv("TEST_CONTROL", "1")
    with process(root) as server:
        assert server.terminate() == 99
    assert "UNPICKLED" in "".join(server.said)
