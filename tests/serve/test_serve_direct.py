"""The short way of a request over HTTP: taken by plain ones, and told apart by nothing else."""

from __future__ import annotations

import http.client
import json
import socket
import time

import numpy as np
import pytest
import serve_models
from faults import BODIES

from redline.serve.rest import Rest

X = np.arange(8, dtype=np.float32)[None]
PATH = "/v2/models/mlp/infer"


def body(identity: str = "") -> bytes:
    spec = {"name": "x", "shape": [1, 8], "datatype": "FP32", "data": X.ravel().tolist()}
    return json.dumps({"id": identity, "inputs": [spec]}).encode()


def post(address: str, data: bytes, *, chunked: bool = False, **headers: str):
    """(status, body) on a connection of its own."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        sent = iter([data]) if chunked else data
        connection.request("POST", PATH, sent, headers, encode_chunked=chunked)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture
def long_way(monkeypatch):
    """Requests that went through the ASGI application."""
    seen = []
    real = Rest._infer

    async def infer(self, call, name, version):
        seen.append(name)
        return await real(self, call, name, version)

    monkeypatch.setattr(Rest, "_infer", infer)
    return seen


def test_a_plain_request_takes_it_and_a_chunked_one_does_not(server, long_way):
    status, told = post(server.address, body())
    assert status == 200
    assert long_way == []
    assert post(server.address, body(), chunked=True, **{"Transfer-Encoding": "chunked"}) == (
        status, told,
    )  # fmt: skip
    assert long_way == ["mlp"]
    y = np.array(json.loads(told)["outputs"][0]["data"], np.float32)
    assert np.allclose(y, serve_models.expected(X).ravel(), rtol=1e-5)


@pytest.mark.parametrize("data", [data for data in BODIES if data], ids=range(len(BODIES) - 1))
def test_what_is_wrong_is_told_in_the_same_words(server, long_way, data):
    short = post(server.address, data)
    assert long_way == []
    assert 400 <= short[0] < 500
    assert short == post(server.address, data, chunked=True, **{"Transfer-Encoding": "chunked"})
    assert long_way == ["mlp"]


def test_requests_behind_each_other_on_one_connection_are_answered_in_order(server):
    def request(identity: str) -> bytes:
        data = body(identity)
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        return head.encode() + data

    live = b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    last = request("3").replace(b"host: x", b"host: x\r\nconnection: close")
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as made:
        made.sendall(request("1") + live + request("2") + last)
        told = b"".join(iter(lambda: made.recv(1 << 16), b""))
    places = [told.index(part) for part in (b'"id":"1"', b'"live":true', b'"id":"2"', b'"id":"3"')]
    assert places == sorted(places)
    assert told.count(b"HTTP/1.1 200 OK") == 4


def test_a_body_in_pieces_and_a_client_that_goes_in_the_middle(server, long_way):
    data = body("pieces")
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(data)}"
    host, port = server.address.split(":")
    for whole in (True, False):
        with socket.create_connection((host, int(port)), timeout=60) as made:
            made.sendall(head.encode() + b"\r\n\r\n" + data[:50])
            time.sleep(0.05)
            if whole:
                made.sendall(data[50:])
                told = b"".join(iter(lambda: made.recv(1 << 16), b""))
                assert told.startswith(b"HTTP/1.1 200 OK")
                assert b'"id":"pieces"' in told
    assert long_way == []
    assert post(server.address, body())[0] == 200


def test_a_body_that_never_comes_is_told_so(own):
    from redline.serve.settings import Limits

    running = own(limits=Limits(read_seconds=0.2))
    host, port = running.address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as made:
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n"
        made.sendall(head.encode() + b"{")
        assert b"the body was not there within 0.2 s" in made.recv(1 << 16)
