import logging

import pytest
import torch

from redline.dynamo import redline_backend

OPTIONS = {"backends": ["onnxruntime"], "budget": "30s"}


class Broken(torch.nn.Module):
    """A model whose forward Dynamo must cut in two."""

    def __init__(self):
        super().__init__()
        self.before = torch.nn.Linear(8, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.after = torch.nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.before(x)))
        torch._dynamo.graph_break()
        return self.after(x), x.sum()


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_torch_compile_finds_the_backend_by_name():
    assert "redline" in torch._dynamo.list_backends(exclude_tags=())


def test_a_model_with_a_graph_break_runs_on_engines():
    model = Broken().eval()
    fast = torch.compile(model, backend="redline", dynamic=False, options=OPTIONS)
    x = torch.randn(3, 8)
    with torch.no_grad():
        for _ in range(2):
            for got, wanted in zip(fast(x), model(x), strict=True):
                torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # Dynamo's own
def test_training_keeps_its_gradients():
    model = Broken()
    fast = torch.compile(model, backend="redline", dynamic=False, options=OPTIONS)
    fast(torch.randn(3, 8))[0].sum().backward()
    assert model.after.weight.grad is not None


def test_changed_weights_are_noticed(caplog):
    model = torch.nn.Linear(4, 2).eval()
    fast = torch.compile(model, backend=redline_backend, dynamic=False, options=OPTIONS)
    x = torch.randn(1, 4)
    with torch.no_grad():
        fast(x)
        model.weight.mul_(2)
        with caplog.at_level(logging.WARNING, "redline"):
            torch.testing.assert_close(fast(x), model(x))
    assert "weights were changed" in caplog.text
