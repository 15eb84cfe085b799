"""`redline tune-training`, in a process of its own; and the lines of a script that it names."""

import json
import subprocess
import sys

import pytest

from redline.errors import InputError
from redline.train.tuning.script import load_loop
from redline.train.tuning.setup import Setup
from redline.train.tuning.source import edits

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

model = nn.Linear(4, 2)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=False)
data = TensorDataset(torch.randn(32, 4), torch.randint(0, 2, (32,)))
loader = DataLoader(data, batch_size=8, shuffle=True)
loss_fn = nn.CrossEntropyLoss()

def parts():
    return {"model": model, "optimizer": optimizer, "loss": loss_fn, "loader": loader,
            "set_to_none": False}

def wrong():
    return 3

def train():
    for step, (x, y) in enumerate(loader):
        optimizer.zero_grad(set_to_none=False)
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        print(loss.item())

if __name__ == "__main__":
    train()
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    path = tmp_path / "planted_script.py"
    path.write_text(SCRIPT)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "planted_script", raising=False)
    yield path
    sys.modules.pop("planted_script", None)


def test_the_command_prints_data_and_writes_the_page(script):
    done = subprocess.run(
        [sys.executable, "-m", "redline", "tune-training", f"{script}:parts", "--budget", "3s",
         "--skip", "compile", "--skip", "batch", "--json", "--report", "page.html"],
        cwd=script.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert "zero_grad(set_to_none=False)" in [fault["name"] for fault in data["faults"]]
    assert "<!doctype html>" in (script.parent / "page.html").read_text()


def test_the_lines_of_the_script_are_named(script):
    loop = load_loop(f"{script}:parts")
    assert loop.source == str(script)
    old = Setup(set_to_none=False)
    new = Setup(workers=2, persistent=True, kernel="fused", log_every=50, autocast="bfloat16")
    found = {edit.where: edit for edit in edits(loop.source, old, new, "cpu")}
    lines = SCRIPT.splitlines()

    def at(text):
        number = next(n for n, line in enumerate(lines, 1) if text in line)
        return found[f"planted_script.py:{number}"]

    assert at("loader = DataLoader").new == (
        "DataLoader(data, batch_size=8, shuffle=True, num_workers=2, persistent_workers=True)"
    )
    assert (
        at("torch.optim.Adam").new == "torch.optim.Adam(model.parameters(), lr=0.001, fused=True)"
    )
    assert at("zero_grad").new == "optimizer.zero_grad()"
    assert at("print(loss.item())").new.startswith("if step % 50 == 0:")
    assert at("loss_fn(model(x), y)").new.startswith('with torch.autocast("cpu"')


def test_without_a_file_places_are_told_in_words():
    found = edits(None, Setup(set_to_none=False), Setup(), "cpu")
    assert [edit.where for edit in found] == ["where the loop calls zero_grad"]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("absent.py:parts", "there is no file"),
        ("{script}:part", "has no 'part'"),
        ("{script}:wrong", "returned a int"),
        ("no_such_module_here:parts", "there is no module"),
    ],
)
def test_a_target_that_cannot_be_used_says_why(script, target, message):
    with pytest.raises(InputError, match=message):
        load_loop(target.format(script=script))
