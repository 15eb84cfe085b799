"""Every command as a user types it, on a toy network; the engine is made once, by `optimize`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import redline
from redline.cli.main import app
from redline.errors import BackendError

TOYS = """
import torch

def build():
    print("the factory talks")
    torch.manual_seed(0)
    first, last = torch.nn.Conv2d(3, 8, 3), torch.nn.Linear(288, 10)
    return torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Flatten(), last).eval()

def training():
    return build().train()

def broken():
    raise RuntimeError("no weights here")
"""
SHAPE = "1x3x8x8"


def call(*words, **environment):
    return CliRunner().invoke(app, list(map(str, words)), env=environment, prog_name="redline")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a module of factories, and what `redline optimize` left in it."""
    home = tmp_path_factory.mktemp("workshop")
    (home / "cli_toys.py").write_text(TOYS)
    before = Path.cwd()
    os.chdir(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(home))
        backends = ("--backend", "onnxruntime", "--backend", "eager")
        files = ("-o", "toy.redline", "--report", "toy.html")
        done = call(
            "optimize", "cli_toys:build", "--input", SHAPE, *backends, *files,
            "--budget", "30s", "--json",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        (home / "optimize.json").write_text(done.stdout)
        (home / "optimize.err").write_text(done.stderr)
        yield home
    os.chdir(before)


def test_optimize_prints_one_json_object_and_talks_on_stderr(folder):
    told = json.loads((folder / "optimize.json").read_text())
    records = told["records"]
    assert {record["backend"] for record in records} == {"onnxruntime", "eager"}
    assert sum(record["winner"] for record in records) == 1
    talk = (folder / "optimize.err").read_text()
    assert "the factory talks" in talk
    assert "engine: toy.redline" in talk


def test_optimize_writes_the_engine_and_the_report(folder):
    assert (folder / "toy.html").read_text().startswith("<!doctype html>")
    x = torch.randn(1, 3, 8, 8)
    sys.path.insert(0, str(folder))
    from cli_toys import build

    with redline.load(folder / "toy.redline") as engine:
        torch.testing.assert_close(engine(x), build()(x).detach(), rtol=1e-4, atol=1e-5)


def test_optimize_again_is_from_cache_and_prints_the_table(folder):
    backends = ("--backend", "onnxruntime", "--backend", "eager")
    done = call("optimize", "cli_toys:build", "--input", SHAPE, *backends, "--budget", "30s")
    assert done.exit_code == 0, done.output
    assert "onnxruntime" in done.stdout
    assert "from cache" in done.stdout
    assert "engine: build.redline" in done.stderr  # named after the factory
    with redline.load(folder / "build.redline") as engine:
        assert engine.report.winner.from_cache


def test_run_on_the_stored_inputs_shows_a_table(folder):
    done = call("run", "toy.redline")
    assert done.exit_code == 0, done.output
    assert "float32" in done.stdout
    assert "[1, 10]" in done.stdout
    assert "ms for this one call" in done.stderr


def test_run_saves_what_the_model_returns(folder):
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.save("x.npy", np.asfortranarray(x))
    done = call("run", "toy.redline", "--input", "x.npy", "-o", "y.npy")
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    with redline.load("toy.redline") as engine:
        np.testing.assert_allclose(np.load("y.npy"), engine(x), rtol=1e-5, atol=1e-6)
    assert call("run", "toy.redline", "--input", "x.npy", "-o", "y.npz").exit_code == 0
    with np.load("y.npz") as saved:
        np.testing.assert_array_equal(next(iter(saved.values())), np.load("y.npy"))


def test_run_as_json_tells_shapes_and_values(folder):
    told = json.loads(call("run", "toy.redline", "--json").stdout)
    (output,) = told["outputs"].values()
    assert output["shape"] == [1, 10]
    assert output["min"] <= output["mean"] <= output["max"]
    assert len(output["first"]) == 6
    assert told["seconds"] > 0


def test_explain_says_why_and_writes_the_page(folder):
    done = call("explain", "toy.redline", "--report", "again.html")
    assert done.exit_code == 0, done.output
    assert "From model to machine code" in done.stdout
    assert Path("again.html").stat().st_size > 10_000


def test_explain_as_json_is_what_optimize_said(folder):
    told = redline.Report.from_json(call("explain", "toy.redline", "--json").stdout)
    said = redline.Report.from_json((folder / "optimize.json").read_text())
    assert told.records == said.records


def test_bench_times_engine_and_module_side_by_side(folder):
    done = call("bench", "toy.redline", "cli_toys:build", "--budget", "6s", "--json")
    assert done.exit_code == 0, done.output
    records = json.loads(done.stdout)["records"]
    assert [record["backend"] for record in records] == ["onnxruntime", "eager"]
    assert all(record["timing"]["median"] > 0 for record in records)
    assert records[1]["error"] < 1e-4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimize", "cli_toys:training", "--input", SHAPE], "--eval"),
        (["optimize", "cli_toys:broken", "--input", SHAPE], "no weights here"),
        (["optimize", "cli_toys:buidl", "--input", SHAPE], "did you mean cli_toys:build"),
        (["optimize", "cli_toyz:build", "--input", SHAPE], "cli_toyz"),
        (["optimize", "cli_toys:build"], "example_inputs is missing"),
        (["optimize", "cli_toys:build", "--input", "1x4x8x8"], "3 channels"),
        (["optimize", "cli_toys:build", "--input", "one"], "cannot be read"),
        (["optimize", "cli_toys.py"], "not a model"),
        (["optimize", "nope.onnx"], "nope.onnx does not exist"),
        (
            ["optimize", "cli_toys:build", "--input", SHAPE, "--backend", "onxruntime"],
            "did you mean",
        ),
        (["optimize", "cli_toys:build", "--input", SHAPE, "--precision", "fp7"], "precision"),
        (["optimize", "cli_toys:build", "--input", SHAPE, "--budget", "0"], "budget"),
        (["optimize", "cli_toys:build", "--input", SHAPE, "--budget", "soon"], "'90s'"),
        (["optimize", "cli_toys:build", "--input", SHAPE, "--minimize", "speed"], "latency"),
        (["optimize", "cli_toys:build", "--input", SHAPE, "--max-size", "big"], "40MB"),
        (["optimize", "cli_toys:build", "--dynamic", "batch=1:8"], "batch=1:8:32"),
        (["optimize", "cli_toys:build", "-o", "no/such/folder.redline"], "mkdir -p"),
        (["optimize", "cli_toys:build", "-o", "."], "redline"),
        (["optimize", "cli_toys:build", "-o", "toy.onnx"], ".redline"),
        (["optimize", "cli_toys:build", "--report", "toy.pdf"], ".html"),
        (["run", "toy.redline", "--input", "1x3x8x9"], "expected (1, 3, 8, 8)"),
        (["run", "toy.redline", "--input", "imput:1x3x8x8"], "did you mean"),
        (["run", "toy.redline", "--input", SHAPE, "--input", SHAPE], "got 2 inputs, expected 1"),
        (["run", "toy.redline", "--input", "1x3x8x8:float64"], "float64"),
        (["run", "toy.redline", "--input", "gone.npy"], "gone.npy"),
        (["run", "toy.redline", "-o", "y.txt"], ".npy or .npz"),
        (["run", "toy.redline", "--part", "openvin"], "part"),
        (["run", "gone.redline"], "gone.redline"),
        (["explain", "gone.redline"], "gone.redline"),
        (["bench", "toy.redline", "nope.onnx"], "nope.onnx"),
        (["bench"], "TARGET"),
        (["optimise"], "Did you mean 'optimize'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_block_and_exit_code_2(folder, words, said):
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert done.stdout == ""


def test_what_was_on_disk_stays_when_optimize_fails(folder):
    before = (folder / "toy.redline").read_bytes()
    failed = call("optimize", "cli_toys:broken", "--input", SHAPE, "-o", "toy.redline")
    assert failed.exit_code == 2
    assert (folder / "toy.redline").read_bytes() == before


def test_a_damaged_engine_is_a_failure_and_no_traceback(folder):
    (folder / "cut.redline").write_bytes((folder / "toy.redline").read_bytes()[:5000])
    for command in ("run", "explain"):
        done = call(command, "cut.redline")
        assert done.exit_code == 1, done.output
        assert "cut.redline" in done.stderr
        assert "Traceback" not in done.output


def test_a_failure_that_is_not_the_inputs_is_exit_code_1(folder, monkeypatch):
    def fail(*_, **__):
        raise BackendError("nothing works here", where="everywhere", hint="try later")

    monkeypatch.setattr(redline, "optimize", fail, raising=False)
    done = call("optimize", "cli_toys:build", "--input", SHAPE)
    assert done.exit_code == 1
    assert "error: nothing works here\n  where: everywhere\n  hint: try later" in done.stderr
    loud = call("optimize", "cli_toys:build", "--input", SHAPE, REDLINE_DEBUG="1")
    assert "Traceback" in loud.stderr


def test_ctrl_c_is_exit_code_130(folder, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(redline, "optimize", stop, raising=False)
    done = call("optimize", "cli_toys:build", "--input", SHAPE)
    assert done.exit_code == 130
    assert "Traceback" not in done.output


def test_no_colour_in_a_pipe(folder):
    assert "\x1b[" not in call("explain", "toy.redline").output


def test_every_command_prints_json_on_request():
    for command in app.registered_commands:
        assert "json" in command.callback.__annotations__, command.callback


def test_help_is_quick_because_it_loads_nothing_heavy():
    code = (
        "import sys; import redline.cli.main\n"
        "print([name for name in ('torch', 'numpy', 'onnx', 'rich.table') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "redline", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"redline {redline.__version__}\n"
