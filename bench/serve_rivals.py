"""The other servers of bench/serve.py; runs in their virtual environments, which have no torch.

    python serve_rivals.py litserve|ray PORT          (MLServer and BentoML import this file)

Each does what ours does: the bytes of one float32 or int64 tensor in, the same ONNX session with
the same threads, the bytes of the first output back. Tensors travel in the cheapest way that each
offers: base64 in JSON, or as they are; never as a list of numbers, MLServer over REST left out.
"""

from __future__ import annotations

import base64
import json
import os
import sys

import numpy as np
import onnxruntime

TOLD = json.loads(os.environ["SERVE_BENCH"])  # onnx, shape, dtype, threads


class Engine:
    """The session that every server calls."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = TOLD["threads"]
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            TOLD["onnx"], options, providers=["CPUExecutionProvider"]
        )

    def array(self, x: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"x": x})[0]

    def raw(self, data: bytes) -> bytes:
        return self.array(np.frombuffer(data, TOLD["dtype"]).reshape(TOLD["shape"])).tobytes()

    def text(self, text: str) -> str:
        return base64.b64encode(self.raw(base64.b64decode(text))).decode()


if sys.argv[1:2] == ["litserve"]:  # its worker processes import this file again for the class
    import litserve as ls

    class Api(ls.LitAPI):
        def setup(self, device: str) -> None:
            self.engine = Engine()

        def decode_request(self, request: dict[str, str]) -> str:
            return request["x"]

        def predict(self, x: str) -> str:
            return self.engine.text(x)

        def encode_response(self, output: str) -> dict[str, str]:
            return {"y": output}


def litserve(port: int) -> None:
    server = ls.LitServer(Api(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


def ray(port: int) -> None:
    import logging
    import signal

    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    @serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": 0})
    class Model:
        def __init__(self) -> None:
            self.engine = Engine()

        async def __call__(self, request: Request) -> Response:
            return Response(self.engine.raw(await request.body()))

    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Model.bind(), name="x", route_prefix="/predict")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()


if "mlserver" in sys.modules:
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest, InferenceResponse

    class MlserverModel(MLModel):
        async def load(self) -> bool:
            self.engine = Engine()
            return True

        async def predict(self, payload: InferenceRequest) -> InferenceResponse:
            x = NumpyCodec.decode_input(payload.inputs[0])
            y = self.engine.array(x.astype(TOLD["dtype"], copy=False).reshape(TOLD["shape"]))
            outputs = [NumpyCodec.encode_output("y", y)]
            return InferenceResponse(model_name=self.name, outputs=outputs)


if "bentoml" in sys.modules:
    import bentoml

    @bentoml.service(workers=1, traffic={"timeout": 60, "max_concurrency": 1000})
    class BentoModel:
        def __init__(self) -> None:
            self.engine = Engine()

        @bentoml.api
        def predict(self, x: str) -> str:
            return self.engine.text(x)


if __name__ == "__main__":
    {"litserve": litserve, "ray": ray}[sys.argv[1]](int(sys.argv[2]))
