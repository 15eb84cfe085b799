"""An engine as a model of Triton's: its configuration is what Triton's own message can read."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from typer.testing import CliRunner

import redline
from redline.cli.main import app
from redline.errors import RefusedError, SaveError
from redline.signature import Signature, TensorSpec
from redline.tree import Tree
from redline.triton_export import export_triton, triton_config


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Softmax(-1)).eval()
    path = tmp_path_factory.mktemp("engine") / "small.redline"
    with redline.optimize(
        net, torch.zeros(2, 8), dynamic={"batch": (1, 2, 16)}, backends=["onnxruntime"],
        budget="15s", progress=False,
    ) as made:  # fmt: skip
        made.save(path)
    return path, net


def message(text: str):
    service = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    return text_format.Parse(text, service.ModelConfig())


def test_what_triton_reads(engine, tmp_path):
    path, net = engine
    folder = export_triton(path, tmp_path / "models")
    config = message((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 16)
    (one,), (two,) = config.input, config.output
    assert (one.name, list(one.dims)) == ("input", [8])
    assert list(two.dims) == [4]
    assert (
        one.data_type
        == two.data_type
        == message("input { data_type: TYPE_FP32 }").input[0].data_type
    )
    assert config.HasField("dynamic_batching")
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
    x = np.random.default_rng(0).standard_normal((3, 8), np.float32)
    want = net(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(session.run(None, {"input": x})[0], want, atol=1e-6)


def test_our_own_server_reads_it_as_well(engine, tmp_path):
    from redline.serve.pbtxt import parse_pbtxt

    path, _ = engine
    folder = export_triton(path, tmp_path, "other")
    told = parse_pbtxt((folder / "config.pbtxt").read_text())
    assert told["name"] == "other"


def test_what_is_there_is_not_written_over(engine, tmp_path):
    path, _ = engine
    runner = CliRunner()
    assert runner.invoke(app, ["export-triton", str(path), str(tmp_path)]).exit_code == 0
    before = (tmp_path / "small" / "config.pbtxt").read_bytes()
    with pytest.raises(SaveError, match="exists"):
        export_triton(path, tmp_path)
    assert (tmp_path / "small" / "config.pbtxt").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["small"]


def test_types_and_fixed_shapes():
    specs = (TensorSpec("ids", "int64", (1, 7)), TensorSpec("on", "bool", ()))
    leaf = Tree()
    signature = Signature(specs, (TensorSpec("y", "uint8", (1, 2)),), leaf, leaf)
    config = message(triton_config("m", signature))
    assert config.max_batch_size == 0
    assert [list(tensor.dims) for tensor in config.input] == [[1, 7], [1]]
    assert config.input[1].HasField("reshape")
    odd = Signature((TensorSpec("z", "complex64", (1,)),), (), leaf, leaf)
    with pytest.raises(RefusedError, match="no type for input 'z'"):
        triton_config("m", odd)
