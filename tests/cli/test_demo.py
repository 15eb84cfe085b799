"""The demo: the same training on every run, and the whole of it once, with a small budget."""

import json
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from redline import demo
from redline.cli.main import app
from redline.errors import InputError, MissingError, RunError


def test_no_digit_is_both_trained_on_and_held_out():
    digits = demo.load_digits(0)
    seen = {image.tobytes() for image in digits.images}
    assert len(digits.images) + len(digits.held_out_images) == 1797
    assert sum(image.tobytes() in seen for image in digits.held_out_images) == 0
    assert np.bincount(digits.held_out_labels, minlength=10).min() >= 40


def test_training_is_the_same_on_every_run(monkeypatch):
    monkeypatch.setattr(demo, "_EPOCHS", 1)
    digits = demo.load_digits(0)
    one, two, other = demo.train(digits, 0), demo.train(digits, 0), demo.train(digits, 1)
    x = torch.from_numpy(digits.held_out_images[:4])
    assert not one.training
    torch.testing.assert_close(one(x), two(x), rtol=0, atol=0)
    assert not torch.allclose(one(x), other(x))


@pytest.mark.timeout(300)  # as long as the demo may take, and more on a busy machine
def test_the_whole_demo(tmp_path):
    out = tmp_path / "demo-out"
    words = ["demo", "--out", str(out), "--budget", "25s", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["torch_accuracy"] > 0.97
    assert told["engine_accuracy"] == told["torch_accuracy"]
    assert told["disagreements"] == 0
    assert told["held_out"] == 450
    assert told["speedup"] > 0
    assert {path.name for path in out.iterdir()} == {
        "classify.py", "digits.redline", "held_out.npz", "report.html",
    }  # fmt: skip
    assert "without torch" in done.stderr


def test_without_scikit_learn_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingError, match="scikit-learn") as caught:
        demo.run_demo(tmp_path)
    assert "pip install" in caught.value.hint


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be used"):
        demo.run_demo(tmp_path / "file")


def test_a_fresh_process_that_fails_says_why(tmp_path):
    with pytest.raises(RunError, match=r"digits\.redline"):
        demo.classify_apart(tmp_path, demo.load_digits(0))
