"""The model "simple" in pytriton, in whose environment bench/serve_triton.py runs it.

python serve_pytriton.py HTTP_PORT GRPC_PORT
"""

import sys

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


@batch
def add_sub(INPUT0, INPUT1):  # noqa: N803 (the names of its tensors)
    return {"OUTPUT0": INPUT0 + INPUT1, "OUTPUT1": INPUT0 - INPUT1}


def tensors(*names):
    return [Tensor(name=name, dtype=np.int32, shape=(16,)) for name in names]


ports = {"http_port": int(sys.argv[1]), "grpc_port": int(sys.argv[2])}
local = {"http_address": "127.0.0.1", "grpc_address": "127.0.0.1", "allow_metrics": False}
with Triton(config=TritonConfig(**ports, **local)) as server:
    server.bind(
        model_name="simple",
        infer_func=add_sub,
        inputs=tensors("INPUT0", "INPUT1"),
        outputs=tensors("OUTPUT0", "OUTPUT1"),
        config=ModelConfig(max_batch_size=8),
    )
    server.serve()
