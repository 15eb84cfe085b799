"""Models come, change and go while they are asked."""

import asyncio
import json
import threading

import httpx
import numpy as np
import pytest
import serve_models
import tritonclient.http as triton
from serve_models import expected
from tritonclient.utils import InferenceServerException

from redline.serve.messages import Request, ServeError
from redline.serve.plane import Plane
from redline.serve.repository import Repository
from redline.serve.settings import Settings

X = np.ones((1, 8), np.float32)


def infer(running, model="mlp", version="", x=X):
    found = triton.InferInput("x", list(x.shape), "FP32")
    found.set_data_from_numpy(x)
    with triton.InferenceServerClient(running.address) as client:
        return client.infer(model, [found], model_version=version).as_numpy("y")


def test_reload_under_load_loses_nothing(own):
    running = own(mode="explicit", load=("mlp",))
    scales, errors, stop = set(), [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                y = infer(running)
                scale = float(y.max() / expected(X).max())
                assert np.allclose(y, expected(X, round(scale)), rtol=1e-4)
                scales.add(round(scale))
            except BaseException as error:
                errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    with triton.InferenceServerClient(running.address, network_timeout=60) as client:
        for scale in range(2, 12):
            serve_models.save(own.root / "mlp/1/model.onnx", serve_models.mlp(scale=scale))
            client.load_model("mlp")
            assert np.allclose(infer(running), expected(X, scale), rtol=1e-4)
    stop.set()
    thread.join(30)
    assert not errors
    assert len(scales) > 1


def test_a_failed_load_leaves_what_serves(own):
    running = own(mode="explicit", load=("mlp",))
    (own.root / "mlp/1/model.onnx").write_bytes(b"no model")
    with triton.InferenceServerClient(running.address) as client:
        with pytest.raises(InferenceServerException, match="failed to load") as caught:
            client.load_model("mlp")
        assert str(own.root) not in str(caught.value)
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model("nobody")
        assert client.is_model_ready("mlp")
    assert np.allclose(infer(running), expected(X), rtol=1e-5)


def test_versions_and_their_policy(own):
    for version in (2, 3):
        path = own.root / f"mlp/{version}/model.onnx"
        serve_models.save(path, serve_models.mlp(scale=version))
    (own.root / "mlp/config.pbtxt").write_text(
        "max_batch_size: 8 # rows\nversion_policy { specific { versions: [1, 3] } }\n"
        "dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 50 }\n"
    )
    running = own()
    metadata = httpx.get(f"{running.url}/v2/models/mlp").json()
    assert metadata["versions"] == ["1", "3"]
    assert np.allclose(infer(running), expected(X, 3), rtol=1e-4)
    assert np.allclose(infer(running, version="1"), expected(X), rtol=1e-4)
    config = httpx.get(f"{running.url}/v2/models/mlp/config").json()
    assert config["max_batch_size"] == 8
    assert config["dynamic_batching"]["preferred_batch_size"] == [4, 8]
    with pytest.raises(InferenceServerException, match="version 2 is not found"):
        infer(running, version="2")


def test_polling_follows_the_folder(own):
    running = own(mode="poll", poll_seconds=0.05)

    def becomes(true):
        for _ in range(400):
            if true():
                return
            threading.Event().wait(0.05)
        raise AssertionError("the folder was not followed")

    def ready(name):
        return httpx.get(f"{running.url}/v2/models/{name}/ready").status_code == 200

    serve_models.save(own.root / "more/1/model.onnx", serve_models.mlp(scale=5))
    becomes(lambda: ready("more"))
    serve_models.save(own.root / "more/2/model.onnx", serve_models.mlp(scale=6))
    becomes(lambda: np.allclose(infer(running, "more"), expected(X, 6), rtol=1e-4))
    (own.root / "more/3").mkdir()
    (own.root / "more/3/model.onnx").write_bytes(b"bad")
    becomes(lambda: running.server.plane.repository.models["more"].reason)
    assert np.allclose(infer(running, "more"), expected(X, 6), rtol=1e-4)
    import shutil

    shutil.rmtree(own.root / "more")
    becomes(lambda: not ready("more"))


def test_config_and_files_that_come_with_a_load(own):
    running = own(mode="explicit")
    with triton.InferenceServerClient(running.address) as client:
        client.load_model("mlp", config='{"max_batch_size": "4"}')
        assert client.get_model_config("mlp")["max_batch_size"] == 4
        content = serve_models.mlp(scale=7).SerializeToString()
        client.load_model("sent", config="{}", files={"file:1/model.onnx": content})
        assert np.allclose(infer(running, "sent"), expected(X, 7), rtol=1e-4)
        for bad in ("file:../model.onnx", "file:1/../../x", "file:1/evil.py", "file:/etc/passwd"):
            with pytest.raises(InferenceServerException, match="failed to load"):
                client.load_model("sent", config="{}", files={bad: b"x"})
        with pytest.raises(InferenceServerException, match="not supported"):
            client.load_model("mlp", config='{"sequence_batching": {}}')
        client.unload_model("sent")
        assert not client.is_model_ready("sent")


def test_a_link_that_leads_out_is_refused(own, tmp_path):
    serve_models.save(tmp_path / "outside/model.onnx", serve_models.mlp())
    (own.root / "linked").mkdir()
    (own.root / "linked/1").symlink_to(tmp_path / "outside")
    with pytest.raises(ServeError, match="leads out"):
        own()


def test_a_first_axis_that_is_no_batch_is_found_out(own):
    serve_models.save(own.root / "time/1/model.onnx", serve_models.first_row())
    running = own()
    config = httpx.get(f"{running.url}/v2/models/time/config").json()
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (0, [-1, 3])


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_model_that_hangs_is_told_and_the_others_serve(own, isolation):
    serve_models.save_null(own.root / "stuck/1/model.redline", "slow", seconds=0.4)
    config = {"parameters": {"isolation": isolation, "run_timeout_seconds": "0.1"}}
    (own.root / "stuck/config.json").write_text(json.dumps(config))
    running = own(trust=True)
    with pytest.raises(InferenceServerException, match="did not answer within"):
        infer(running, "stuck")
    assert np.allclose(infer(running), expected(X), rtol=1e-5)


def test_a_model_that_crashes_while_loading_leaves_the_server(own):
    serve_models.save_null(own.root / "bad/1/model.redline", "crash")
    running = own(trust=True, isolation="process", exit_on_error=False)
    assert np.allclose(infer(running), expected(X), rtol=1e-5)
    rows = httpx.post(f"{running.url}/v2/repository/index").json()
    assert "SIGSEGV" in next(row["reason"] for row in rows if row["name"] == "bad")
    assert httpx.get(f"{running.url}/v2/health/ready").status_code == 503
    assert httpx.get(f"{running.url}/v2/health/live").status_code == 200


def test_an_isolated_model_answers_as_the_others_do(own):
    running = own(isolation="process", instances=2)
    for rows in (1, 3, 32):
        x = np.random.default_rng(rows).standard_normal((rows, 8)).astype(np.float32)
        assert np.allclose(infer(running, x=x), expected(x), rtol=1e-4, atol=1e-5)
    served = running.server.plane.repository.find("mlp")
    for child in served.prepared.runs:  # as if it had crashed while idle
        child._process.kill()
        child._process.wait()
    with pytest.raises(InferenceServerException, match="process died with SIGKILL"):
        infer(running)
    for _ in range(3):
        try:
            assert np.allclose(infer(running), expected(X), rtol=1e-5)
        except InferenceServerException as error:  # the second instance dies once, too
            if "SIGKILL" not in str(error):
                raise
    assert np.allclose(infer(running), expected(X), rtol=1e-5)


def test_the_plane_without_a_front(models):
    async def main():
        settings = Settings(models=models)
        plane = Plane(Repository(settings), settings)
        seen = []
        plane.hooks.append(lambda request, answer, times: seen.append((answer, times)))
        assert not plane.ready()
        await plane.start()
        assert plane.ready()
        response = await plane.infer(Request("mlp", "", {"x": X}, ("y",), id="a"))
        assert (response.id, response.version) == ("a", "1")
        with pytest.raises(ServeError):
            await plane.infer(Request("mlp", "", {"x": X[:, :3]}))
        first, second = seen
        marks = first[1]
        assert marks.arrived <= marks.queued <= marks.started <= marks.finished <= marks.answered
        assert marks.batch_size == 1
        assert isinstance(second[0], ServeError)
        tasks = [asyncio.create_task(plane.infer(Request("mlp", "", {"x": X}))) for _ in range(50)]
        await asyncio.sleep(0)
        await plane.drain(20)
        assert not plane.ready()
        for task in tasks:
            assert (await task).outputs["y"].shape == (1, 4)
        with pytest.raises(ServeError):
            await plane.infer(Request("mlp", "", {"x": X}))

    asyncio.run(main())
