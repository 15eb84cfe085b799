"""Small models as ONNX files and engines, and servers on a port of their own."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import ops_certificates
import serve_models

from redline.serve.server import Server
from redline.serve.settings import Settings


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mlp (ONNX), engine (the same as model.redline), fixed, gather, texts, nan."""
    root = tmp_path_factory.mktemp("models")
    serve_models.save(root / "mlp/1/model.onnx", serve_models.mlp())
    serve_models.save_engine(root / "engine/1/model.redline")
    serve_models.save(root / "fixed/1/model.onnx", serve_models.mlp(batch=2))
    serve_models.save(root / "gather/1/model.onnx", serve_models.gather())
    serve_models.save(root / "texts/1/model.onnx", serve_models.identity("STRING"))
    for kind in ("FLOAT16", "BFLOAT16", "BOOL", "INT8", "INT64", "UINT8", "DOUBLE", "FLOAT"):
        serve_models.save(root / f"id_{kind}/1/model.onnx", serve_models.identity(kind))
    return root


class Running:
    """A server in a thread of its own, so that blocking clients can be used."""

    def __init__(self, settings: Settings) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.server = self.call(self._start(settings)).result(60)
        self.address = f"127.0.0.1:{self.server.http_port}"
        self.url = f"http://{self.address}"

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    async def _start(self, settings: Settings) -> Server:
        server = Server(settings)
        await server.start()
        return server

    def call(self, coroutine) -> Future:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def stop(self) -> None:
        self.call(self.server.stop(20)).result(60)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


@pytest.fixture(scope="session")
def server(models: Path) -> Iterator[Running]:
    running = Running(Settings(models=models, http_port=0))
    yield running
    running.stop()


@pytest.fixture
def own(tmp_path: Path, models: Path) -> Iterator:
    """Makes servers over a folder of the test's own, which begins with the mlp."""
    root = tmp_path / "models"
    root.mkdir()
    shutil.copytree(models / "mlp", root / "mlp")
    made: list[Running] = []

    def make(**settings) -> Running:
        made.append(Running(Settings(**({"models": root, "http_port": 0} | settings))))
        return made[-1]

    make.root = root
    yield make
    for running in made:
        running.stop()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of ca, cert, key, client_cert and client_key."""
    return ops_certificates.make(tmp_path_factory.mktemp("tls"))
