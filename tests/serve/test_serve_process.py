"""The command as a process: its address, its end, and the page's examples."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import serve_models

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def serving(root, *options):
    command = [sys.executable, "-m", "redline", "serve", str(root), "--http-port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            found = re.search(r"http://\S+", line)
            if found:
                break
        else:
            raise AssertionError("it did not start")
        yield process, found.group()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def body(rows=1):
    data = np.ones(8 * rows).tolist()
    return {"inputs": [{"name": "x", "shape": [rows, 8], "datatype": "FP32", "data": data}]}


def test_sigterm_answers_what_was_accepted(tmp_path):
    serve_models.save_null(tmp_path / "slow/1/model.redline", "slow", seconds=0.3)
    (tmp_path / "slow/config.json").write_text('{"max_batch_size": 1}')
    with serving(tmp_path, "--trust") as (process, url):
        answers = []

        def ask():
            answers.append(httpx.post(f"{url}/v2/models/slow/infer", json=body(), timeout=60))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        while True:  # the first is answered, so the others have long been accepted
            told = httpx.get(f"{url}/v2/models/slow/stats").json()["model_stats"][0]
            if told["inference_count"]:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(60)
        assert [answer.status_code for answer in answers] == [200] * 6
        assert process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/v2/health/live")


def test_a_second_sigterm_ends_it_at_once(tmp_path):
    serve_models.save_null(tmp_path / "slow/1/model.redline", "slow", seconds=4.0)
    (tmp_path / "slow/config.json").write_text('{"max_batch_size": 0}')
    with serving(tmp_path, "--trust", "--keep-going") as (process, url):
        client = threading.Thread(target=_quietly, args=(url,))
        client.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 128 + signal.SIGTERM
        client.join(30)


def _quietly(url):
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{url}/v2/models/slow/infer", json=body(), timeout=60)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines"),
        (["--queue-size", "0"], "queue_size is 0"),
        (["--http-port", "99999"], "Input should be"),
        (["--grpc-port", "99999"], "Input should be"),
        (["--grpc-port", "-5"], "Input should be"),
    ],
)
def test_options_that_make_no_sense(models, options, said):
    done = subprocess.run(
        [sys.executable, "-m", "redline", "serve", str(models), *options],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert said in done.stderr


def test_a_model_that_cannot_be_loaded_is_told_at_the_start(tmp_path):
    (tmp_path / "bad/1").mkdir(parents=True)
    (tmp_path / "bad/1/model.onnx").write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "redline", "serve", str(tmp_path), "--http-port", "0"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "failed to load 'bad'" in done.stderr


def examples():
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if "curl" in line]


def test_the_page_has_examples():
    assert len(examples()) >= 8


@pytest.mark.parametrize("line", examples())
def test_the_curl_examples_of_the_page_work(server, line):
    told = line.replace("localhost:8000", server.address)
    done = subprocess.run(
        ["bash", "-c", told], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    if done.stdout:
        json.loads(done.stdout)


def test_the_python_example_of_the_page_works(server):
    text = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {}
    exec(block.replace("localhost:8000", server.address), names)
    names["client"].close()
    expected = serve_models.expected(np.ones((1, 8), np.float32))
    np.testing.assert_allclose(names["y"], expected, rtol=1e-5)


def test_workers_share_the_port_of_grpc_too(models):
    """Also one that was free: each worker says the same, and calls on it are answered."""
    grpc = pytest.importorskip("grpc")
    command = [sys.executable, "-m", "redline", "serve", str(models), "--workers", "2"]
    command += ["--http-port", "0", "--grpc-port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        said = []
        while sum("gRPC on 127" in line for line in said) < 2:
            said.append(process.stderr.readline())
            assert said[-1], "".join(said)
        ports = re.findall(r"gRPC on (?:port |127.0.0.1:)(\d+)", "".join(said))
        assert len(ports) == 3
        assert len(set(ports)) == 1
        for _ in range(8):
            with grpc.insecure_channel(f"127.0.0.1:{ports[0]}") as channel:
                call = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
                assert call(b"", timeout=30) == b"\x08\x01"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_workers_say_that_the_port_of_grpc_is_taken(models):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "redline", "serve", str(models), "--workers", "2"]
        command += ["--http-port", "0", "--grpc-port", port]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode != 0
    assert f"cannot listen on 127.0.0.1 port {port}" in told.stderr
