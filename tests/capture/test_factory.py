"""What the command line names."""

import numpy as np
import pytest

from redline.capture.factory import load_factory, parse_inputs
from redline.errors import InputError, ModelError

SOURCE = """
import torch
net = torch.nn.Linear(4, 2).eval()
def build(): return torch.nn.ReLU().eval()
def broken(): raise ValueError("no weights")
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "zoo_for_factory.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_factory_is_called_and_a_module_is_taken():
    assert type(load_factory("zoo_for_factory:build")).__name__ == "ReLU"
    assert type(load_factory("zoo_for_factory:net")).__name__ == "Linear"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("zoo_for_factory", "names nothing in a module"),
        ("no_such_module:build", "no module 'no_such_module'"),
        ("zoo_for_factory:biuld", "did you mean zoo_for_factory:build"),
    ],
)
def test_what_cannot_be_found(target, words):
    with pytest.raises(InputError, match=words):
        load_factory(target)


def test_a_factory_that_fails():
    with pytest.raises(ModelError, match="ValueError: no weights"):
        load_factory("zoo_for_factory:broken")


def test_shapes_names_dtypes_and_files(tmp_path):
    np.save("x.npy", np.arange(3))
    np.savez("b.npz", p=np.ones(2), q=np.zeros(2))
    assert parse_inputs([]) is None
    (one,) = parse_inputs(["1x3x2"])
    assert one.shape == (1, 3, 2)
    assert one.dtype == np.float32
    named = parse_inputs(["ids:1x8:int64", "mask=1x8:bool"])
    assert list(named) == ["ids", "mask"]
    assert named["ids"].dtype == np.int64
    assert 0 <= named["ids"].min() <= named["ids"].max() < 100
    assert named["mask"].dtype == bool
    assert parse_inputs(["x.npy"])[0].tolist() == [0, 1, 2]
    assert list(parse_inputs(["b.npz"])) == ["p", "q"]
    np.testing.assert_array_equal(parse_inputs(["2x2"])[0], parse_inputs(["2x2"])[0])


@pytest.mark.parametrize("text", ["", "ax3", "1x3:floaty", "1,3", "missing.npy", "1x-3"])
def test_what_cannot_be_read(text):
    with pytest.raises(InputError):
        parse_inputs([text])


def test_some_names_are_not_enough():
    with pytest.raises(InputError, match="name all or none"):
        parse_inputs(["ids:1x8:int64", "1x8"])


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    np.save("evil.npy", np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        parse_inputs(["evil.npy"])
