"""`redline graph-view`, in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NETS = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(8, 4), nn.Dropout(), nn.Linear(4, 2))

def with_inputs():
    return build(), torch.zeros(3, 8)

def huge():
    return nn.Linear(100_000, 100_000)

class Choosy(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x

def choosy():
    return Choosy(8, 4)

def number():
    return 3
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def run(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "redline", "graph-view", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_text_json_and_html(nets: Path) -> None:
    done = run(nets, "nets:build", "--input", "3x8", "--html", "view.html")
    assert "saved for backward" in done.stdout
    assert "view: " in done.stderr
    assert (nets / "view.html").read_text().startswith("<!doctype html>")
    told = json.loads(run(nets, "nets:with_inputs", "--json", "--train").stdout)
    assert told["modules"][0]["flops"] == 2 * 3 * (8 * 4 + 4 * 2)
    assert told["mode"] == "training mode"


def test_a_model_that_would_not_fit_and_one_that_needs_values(nets: Path) -> None:
    told = json.loads(run(nets, "nets:huge", "--meta", "--input", "1x100000", "--json").stdout)
    assert told["modules"][0]["parameter_bytes"] == 4 * (100_000**2 + 100_000)
    failed = run(nets, "nets:choosy", "--input", "3x8", code=2)
    assert "looks at values" in failed.stderr
    assert "--real" in failed.stderr
    assert json.loads(run(nets, "nets:choosy", "--input", "3x8", "--real", "--json").stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nets:biuld", "--input", "3x8"), "did you mean nets:build?"),
        (("nets:build", "--input", "3x9"), "fails on these inputs"),
        (("nets:build",), "--input 1x3x224x224"),
        (("nets:number", "--input", "3x8"), "expected a torch.nn.Module"),
        (("nets:build", "--input", "3x8", "--meta", "--real"), "cannot run"),
        (("nets:build", "--input", "3x8", "--html", "view.txt"), "does not end in .html"),
    ],
)
def test_bad_input_is_one_clear_error(nets: Path, words: tuple[str, ...], said: str) -> None:
    failed = run(nets, *words, code=2)
    assert said in failed.stderr
    assert "Traceback" not in failed.stderr
    assert failed.stdout == ""
