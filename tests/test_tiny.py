"""The smoke test: a model in, a verified engine out, the same numbers from its file."""

import numpy as np
import pytest
import torch

import redline
from redline.errors import SignatureError


def test_optimize_call_save_load(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    x = torch.randn(2, 8)
    with redline.optimize(model.eval(), x, backends=["onnxruntime"], budget="20s") as engine:
        with torch.inference_mode():
            expected = model(x)
        torch.testing.assert_close(engine(x), expected)
        assert engine.report.winner.backend == "onnxruntime"
        assert engine.report.winner.error <= engine.report.winner.tolerance
        path = engine.save(tmp_path / "tiny.redline")
    with redline.load(path) as loaded:
        np.testing.assert_allclose(loaded(x.numpy()), expected.numpy(), rtol=1e-5, atol=1e-6)
        with pytest.raises(SignatureError):
            loaded(x.numpy().astype(np.float64))
