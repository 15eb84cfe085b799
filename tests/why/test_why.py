"""What `why` finds out about a case: lines, variables, writes, export failures, whole commands."""

import json
import sys

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from redline import layout
from redline.capture.failures import FAILURES
from redline.cli.main import app
from redline.diagnosis import run_and_explain, why, why_of_log
from redline.errors import InputError


def caught(function, *args):
    try:
        function(*args)
    except Exception as error:
        return error
    raise AssertionError("it did not fail")


def top_k(correct, k):
    return correct[:k].view(-1)  # the line of the well-known snippet


def test_the_view_on_the_line_is_worked_out_from_the_frames_variables():
    told = why(caught(top_k, torch.zeros(8, 5).t(), 3))
    assert told.where.startswith("test_why.py:")
    assert told.where.endswith("# the line of the well-known snippet")
    (detail,) = told.details
    assert detail.startswith("view(-1) of (3, 8) with strides (1, 5): not legal")
    assert "reshape(-1) copies 96 bytes" in detail


def test_a_call_in_the_line_is_not_repeated():
    calls = []

    def turned():
        calls.append(1)
        return torch.zeros(2, 3).t()

    told = why(caught(lambda: turned().view(6)))
    assert told.id == "view-strides"
    assert told.details == ()
    assert len(calls) == 1


def test_the_writes_are_named_when_they_were_recorded():
    def step():
        a = torch.zeros(3, 4, requires_grad=True)
        b = a.sigmoid()
        b.mul_(2)  # first
        b[0] = 1  # second
        b.sum().backward()

    def recorded():
        with layout.writes():
            step()

    told = str(why(caught(recorded)))
    assert "write 1: mul_ at test_why.py" in told
    assert "b.mul_(2)  # first" in told
    assert "at version 2" in told
    assert "with redline.layout.writes()" in str(why(caught(step)))


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # here
            return x + 1
        return x - 1


def test_failures_of_export_come_from_the_table_of_capture():
    told = why(caught(torch.export.export, Branch(), (torch.zeros(3),)))
    assert told.id == "data-dependent-branch"
    assert "torch.where" in told.change
    assert told.where.endswith("# here")


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.id)
def test_every_class_of_export_failure_has_words(failure):
    assert failure.what
    assert failure.hint


def test_an_ordinary_exception_is_not_taken_for_one_of_export():
    told = why(PermissionError("Permission denied: 'Generator'"))
    assert told.id == ""
    assert "Permission denied" in told.what


def test_our_own_errors_keep_their_hint():
    told = why(caught(layout.describe, 3))
    assert told.what == "a int is no tensor"
    assert "DLPack" in told.change or "__dlpack__" in told.change


def test_what_is_no_exception_is_refused():
    with pytest.raises(InputError, match="a int is no exception"):
        why(3)


SCRIPT = """
import sys, torch
print("out")
print("err", file=sys.stderr)
def head(x):
    return x.t().view(-1)
try:
    head(torch.zeros(2, 3))
except RuntimeError as error:
    raise ValueError("in step 3") from error
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "failing.py"
    path.write_text(SCRIPT)
    return path


def test_a_command_is_run_and_its_failure_explained(script, capfd):
    status, told = run_and_explain([sys.executable, str(script)])
    out, err = capfd.readouterr()
    assert status == 1
    assert out == "out\n"
    assert err.startswith("err\n")
    assert "ValueError: in step 3" in err
    assert told.id == "view-strides"
    assert told.where.startswith("failing.py:")


def test_the_commands_exit_status_is_kept(script, tmp_path, capfd):
    fine = tmp_path / "fine.py"
    fine.write_text("import sys; sys.exit(0)")
    assert run_and_explain([sys.executable, str(fine)]) == (0, None)
    fine.write_text("import sys; sys.exit(7)")
    assert run_and_explain([sys.executable, str(fine)])[0] == 7
    with pytest.raises(InputError, match="cannot be started"):
        run_and_explain(["no-such-program-anywhere"])


def test_redline_why_on_the_command_line(script):
    done = CliRunner().invoke(app, ["why", "--", sys.executable, str(script)])
    assert done.exit_code == 1
    assert "view() would have to copy" in done.stderr
    log = "Traceback (most recent call last):\nRuntimeError: Target 5 is out of bounds.\n"
    done = CliRunner().invoke(app, ["why"], input=log)
    assert done.exit_code == 0
    assert "a class label of 5" in done.stdout


def test_redline_why_as_json(script):
    log = "Traceback (most recent call last):\nRuntimeError: Target 5 is out of bounds.\n"
    done = CliRunner().invoke(app, ["why", "--json"], input=log)
    assert json.loads(done.stdout)["id"] == "target-range"
    assert json.loads(CliRunner().invoke(app, ["why", "--json"], input="fine\n").stdout) is None
    done = CliRunner().invoke(app, ["why", "--json", "--", sys.executable, str(script)])
    assert done.exit_code == 1
    assert json.loads(done.stderr.splitlines()[-1])["id"] == "view-strides"


def test_a_log_without_a_failure():
    assert why_of_log("epoch 1\n") is None
