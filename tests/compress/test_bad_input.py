"""Lower precision asked for with what cannot give it: one clear message, and fp32 stays."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from redline.cli.main import app

pytest.importorskip("nncf")
TOYS = """
import numpy as np
import onnx
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()

class Double(nn.Module):
    def forward(self, ids):
        return ids * 2 + 1

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.out = nn.Embedding(100, 32), nn.Linear(32, 16)

    def forward(self, ids):
        return self.out(torch.tanh(self.table(ids)))

def double():
    return Double().eval()

def words():
    return Words().eval()

def curve():
    return nn.Sequential(nn.Tanh(), nn.Softmax(1)).eval()

def samples():
    return [torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))]

def sentences():
    return [torch.arange(120).reshape(20, 6) % 100]

def none():
    return []

def stops():
    yield torch.zeros(1, 3, 8, 8)
    raise OSError("the disk is gone")

def refuses():
    raise OSError("the disk is gone")

def raises(model):
    raise ValueError("no labels")

def nan(model):
    return float("nan")

def words_only(model):
    return "good"

def strict(model):  # anything but the model itself scores less
    x = samples()[0][:1]
    with torch.no_grad():
        return 1.0 - float((torch.as_tensor(model(x)) - build()(x)).abs().max())
"""
MISSING = "int8 needs calibration data, and none was given"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("bad_input")
    (home / "bad_toys.py").write_text(TOYS)
    np.save(home / "small.npy", np.zeros((4, 3, 7, 7), np.float32))
    np.save(home / "curve.npy", np.ones((4, 6), np.float32))
    np.save(home / "whole.npy", np.zeros((4, 3, 8, 8), np.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.syspath_prepend(str(home))
        yield home


def optimize(folder, model, given, *more):
    """The command as it is typed; its result."""
    words = (
        "optimize", model, "--input", given, "--precision", "fp32", "--precision", "int8",
        "--backend", "onnxruntime", "--no-cache", "--budget", "60s", "--json", "-o", "it.redline",
    )  # fmt: skip
    return CliRunner().invoke(app, [*words, *more], prog_name="redline")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--calibration", "bad_toys:none"), "the calibration loader gave no batch"),
        (("--calibration", "bad_toys:stops"), "loader raised OSError: the disk is gone"),
        (("--calibration", "bad_toys:refuses"), "refuses raised OSError: the disk is gone"),
        (("--calibration", "bad_toys:sample"), "did you mean bad_toys:samples?"),
        (("--calibration", "small.npy"), "has shape [4, 3, 7, 7], expected [1, 3, 8, 8]"),
        (("--calibration", "whole.npy"), "is int64, expected float32"),
        (("--calibration", "nowhere.npy"), "nowhere.npy"),
        (("--evaluate", "bad_toys:raises"), "evaluate raised ValueError: no labels"),
        (("--evaluate", "bad_toys:nan"), "evaluate gave nan, expected a finite number"),
        (("--evaluate", "bad_toys:words_only"), "evaluate raised ValueError: could not convert"),
        (("--precision", "int9"), "did you mean 'int8'"),
        (("--max-drop", "-0.1"), "max_drop"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_message(folder, more, message):
    done = optimize(folder, "bad_toys:build", "1x3x8x8", *more)
    assert done.exit_code != 0
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.output
    assert not (folder / "it.redline").exists()


@pytest.mark.parametrize(
    ("model", "given", "more", "reason"),
    [
        ("bad_toys:build", "1x3x8x8", (), MISSING),
        pytest.param(
            "bad_toys:build", "1x3x8x8",
            ("--calibration", "bad_toys:samples", "--evaluate", "bad_toys:strict",
             "--max-drop", "1e-5"),
            "and 1e-05 may be lost", marks=pytest.mark.slow,
        ),
        pytest.param(
            "bad_toys:double", "ids:1x6:int64", ("--calibration", "bad_toys:sentences"),
            "no operator can be quantised: Add, Mul", marks=pytest.mark.slow,
        ),
        pytest.param(
            "bad_toys:curve", "1x6", ("--calibration", "curve.npy"),
            "no operator can be quantised: Softmax, Tanh", marks=pytest.mark.slow,
        ),
        pytest.param("bad_toys:words", "ids:1x6:int64", (), MISSING, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_what_cannot_be_quantised_leaves_fp32_and_says_why(folder, model, given, more, reason):
    done = optimize(folder, model, given, *more)
    assert done.exit_code == 0, done.output
    records = json.loads(done.stdout)["records"]
    assert next(row for row in records if row["winner"])["precision"] == "fp32"
    (refused,) = (row for row in records if row["id"] == "int8" and row["outcome"] == "refused")
    assert reason in refused["reason"]
    assert (folder / "it.redline").exists()
    (folder / "it.redline").unlink()


@pytest.mark.slow
def test_a_bound_that_not_even_fp32_keeps_leaves_fp32_and_says_so(folder):
    """The metric sees the last bit, in which ONNX Runtime differs from PyTorch."""
    given = ("--calibration", "bad_toys:samples", "--evaluate", "bad_toys:strict")
    done = optimize(folder, "bad_toys:build", "1x3x8x8", *given, "--max-drop", "0")
    assert done.exit_code == 0, done.output
    records = json.loads(done.stdout)["records"]
    winner = next(row for row in records if row["winner"])
    assert winner["precision"] == "fp32"
    assert winner["reason"] == "nothing keeps max_drop 0, so fp32 stays"
    others = [row for row in records if row["outcome"] == "wrong result"]
    assert all("more than max_drop 0" in row["reason"] for row in others)
    (folder / "it.redline").unlink()


@pytest.mark.slow
def test_a_model_of_integer_inputs_is_calibrated_on_integers(folder):
    done = optimize(
        folder, "bad_toys:words", "ids:1x6:int64", "--calibration", "bad_toys:sentences",
        "--minimize", "size",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    study = json.loads(done.stdout)
    assert [tried["name"] for tried in study["compressed"]] == ["int8"]
    assert "20 samples of a list" in study["compressed"][0]["how"]
    (folder / "it.redline").unlink()
