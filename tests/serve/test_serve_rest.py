"""The REST front, by tritonclient and by bytes that no client would send."""

import asyncio
import gzip
import json
import socket

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from serve_models import expected
from tritonclient.utils import InferenceServerException

X = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.address) as found:
        yield found


def tensor(name, array, datatype, **options):
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, **options)
    return found


def post(server, model, body, headers=None):
    url = f"{server.url}/v2/models/{model}/infer"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(url, content=content, headers=headers, timeout=60)


def one(data, shape=(3, 8), datatype="FP32", **more):
    return {
        "inputs": [{"name": "x", "shape": list(shape), "datatype": datatype, "data": data}],
        **more,
    }


def test_the_server_describes_itself(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("mlp")["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 8]}
    ]
    config = client.get_model_config("engine", "1")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (16, [8])
    ready = [row for row in client.get_model_repository_index() if row["state"] == "READY"]
    assert {"mlp", "engine"} <= {row["name"] for row in ready}


@pytest.mark.parametrize("model", ["mlp", "engine"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_all_ways_give_the_same_numbers(client, model, binary_in, binary_out):
    x = tensor("x", X, "FP32", binary_data=binary_in)
    y = triton.InferRequestedOutput("y", binary_data=binary_out)
    result = client.infer(model, [x], outputs=[y], request_id="7")
    np.testing.assert_allclose(result.as_numpy("y"), expected(X), rtol=1e-5, atol=1e-6)
    assert result.get_response()["id"] == "7"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compressed_both_ways(client, coding):
    result = client.infer(
        "mlp",
        [tensor("x", X, "FP32")],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_allclose(result.as_numpy("y"), expected(X), rtol=1e-5)


def test_the_asyncio_client(server):
    async def many():
        async with triton_aio.InferenceServerClient(server.address) as client:
            calls = [client.infer("mlp", [tensor("x", X + k, "FP32")]) for k in range(40)]
            return [result.as_numpy("y") for result in await asyncio.gather(*calls)]

    for k, y in enumerate(asyncio.run(many())):
        np.testing.assert_allclose(y, expected(X + k), rtol=1e-4, atol=1e-4)


CASES = {
    "id_FLOAT": ("FP32", np.array([[np.nan, np.inf, -0.0]], np.float32)),
    "id_FLOAT16": ("FP16", np.array([[1.5, -2.0]], np.float16)),
    "id_BFLOAT16": ("BF16", np.array([[1.5, -2.0]], ml_dtypes.bfloat16)),
    "id_BOOL": ("BOOL", np.array([[True, False, True]])),
    "id_INT8": ("INT8", np.array([[-128, 127]], np.int8)),
    "id_INT64": ("INT64", np.array([[-(2**63), 2**63 - 1]], np.int64)),
    "id_UINT8": ("UINT8", np.array([[0, 255]], np.uint8)),
    "id_DOUBLE": ("FP64", np.array([[1e300]], np.float64)),
}


@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("count", [None, 0])
def test_every_datatype_comes_back_bit_by_bit(server, model, count):
    datatype, array = CASES[model]
    array = array[:, :count] if count is not None else array
    data = array.tobytes()
    head = {
        "inputs": [
            {"name": "x", "shape": list(array.shape), "datatype": datatype,
             "parameters": {"binary_data_size": len(data)}}
        ],
        "parameters": {"binary_data_output": True},
    }  # fmt: skip
    text = json.dumps(head).encode()
    answer = post(server, model, text + data, {"Inference-Header-Content-Length": str(len(text))})
    assert answer.status_code == 200, answer.text
    assert answer.content[int(answer.headers["inference-header-content-length"]) :] == data


def test_texts(client):
    x = np.array([["a", "", "b\0c é"]], dtype=object)
    y = client.infer("texts", [tensor("x", x, "BYTES")]).as_numpy("y")
    assert [value.decode() for value in y[0]] == ["a", "", "b\0c é"]


def test_classification(client):
    y = triton.InferRequestedOutput("y", class_count=2)
    found = client.infer("mlp", [tensor("x", X, "FP32")], outputs=[y]).as_numpy("y")
    for row, values in zip(found, expected(X), strict=True):
        best = np.argsort(-values, kind="stable")[:2]
        assert [int(text.split(b":")[1]) for text in row] == list(best)


def test_a_body_that_is_only_data(server):
    answer = post(server, "mlp", X.tobytes(), {"Inference-Header-Content-Length": "0"})
    size = int(answer.headers["inference-header-content-length"])
    y = np.frombuffer(answer.content[size:], np.float32).reshape(3, 4)
    np.testing.assert_allclose(y, expected(X), rtol=1e-5)


def test_nested_data(server):
    answer = post(server, "mlp", one(X.tolist()))
    y = np.array(answer.json()["outputs"][0]["data"]).reshape(3, 4)
    np.testing.assert_allclose(y, expected(X), rtol=1e-5)


FLAT = X.ravel().tolist()
WRONG = [
    ("mlp", b"", "JSON"),
    ("mlp", b"{", "JSON"),
    ("mlp", {}, "inputs"),
    ("mlp", {"inputs": []}, "expected 1 inputs"),
    ("mlp", one(FLAT, (3, 9)), "values"),
    ("mlp", one(FLAT + [0.0] * 3, (3, 9)), "unexpected shape"),
    ("mlp", one(FLAT, (-3, -8)), "negative"),
    ("mlp", one(FLAT, (2**62, 2**62)), "elements"),
    ("mlp", one(FLAT, (1,) * 40), "axes"),
    ("mlp", one(FLAT, datatype="FP99"), "not known"),
    ("mlp", one(FLAT, datatype="FP64"), "data-type"),
    ("mlp", one(["a"] * 24), "FP32"),
    ("mlp", one([None] * 24), "FP32"),
    ("mlp", one([True] * 24), "FP32"),
    ("mlp", one(FLAT, outputs=[{"name": "z"}]), "unexpected inference output"),
    ("mlp", one(FLAT, outputs=[{"name": "y"}, {"name": "y"}]), "twice"),
    ("mlp", one(FLAT, parameters={"timeout": -1}), "timeout"),
    ("mlp", one(FLAT, parameters={"priority": "high"}), "priority"),
    ("mlp", one(FLAT, outputs=[{"name": "y", "parameters": {"classification": -1}}]), "classif"),
    ("mlp", b'{"inputs":' + b"[" * 200 + b"]" * 200 + b"}", "nested"),
    ("id_INT8", one([300], (1, 1), "INT8"), "INT8"),
    ("id_INT8", one([1.5], (1, 1), "INT8"), "INT8"),
    ("gather", {"inputs": [{"name": "i", "shape": [1, 1], "datatype": "INT64", "data": [9]}]},
     "failed"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "word"), WRONG)
def test_a_wrong_request_gets_one_clear_error(server, model, body, word):
    answer = post(server, model, body)
    assert answer.status_code in (400, 500)
    assert (answer.status_code == 500) == (model == "gather")
    assert word in answer.json()["error"]
    assert "/" not in answer.json()["error"].replace("/1", "")
    assert httpx.get(f"{server.url}/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("99999999999999999999", 0),
        ("-1", 0),
        ("x", 0),
        ("10000", 0),
        (None, 97),
        (None, 95),
        (None, -1),
    ],
)
def test_binary_sizes_that_lie(server, header, size):
    head = {
        "name": "x",
        "shape": [3, 8],
        "datatype": "FP32",
        "parameters": {"binary_data_size": size},
    }
    text = json.dumps({"inputs": [head]}).encode()
    told = header or str(len(text))
    answer = post(server, "mlp", text + X.tobytes(), {"Inference-Header-Content-Length": told})
    assert answer.status_code == 400, answer.text


def test_nan_in_json_is_refused_and_binary_is_not_touched(server):
    body = {
        "inputs": [
            {
                "name": "x",
                "shape": [1, 1],
                "datatype": "FP32",
                "parameters": {"binary_data_size": 4},
            }
        ]
    }
    text = json.dumps(body).encode()
    data = np.array([np.nan], np.float32).tobytes()
    answer = post(
        server, "id_FLOAT", text + data, {"Inference-Header-Content-Length": str(len(text))}
    )
    assert answer.status_code == 400
    assert "NaN" in answer.json()["error"]


TRAVERSALS = [
    "..",
    "../etc",
    "a/../b",
    "/etc/passwd",
    "mlp/",
    " ..",
    ".hidden",
    "a\\b",
    "a\nb",
    "",
    "%",
    "mlp\0",
]


@pytest.mark.parametrize("name", TRAVERSALS)
@pytest.mark.parametrize(
    "path",
    ["models/{}", "models/{}/ready", "models/{}/infer", "models/{}/config", "models/{}/stats",
     "models/{}/versions/1", "models/mlp/versions/{}", "models/mlp/versions/{}/infer",
     "repository/models/{}/load", "repository/models/{}/unload"],
)  # fmt: skip
def test_names_that_lead_elsewhere(server, path, name):
    escaped = "".join(f"%{byte:02x}" for byte in name.encode())
    method = "POST" if path.endswith(("infer", "load")) else "GET"
    answer = httpx.request(method, f"{server.url}/v2/" + path.format(escaped))
    assert answer.status_code in (400, 404, 503), answer.text
    assert "error" in answer.json()


def test_the_repository_is_closed_unless_explicit(server):
    for action in ("load", "unload"):
        answer = httpx.post(f"{server.url}/v2/repository/models/mlp/{action}")
        assert answer.status_code == 503
        assert "not allowed" in answer.json()["error"]


def test_unknown_names_and_methods(server, client):
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        client.infer("nobody", [tensor("x", X, "FP32")])
    assert httpx.get(f"{server.url}/v2/models/mlp/versions/9").status_code == 404
    assert not client.is_model_ready("mlp", "9")
    assert httpx.get(f"{server.url}/nothing").status_code == 404
    assert httpx.get(f"{server.url}/v2/models/mlp/infer").status_code == 405
    assert httpx.delete(f"{server.url}/v2").headers["allow"] == "GET"


def test_bombs_and_large_bodies(own):
    from redline.serve.settings import Limits

    running = own(limits=Limits(body=1 << 20))
    bomb = gzip.compress(bytes(1 << 24))
    assert post(running, "mlp", bomb, {"Content-Encoding": "gzip"}).status_code == 413
    assert post(running, "mlp", b"x", {"Content-Encoding": "gzip"}).status_code == 400
    assert post(running, "mlp", b"x", {"Content-Encoding": "br"}).status_code == 501
    with socket.create_connection(("127.0.0.1", running.server.http_port)) as raw:
        raw.sendall(
            b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"
        )
        assert b" 413 " in raw.recv(4096)
    with socket.create_connection(("127.0.0.1", running.server.http_port)) as raw:
        raw.settimeout(20)
        raw.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        with pytest.raises(OSError):  # noqa: PT011 - reset or broken pipe, as the kernel likes
            raw.sendall(b"a" * (32 << 20))
    assert httpx.get(f"{running.url}/v2/health/live").status_code == 200


def test_statistics_count(server, client):
    before = client.get_inference_statistics("engine")["model_stats"][0]
    client.infer("engine", [tensor("x", X, "FP32")])
    after = client.get_inference_statistics("engine")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 3
    success = [row["inference_stats"]["success"]["count"] for row in (before, after)]
    assert success[1] - success[0] == 1
    batch = next(row for row in after["batch_stats"] if row["batch_size"] == 3)
    assert batch["compute_output"]["count"] == batch["compute_infer"]["count"]
    assert 0 < batch["compute_output"]["ns"] <= after["inference_stats"]["compute_output"]["ns"]
    assert len(client.get_inference_statistics()["model_stats"]) > 5
