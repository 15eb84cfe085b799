"""The README's code and commands do what it says."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from redline.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
SHELL = [line for kind, block in BLOCKS if kind != "python" for line in block.splitlines()]
COMMANDS = [line for line in SHELL if line.startswith("redline ")]
TARGETS = [line.split()[1] for line in SHELL if line.startswith("make ")]


def test_there_is_something_to_test():
    assert len(COMMANDS) >= 5
    assert {"demo", "test"} <= set(TARGETS)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_understood(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *rest = shlex.split(line)[1:]
    for word in rest:
        if word.endswith((".redline", ".onnx", ".npy")):
            Path(word).touch()  # some commands look whether the file is there
    command = get_command(app).commands[name]
    command.make_context(name, rest)  # a wrong option or argument raises click's UsageError


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_is_there(target):
    done = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_venv_line_names_files_that_are_there():
    line = next(line for line in SHELL if line.startswith("python -m venv"))
    assert line.endswith("pip install -r requirements.txt")
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in pins if line and not line.startswith("#")]
    assert wanted[-1] == "-e ."
    assert all("==" in line for line in wanted[:-1])


@pytest.mark.slow  # it uses all of the budget that it states
def test_the_example_runs_as_written(tmp_path):
    example = next(block for kind, block in BLOCKS if kind == "python" and "import torch" in block)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "torch.Size([3, 10])" in done.stdout
    assert {"model.redline", "report.html"} <= {path.name for path in tmp_path.iterdir()}
