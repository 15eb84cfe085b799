"""A small network with what makes compressing hard, trained on digits."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from redline.compress.finetune import Training, finetune, supervised
from redline.graph.serialize import to_bytes

LOSS = functional.cross_entropy


class Skip(nn.Module):
    """Two convolutions whose channels are coupled by a sum, with BatchNorm, and a depthwise one."""

    def __init__(self, width=16, classes=10):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.inside = nn.Conv2d(width, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.out = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.out_norm = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        x = x + functional.relu(self.inside(x))
        x = functional.relu(self.depthwise(x))
        x = functional.relu(self.out_norm(self.out(functional.max_pool2d(x, 2))))
        return self.head(x.mean((2, 3)))


def batches(x, y, size=64):
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def skip(digits):
    """A trained Skip and its data."""
    torch.manual_seed(0)
    net, loader = Skip(), batches(digits.x, digits.y)
    finetune(net, loader, supervised(LOSS), Training(6, 5e-3))

    def accuracy(model):
        with torch.no_grad():
            return float((model(digits.test_x).argmax(1) == digits.test_y).float().mean())

    assert accuracy(net) > 0.9
    return SimpleNamespace(net=net, loader=loader, accuracy=accuracy, x=digits.test_x)


@pytest.fixture
def untouched(skip):
    """The model is bit for bit what it was, in its mode, without hooks, whatever the test did."""
    before = {name: value.clone() for name, value in skip.net.state_dict().items()}
    modes = [part.training for part in skip.net.modules()]
    yield
    after = skip.net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert [part.training for part in skip.net.modules()] == modes
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in skip.net.modules())


def in_onnxruntime(module, x, folder):
    """The module's ONNX graph, what ONNX Runtime computes, and the operators that it runs."""
    from redline.capture.capture import capture

    captured = capture(module, x[:1])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the runner does
    options.optimized_model_filepath = str(folder / "run.onnx")
    session = onnxruntime.InferenceSession(
        to_bytes(captured.graph), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    found = [session.run(None, {name: row[None].numpy()})[0] for row in x]
    kinds = [node.op_type for node in onnx.load(folder / "run.onnx").graph.node]
    return captured.graph, np.concatenate(found), kinds
