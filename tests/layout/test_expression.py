"""The evaluator of `redline layout`: tensors and views, and nothing else."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from redline.cli.main import app
from redline.errors import InputError
from redline.layout.expression import evaluate


@pytest.mark.parametrize(
    "text",
    [
        "torch.zeros(4, 6).t()[1:]",
        "torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1).view(4, 6)",
        "torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)",
        "torch.zeros(1, 3).expand(4, 3)[..., None, -1]",
        "torch.zeros(6, dtype=torch.int16).unfold(0, 3, 1)",
        "torch.zeros(3, 4).t() + torch.zeros(4, 3)",
        "torch.zeros(2, 3).mT @ torch.ones(2, 2 + 1)",
        "np.arange(12).reshape(3, 4)[::-1, ::2].T",
        "torch.zeros(12).as_strided((3, 3), (1, 1))",
    ],
)
def test_it_gives_what_python_gives(text):
    expected, given = eval(text), evaluate(text)
    assert given.shape == expected.shape
    if isinstance(given, np.ndarray):
        assert given.strides == expected.strides
    else:
        assert given.stride() == expected.stride()
        assert given.dtype == expected.dtype


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "torch.load('x')",
        "torch.ops.aten.add",
        "torch.zeros.__globals__",
        "torch.zeros(2).__class__",
        "torch.zeros(2).numpy()",
        "torch.zeros(2).add_(1)",
        "torch.zeros(2).apply_(print)",
        "torch.zeros(2).register_hook(print)",
        "torch.zeros(2).data_ptr()",
        "torch.from_file('x')",
        "np.load('x')",
        "np.zeros(2).tofile('x')",
        "np.zeros(2).astype('O')",
        "np.ctypeslib",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "torch.zeros(*(2, 3))",
        "torch.zeros(**{})",
        "f'{1}'",
        "'a' * 9",
        "[1] * 99999999",
        "2 ** 99999",
        "print(1)",
        "open",
        "1 if 1 else 2",
        "x := 3",
        "torch.zeros(2); 1",
        "torch",
        "3",
    ],
)
def test_what_is_not_a_tensor_or_a_view_is_refused(text):
    done = CliRunner().invoke(app, ["layout", text])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    "text",
    [
        "torch.zeros(99999, 99999)",
        "torch.zeros((99999, 99999))",
        "torch.empty(1 * 99999999999)",
        "torch.eye(99999)",
        "torch.arange(0, 1, 1e-12)",
        "torch.arange(99999999999)",
        "torch.zeros(1).expand(99999999999).contiguous()",
        "torch.zeros(1).expand(99999999999).double()",
        "torch.zeros(1).expand(99999999999) + 1",
        "torch.zeros(99999, 1) + torch.zeros(1, 99999)",
        "torch.zeros(99999, 1) @ torch.zeros(1, 99999)",
        "torch.zeros(9).repeat(99999999999)",
        "torch.zeros(1e400)",
    ],
)
def test_what_would_fill_the_memory_is_refused(text):
    with pytest.raises(InputError):
        evaluate(text)


def test_an_expanded_tensor_is_free_however_large():
    assert evaluate("torch.zeros(1).expand(99999999999)").shape == (99999999999,)


def test_errors_of_torch_are_told():
    with pytest.raises(InputError, match=r"fails: .*invalid for input of size 6"):
        evaluate("torch.zeros(6).view(5)")
    with pytest.raises(InputError, match="cannot be read"):
        evaluate("torch.zeros(")


def test_the_command(tmp_path):
    svg, page = tmp_path / "a.svg", tmp_path / "a.html"
    words = ["layout", "torch.zeros(4, 6).t()[1:]", "--view", "20"]
    done = CliRunner().invoke(app, [*words, "--svg", str(svg), "--report", str(page)])
    assert done.exit_code == 0, done.output
    assert "strides" in done.stdout
    assert "view(20) of (5, 4) with strides (1, 6): not legal" in done.stdout
    assert svg.read_text().startswith("<svg")
    assert "<svg" in page.read_text()


def test_the_command_as_json():
    done = CliRunner().invoke(app, ["layout", "torch.zeros(4, 6).t()", "--view", "24", "--json"])
    told = json.loads(done.stdout)
    assert told["layout"]["facts"]["strides"] == [1, 6]
    assert told["view"]["legal"] is False
    bad = CliRunner().invoke(app, ["layout", "torch.zeros(2)", "--view", "ab"])
    assert bad.exit_code == 2


def test_torch_is_what_it_says():
    assert evaluate("torch.zeros(2)").equal(torch.zeros(2))
