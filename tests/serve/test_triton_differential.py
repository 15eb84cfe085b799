"""The same bytes to NVIDIA's Triton and to `redline serve`: same status, same kind of answer."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("tritonclient.grpc")

import grpc
import serve_models
from faults import process
from triton_oracle import CONFIG, triton
from tritonclient.grpc import service_pb2, service_pb2_grpc

pytestmark = pytest.mark.slow

ROW = list(range(16))
Request = tuple[str, str, dict[str, str], bytes]


def infer(rows: int = 1, **more: Any) -> dict[str, Any]:
    """A request of JSON for the model "simple"."""
    inputs = [
        {"name": name, "shape": [rows, 16], "datatype": "INT32", "data": ROW * rows}
        for name in ("INPUT0", "INPUT1")
    ]
    return {"inputs": inputs, **more}


def changed(**changes: Any) -> dict[str, Any]:
    """The same with its first input changed; None takes a field away."""
    request = infer()
    request["inputs"][0] |= changes
    request["inputs"][0] = {k: v for k, v in request["inputs"][0].items() if v is not None}
    return request


def post(body: Any, path: str = "/v2/models/simple/infer", **headers: str) -> Request:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ("POST", path, {k.replace("_", "-"): v for k, v in headers.items()}, content)


def get(path: str) -> Request:
    return ("GET", path, {}, b"")


def binary(size: int = 64, told: int = 64, **more: Any) -> Request:
    """The same with binary tensors."""
    request = infer(**more)
    for spec in request["inputs"]:
        spec["parameters"] = {"binary_data_size": told}
        del spec["data"]
    head = json.dumps(request).encode()
    body = head + struct.pack("<16i", *ROW)[:size] * 2
    return post(body, Inference_Header_Content_Length=str(len(head)))


def outputs(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    return [{"name": name, "parameters": parameters} for name in names]


REQUESTS: dict[str, Request] = {
    "live": get("/v2/health/live"),
    "ready": get("/v2/health/ready"),
    "server": get("/v2"),
    "model ready": get("/v2/models/simple/ready"),
    "version ready": get("/v2/models/simple/versions/1/ready"),
    "no such version ready": get("/v2/models/simple/versions/7/ready"),
    "no such model ready": get("/v2/models/other/ready"),
    "metadata": get("/v2/models/simple"),
    "metadata of a version": get("/v2/models/simple/versions/1"),
    "metadata of no such version": get("/v2/models/simple/versions/7"),
    "metadata of no such model": get("/v2/models/other"),
    "config": get("/v2/models/simple/config"),
    "statistics": get("/v2/models/simple/stats"),
    "statistics of all": get("/v2/models/stats"),
    "statistics of no such model": get("/v2/models/other/stats"),
    "index": post({}, "/v2/repository/index"),
    "no such path": get("/v2/nothing"),
    "get of infer": get("/v2/models/simple/infer"),
    "post of metadata": post({}, "/v2/models/simple"),
    "infer": post(infer()),
    "infer with an id": post(infer(id="seven")),
    "infer by version": post(infer(), "/v2/models/simple/versions/1/infer"),
    "infer by no such version": post(infer(), "/v2/models/simple/versions/7/infer"),
    "infer of no such model": post(infer(), "/v2/models/other/infer"),
    "one output": post(infer(outputs=outputs("OUTPUT1"))),
    "outputs in another order": post(infer(outputs=outputs("OUTPUT1", "OUTPUT0"))),
    "no such output": post(infer(outputs=outputs("OUTPUT7"))),
    "binary output": post(infer(outputs=outputs("OUTPUT0", binary_data=True))),
    "all outputs binary": post(infer(parameters={"binary_data_output": True})),
    "classification": post(infer(outputs=outputs("OUTPUT0", classification=3))),
    "nested data": post(changed(data=[ROW])),
    "binary input": binary(),
    "binary in and out": binary(parameters={"binary_data_output": True}),
    "binary too short": binary(size=60),
    "binary size that differs": binary(told=60),
    "batch of two": post(infer(rows=2)),
    "batch too large": post(infer(rows=9)),
    "empty body": post(b""),
    "no JSON": post(b"{"),
    "not an object": post(b"[]"),
    "no inputs": post({}),
    "empty inputs": post({"inputs": []}),
    "one input missing": post({"inputs": infer()["inputs"][:1]}),
    "an input twice": post({"inputs": infer()["inputs"] + infer()["inputs"][:1]}),
    "no such input": post(changed(name="INPUT7")),
    "no name": post(changed(name=None)),
    "no shape": post(changed(shape=None)),
    "no datatype": post(changed(datatype=None)),
    "no data": post(changed(data=None)),
    "wrong datatype": post(changed(datatype="FP32")),
    "no such datatype": post(changed(datatype="INT33")),
    "wrong shape": post(changed(shape=[1, 15], data=ROW[:15])),
    "too few dims": post(changed(shape=[16])),
    "negative dim": post(changed(shape=[-1, 16])),
    "too few data": post(changed(data=ROW[:15])),
    "too much data": post(changed(data=[*ROW, 1])),
    "text as data": post(changed(data=["a"] * 16)),
    "fraction as data": post(changed(data=[0.5] * 16)),
    "number beyond the type": post(changed(data=[1 << 40] * 16)),
    "header length too large": post(infer(), Inference_Header_Content_Length="99999"),
    "header length of no number": post(infer(), Inference_Header_Content_Length="x"),
}

UNKNOWN = "what does not exist is 404 on every path of ours"
MISTAKE = "a client's mistake is no fault of the server"
DIFFERENCES = {  # (Triton's status, ours, why)
    "no such version ready": (400, 404, UNKNOWN),
    "no such model ready": (400, 404, UNKNOWN),
    "statistics of no such model": (400, 404, UNKNOWN),
    "no JSON": (500, 400, MISTAKE),
    "not an object": (500, 400, MISTAKE),
    "no inputs": (500, 400, MISTAKE),
    "no name": (500, 400, MISTAKE),
    "no shape": (500, 400, MISTAKE),
    "no datatype": (500, 400, MISTAKE),
    "negative dim": (500, 400, MISTAKE),
    "too few data": (500, 400, MISTAKE),
    "too much data": (500, 400, MISTAKE),
    "text as data": (500, 400, MISTAKE),
    "fraction as data": (500, 400, MISTAKE),
    "number beyond the type": (200, 400, "Triton takes its lower 32 bits and says nothing"),
}
OURS = {  # what each server has of its own
    "platform", "backend", "default_model_filename", "reason", "dynamic_batching",
}  # fmt: skip
FEWER = {"config"}  # Triton tells of options that we do not have
BODIES = {"live", "ready", "model ready", "version ready"}  # Triton's are empty
Two = tuple[tuple[int, int], tuple[int, int]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Ports for HTTP and gRPC of Triton and of ours."""
    root = tmp_path_factory.mktemp("ours")
    serve_models.save(root / "simple/1/model.onnx", serve_models.add_sub())
    (root / "simple/config.pbtxt").write_text(CONFIG.replace('backend: "python"', ""))
    with triton(tmp_path_factory.mktemp("triton")) as theirs, process(root) as ours:
        yield theirs, (ours.port, ours.rpc)


def agree(theirs: Any, ours: Any) -> bool:
    """All that we tell is what they tell; in a list, items with names may come in any order."""
    if isinstance(ours, dict):
        return all(key in theirs and agree(theirs[key], ours[key]) for key in set(ours) - OURS)
    if isinstance(ours, list):
        pairs = zip(sorted(theirs, key=_name), sorted(ours, key=_name), strict=True)
        return all(agree(*pair) for pair in pairs)
    return bool(theirs == ours)


def _name(item: Any) -> str:
    return item.get("name", "") if isinstance(item, dict) else ""


def split(answer: httpx.Response) -> tuple[Any, bytes]:
    """The JSON of an answer, and its binary tensors."""
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    return json.loads(answer.content[:length]), answer.content[length:]


@pytest.mark.parametrize("name", REQUESTS)
def test_the_same_bytes_get_the_same_answer(servers: Two, name: str) -> None:
    method, path, headers, body = REQUESTS[name]
    theirs, ours = (
        httpx.request(
            method, f"http://127.0.0.1:{port}{path}", headers=headers, content=body, timeout=30
        )
        for port, _ in servers
    )
    expected = DIFFERENCES.get(name, (ours.status_code, ours.status_code, ""))
    assert (theirs.status_code, ours.status_code) == expected[:2], (theirs.text, ours.text)
    if ours.status_code >= 400:
        assert split(ours)[0]["error"]
        return
    if name in BODIES:
        return
    (their_head, their_rest), (head, rest) = split(theirs), split(ours)
    if name == "server":
        assert head.keys() == their_head.keys()
        assert set(head["extensions"]) <= set(their_head["extensions"])
    elif name.startswith("statistics"):
        assert agree(shape(their_head), shape(head))
    else:
        assert agree(their_head, head), (their_head, head)
        assert name in FEWER or agree(head, their_head), (their_head, head)
        assert rest == their_rest


def shape(told: Any) -> Any:
    """Names without their values."""
    if isinstance(told, dict):
        return {key: shape(value) for key, value in told.items()}
    return [shape(item) for item in told[:1]] if isinstance(told, list) else ""


def rpc(**changes: Any) -> Any:
    """An inference by gRPC, and what changes in its first input."""
    made = service_pb2.ModelInferRequest(model_name=changes.pop("model", "simple"))
    made.model_version = changes.pop("version", "")
    for name in changes.pop("names", ("INPUT0", "INPUT1")):
        made.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        made.raw_input_contents.append(changes.get("raw", struct.pack("<16i", *ROW)))
    for name in changes.pop("outputs", ()):
        made.outputs.add(name=name)
    if "datatype" in changes:
        made.inputs[0].datatype = changes["datatype"]
    if "shape" in changes:
        made.inputs[0].shape[:] = changes["shape"]
    return made


CALLS = {
    "infer": rpc(),
    "one output": rpc(outputs=["OUTPUT1"]),
    "no such model": rpc(model="other"),
    "no such version": rpc(version="7"),
    "no such output": rpc(outputs=["OUTPUT7"]),
    "no such input": rpc(names=["INPUT0", "INPUT7"]),
    "one input missing": rpc(names=["INPUT0"]),
    "no inputs": rpc(names=[]),
    "wrong datatype": rpc(datatype="FP32"),
    "no such datatype": rpc(datatype="INT33"),
    "wrong shape": rpc(shape=[1, 15]),
    "batch too large": rpc(shape=[9, 16]),
    "too few bytes": rpc(raw=b"abc"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_call_gets_the_same_status(servers: Two, name: str) -> None:
    told = []
    for _, port in servers:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                answer = stub.ModelInfer(CALLS[name], timeout=30)
                raw = answer.raw_output_contents
                outputs = {
                    one.name: (one.datatype, list(one.shape), part)
                    for one, part in zip(answer.outputs, raw, strict=True)
                }
                told.append((answer.model_name, answer.model_version, outputs))
            except grpc.RpcError as error:
                told.append((error.code().name, bool(error.details()), {}))
    assert told[0] == told[1]
