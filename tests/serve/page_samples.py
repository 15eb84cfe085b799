"""Three models behind the page, by the protocol's own bytes: binary tensors in and out."""

from __future__ import annotations

import json
import time
from typing import Any

from ops_samples import Marks, QuietPlane, echo, statistics  # type: ignore[import-not-found]

from redline.serve.messages import Request, Response
from redline.serve.metrics import Metrics
from redline.serve.ops import answer

KINDS = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "BF16", "FP32", "FP64", "BYTES",
)  # fmt: skip
MODELS = {
    "copy": [{"name": f"in_{kind}", "datatype": kind, "shape": [-1, 3]} for kind in KINDS],
    "image": [{"name": "pixels", "datatype": "FP32", "shape": [1, 3, 64, 64]}],
    "<img src=x onerror=alert(1)>": [{"name": "x", "datatype": "FP32", "shape": [2]}],
}


class Served:
    """Every model answers its inputs as they came; counts what it did, as a data plane does."""

    def __init__(self) -> None:
        self.plane = QuietPlane([statistics(name) for name in MODELS])
        self.metrics = Metrics(self.plane)
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await echo(scope, receive, send)
            return
        name = scope["path"].split("/")[3]
        if scope["path"].endswith("/infer"):
            await self._infer(name, scope, receive, send)
        else:
            told = {"name": name, "versions": ["1"], "inputs": MODELS[name], "outputs": []}
            await answer(send, 200, json.dumps(told).encode())

    async def _infer(self, name: str, scope: Any, receive: Any, send: Any) -> None:
        started, body, more = time.perf_counter(), b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        length = int(dict(scope["headers"])[b"inference-header-content-length"])
        inputs = json.loads(body[:length])["inputs"]
        if inputs[0]["shape"][:1] == [7]:  # a request that the model does not like
            error = json.dumps({"error": "input 'x' has shape <b>[7, 3]</b>"}).encode()
            await answer(send, 400, error)
            return
        row = next(row for row in self.plane.rows if row["name"] == name)
        row["inference_stats"]["success"]["count"] += 1
        row["inference_count"] += 1
        row["execution_count"] += 1
        now = time.perf_counter()
        marks = Marks(started, started, started, now, now)
        self.metrics.after(Request(name, "1", {}), Response(name, "1", {}), marks)
        head = json.dumps({"model_name": name, "outputs": inputs}).encode()
        kind = b"application/octet-stream"
        told = ((b"inference-header-content-length", b"%d" % len(head)),)
        await answer(send, 200, head + body[length:], kind, told)
