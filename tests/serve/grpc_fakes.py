"""A plane of small NumPy models and a gRPC server on it, in a thread of its own."""

import asyncio
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from redline.serve.grpc_front import GrpcFront, GrpcOptions
from redline.serve.messages import Response, ServeError, Status

METADATA = {
    "name": "echo", "versions": ["1"], "platform": "onnx",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
}  # fmt: skip
CONFIG = {
    "name": "echo", "platform": "onnx", "backend": "redline", "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [4]}],
    "instance_group": [{"name": "echo", "kind": "KIND_CPU", "count": 1}],
    "dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": 100},
    "version_policy": {"latest": {"num_versions": 1}},
    "parameters": {"delay": {"string_value": "0"}},
}  # fmt: skip


class NumpyPlane:
    """Models: echo gives its inputs back, add_sub, slow waits for `gate`, broken raises."""

    def __init__(self):
        self.gate = None
        self.repository = self
        self.extensions = ["statistics"]
        self.is_ready = True
        self.seen = []  # requests, as they came
        self.cancelled = 0
        self.loaded = []

    async def infer(self, request):
        self.seen.append(request)
        if request.model == "slow":
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if request.model == "broken":
            raise ZeroDivisionError("a secret of /srv/host")
        if request.model == "add_sub":
            a, b = request.inputs["INPUT0"], request.inputs["INPUT1"]
            outputs = {"OUTPUT0": a + b, "OUTPUT1": a - b}
        elif request.model in ("echo", "slow"):
            outputs = dict(request.inputs)
        else:
            raise self.unknown(request.model)
        if request.outputs:
            outputs = {name: outputs[name] for name in request.outputs}
        return Response(request.model, "1", outputs, request.id)

    def find(self, name, version):
        return SimpleNamespace(max_batch=8)

    @staticmethod
    def unknown(name):
        return ServeError(Status.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    def live(self):
        return True

    def ready(self):
        return self.is_ready

    def model_ready(self, name, version=""):
        return name in ("echo", "slow") and version in ("", "1")

    def server_metadata(self):
        return {"name": "redline", "version": "1", "extensions": self.extensions}

    def metadata(self, name, version=""):
        if name != "echo":
            raise self.unknown(name)
        return METADATA

    def config(self, name, version=""):
        return CONFIG

    def statistics(self, name="", version=""):
        duration = {"count": 2, "ns": 3000}
        stats = {"success": duration, "fail": duration, "queue": duration}
        return {
            "model_stats": [
                {
                    "name": "echo", "version": "1", "last_inference": 1, "inference_count": 2,
                    "execution_count": 2, "inference_stats": stats,
                    "batch_stats": [{"batch_size": 1, "compute_infer": duration}],
                }
            ]
        }  # fmt: skip

    def index(self, ready_only=False):
        found = [
            {"name": "echo", "version": "1", "state": "READY", "reason": ""},
            {"name": "bad", "version": "1", "state": "UNAVAILABLE", "reason": "no"},
        ]
        return found[:1] if ready_only else found

    async def load(self, name, config=None, files=None):
        if name == "bad":
            raise ServeError(Status.INVALID, "failed to load 'bad', no version is available")
        self.loaded.append(("load", name, config, files))

    async def unload(self, name, dependents=False):
        self.loaded.append(("unload", name, dependents))


class Running:
    """A server that runs in its own thread; `call` runs a coroutine there."""

    def __init__(self, plane, front):
        self.plane, self.front = plane, front
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.port = self.call(self._start())
        self.url = f"127.0.0.1:{self.port}"

    async def _start(self):
        if isinstance(self.plane, NumpyPlane):
            self.plane.gate = asyncio.Event()
        else:
            await self.plane.start()
        await self.front.start()
        return self.front.port

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def open(self):
        self.loop.call_soon_threadsafe(self.plane.gate.set)

    def close(self):
        self.call(self.front.stop(0))
        if not isinstance(self.plane, NumpyPlane):
            self.call(self.plane.drain(5))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)
        self.loop.close()


@contextmanager
def serving(plane=None, shared=None, settings=None, authorize=None, **options):
    plane = plane or NumpyPlane()
    front = GrpcFront(
        plane, GrpcOptions(port=0, **options), shared=shared, settings=settings, authorize=authorize
    )
    running = Running(plane, front)
    try:
        yield running
    finally:
        running.close()


SPECIAL = [np.nan, np.inf, -np.inf, -0.0, 1e-40, 3.5]
