"""ExportedProgram, TorchScript, and what .pt files turn out to hold."""

import pytest
import torch
from agreement import assert_graph_agrees

from redline.capture.capture import capture
from redline.errors import InputError, ModelError, UnsafeError


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.layer(x))


class Harmful:
    """Unpickling it would create the file that it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


X = torch.randn(2, 4)


def test_an_exported_program():
    program = torch.export.export(Net().eval(), (X,))
    model = capture(program)
    assert model.origin == "exported-program"
    assert model.signature.inputs[0].name == "x"
    assert_graph_agrees(model)


def test_an_exported_program_keeps_its_dynamic_dims():
    batch = torch.export.Dim("batch", min=1, max=8)
    program = torch.export.export(Net().eval(), (X,), dynamic_shapes={"x": {0: batch}})
    model = capture(program)
    (dim,) = model.signature.dims
    assert (dim.min, dim.max) == (1, 8)
    assert_graph_agrees(model, [{dim.name: 1}, {dim.name: 8}])


def test_a_pt2_file_only_on_request(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(Net().eval(), (X,)), path)
    with pytest.raises(UnsafeError, match=r"can run code.*\n.*\n.*trust"):
        capture(path)
    assert_graph_agrees(capture(path, trust=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit warns of its own age
@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, X)])
def test_torchscript_from_a_file(tmp_path, make):
    path = tmp_path / "net.pt"
    make(Net().eval()).save(path)
    model = capture(path, X)
    assert model.origin == "torchscript"
    assert_graph_agrees(model)
    with pytest.raises(InputError, match="example_inputs is missing"):
        capture(path)


def test_weights_alone_are_not_a_model(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(Net().state_dict(), path)
    with pytest.raises(ModelError, match=r"holds weights \(2 entries\).*\n.*\n.*load_state_dict"):
        capture(path, X)


def test_a_pickled_model_is_refused_and_nothing_in_it_runs(tmp_path):
    path, planted = tmp_path / "model.pt", tmp_path / "planted"
    torch.save({"model": Harmful(planted)}, path)
    with pytest.raises(ModelError, match="not a TorchScript file"):
        capture(path, X)
    assert not planted.exists()


@pytest.mark.parametrize("name", ["net.pt", "net.onnx", "net.txt"])
def test_a_file_of_something_else(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"neither this nor that" * 10)
    with pytest.raises(ModelError):
        capture(path, X)


def test_a_missing_file_says_did_you_mean(tmp_path):
    (tmp_path / "network.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"does not exist\n.*did you mean .*network\.onnx"):
        capture(tmp_path / "netwerk.onnx")
    with pytest.raises(InputError, match="is a folder"):
        capture(tmp_path)
