"""One connection's limits: headers, chunks and slow peers, over real sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from ops_samples import echo, exchange, serving  # type: ignore[import-not-found]

from redline.serve.limits import Limits

SMALL = Limits(head=4096, headers=20, chunks=1000, head_seconds=1.0, idle_body_seconds=1.0)
HEAD = b"POST /v2 HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(echo, SMALL) as found:
        yield found


def alive(port: int) -> bool:
    said = exchange(port, b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    return said.startswith(b"HTTP/1.1 200")


def chunked(count: int) -> bytes:
    start = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    return start + b"1\r\nx\r\n" * count + b"0\r\n\r\n"


def test_what_is_within_passes(port: int) -> None:
    said = exchange(port, chunked(999))
    assert said.startswith(b"HTTP/1.1 200")
    assert said.endswith(b'{"size":999}')


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (HEAD + b"x: " + b"a" * 5000 + b"\r\n\r\n", 431, b"larger than 4096 bytes"),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", 431, b"larger than 4096 bytes"),
        (HEAD + b"a: b\r\n" * 30 + b"\r\n", 431, b"more than 20 headers"),
        (chunked(1001), 400, b"more than 1000 chunks"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400, b"Invalid HTTP"),
        (b"GET / HTTP/1.1\r\nhost x\r\n\r\n", 400, b"Invalid HTTP"),
        (HEAD + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, b""),
        (HEAD + b"content-length: -1\r\n\r\n", 400, b""),
    ],
)
def test_what_is_over_is_refused(port: int, request_: bytes, status: int, words: bytes) -> None:
    said = exchange(port, request_)
    assert said.startswith(b"HTTP/1.1 %d " % status)
    assert said.count(b"HTTP/1.1") == 1
    assert b'{"error":"' in said
    assert words in said
    assert alive(port)


def test_a_large_body_after_small_headers_is_no_large_header(port: int) -> None:
    body = b"z" * 300_000
    head = HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    assert exchange(port, head + body).endswith(b'{"size":300000}')
    for cut in range(len(head) - 4, len(head) + 1):  # the end of the headers in two pieces
        assert exchange(port, head[:cut], head[cut:] + body, pause=0.02).endswith(b"300000}")


def test_an_error_is_not_taken_for_the_answer_to_an_earlier_request(port: int) -> None:
    """Two requests in one write, the second broken: the first's answer, or a closed connection."""
    good = b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n"
    for bad in (b"NONSENSE\r\n\r\n", HEAD + b"a: b\r\n" * 30 + b"\r\n"):
        said = exchange(port, good + bad)
        assert said == b"" or said.startswith(b"HTTP/1.1 200")


def test_slow_headers_and_slow_bodies_are_closed(port: int) -> None:
    for start, status in ((b"GET / HTT", b"408"), (HEAD + b"content-length: 9\r\n\r\nab", b"408")):
        began = time.monotonic()
        said = exchange(port, start)
        assert said.startswith(b"HTTP/1.1 " + status)
        assert time.monotonic() - began > 0.9
    assert exchange(port).startswith(b"HTTP/1.1 408")  # so is one that says nothing at all
    assert alive(port)


def test_a_reader_that_never_reads_is_let_go() -> None:
    with serving(echo, Limits(write_seconds=0.5)) as port:
        peers = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        for peer in peers:
            peer.sendall(b"POST /generate HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        deadline = time.monotonic() + 20
        mine = psutil.Process()
        while time.monotonic() < deadline:
            held = [
                one for one in mine.net_connections("tcp")
                if one.laddr and one.laddr.port == port and one.status == "ESTABLISHED"
            ]  # fmt: skip
            if not held:
                break
            time.sleep(0.05)
        assert not held
        assert alive(port)
        for peer in peers:
            peer.close()


def test_a_million_tiny_chunks_cost_no_memory() -> None:
    with serving(echo) as port:
        memory = psutil.Process().memory_info
        body = chunked(200_000)

        def send() -> None:
            with contextlib.suppress(OSError):
                assert b"more than 65536 chunks" in exchange(port, body)

        send()
        before = memory().rss
        threads = [threading.Thread(target=send) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert memory().rss - before < 20 << 20
        assert alive(port)
