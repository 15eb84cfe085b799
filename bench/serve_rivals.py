"""The other servers of bench/serve.py; runs in their virtual environments, which have no torch.

    python serve_rivals.py litserve|ray PORT            (MLServer and BentoML import this file)
    python serve_rivals.py kserve PORT GRPC_PORT

Each does what ours does: the bytes of the inputs in, the same ONNX session with the same threads,
the bytes of the outputs back. Tensors travel in the cheapest way that each offers: base64 in JSON,
or as they are; as a list of numbers only over REST in JSON where the protocol is the same.
"""

from __future__ import annotations

import base64
import json
import math
import os
import sys

import numpy as np
import onnxruntime

TOLD = json.loads(os.environ["SERVE_BENCH"])  # onnx, threads, inputs: name, dtype, shape


class Engine:
    """The session that every server calls."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = TOLD["threads"]
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            TOLD["onnx"], options, providers=["CPUExecutionProvider"]
        )

        self.outputs = [output.name for output in self.session.get_outputs()]

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        names = [name for name, _, _ in TOLD["inputs"]]
        return self.session.run(None, dict(zip(names, arrays, strict=True)))

    def raw(self, data: bytes) -> bytes:
        arrays, start = [], 0
        for _, dtype, shape in TOLD["inputs"]:
            array = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
            arrays.append(array)
            start += array.nbytes
        return b"".join(y.tobytes() for y in self.run(arrays))

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


def kserve(port: int) -> None:
    sys.argv += ["--configure_logging", "false"]  # read on import; three lines a request otherwise
    from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
    from kserve.utils.numpy_codec import from_np_dtype

    class Served(Model):
        def load(self) -> bool:
            self.engine = Engine()
            self.ready = True
            return True

        async def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
            raw, outputs = payload.use_binary_outputs, []
            found = self.engine.run([one.as_numpy() for one in payload.inputs])
            for name, y in zip(self.engine.outputs, found, strict=True):
                output = InferOutput(name, list(y.shape), from_np_dtype(y.dtype))
                output.set_data_from_numpy(y, binary_data=raw)
                outputs.append(output)
            return InferResponse(payload.id or "", self.name, outputs, use_binary_outputs=raw)

    model = Served("m")
    model.load()
    options = {"workers": 1, "enable_docs_url": False, "enable_latency_logging": False}
    ModelServer(http_port=port, grpc_port=int(sys.argv[3]), **options).start([model])


if "mlserver" in sys.modules:
    from mlserver import MLModel
    from mlserver.codecs import NumpyCodec
    from mlserver.types import InferenceRequest, InferenceResponse

    class MlserverModel(MLModel):
        async def load(self) -> bool:
            self.engine = Engine()
            return True

        async def predict(self, payload: InferenceRequest) -> InferenceResponse:
            arrays = [
                NumpyCodec.decode_input(one).astype(dtype, copy=False).reshape(shape)
                for one, (_, dtype, shape) in zip(payload.inputs, TOLD["inputs"], strict=True)
            ]
            names, found = self.engine.outputs, self.engine.run(arrays)
            outputs = [NumpyCodec.encode_output(*one) for one in zip(names, found, strict=True)]
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
    {"litserve": litserve, "ray": ray, "kserve": kserve}[sys.argv[1]](int(sys.argv[2]))
