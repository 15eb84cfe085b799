"""`redline doctor`: its tables, its JSON and its exit status."""

import json

import pytest
import typer
from typer.testing import CliRunner

from redline import doctor, machine
from redline.cli import doctor as command
from redline.doctor import Finding

GOOD = [Finding(name, "core", True, "1.0") for name in ("torch", "onnx", "onnxruntime")]
BAD = [*GOOD[1:], Finding("torch", "core", False, reason="torch is [broken]", command="mend it")]


def invoke(monkeypatch, findings, *words):
    monkeypatch.setattr(doctor, "examine", lambda: findings)
    app = typer.Typer()
    app.command()(command.doctor)
    return CliRunner().invoke(app, list(words))


@pytest.mark.parametrize(("findings_", "code"), [(GOOD, 0), (BAD, 1), ([], 1), (GOOD[:2], 1)])
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_the_exit_status_says_whether_it_is_healthy(monkeypatch, findings_, code, words):
    result = invoke(monkeypatch, findings_, *words)
    assert result.exit_code == code, result.output


def test_optional_things_do_not_make_it_ill(monkeypatch):
    ill = Finding("openvino", "backend", False, reason="it is not there", command="pip install it")
    assert invoke(monkeypatch, [*GOOD, ill]).exit_code == 0


def test_json_is_one_object(monkeypatch):
    told = json.loads(invoke(monkeypatch, BAD, "--json").stdout)
    assert set(told) == {"machine", "findings"}
    assert told["machine"]["peak_flops"] > 0
    assert told["findings"][-1] == {
        "name": "torch",
        "kind": "core",
        "usable": False,
        "version": "",
        "reason": "torch is [broken]",
        "command": "mend it",
    }


def test_the_tables_say_what_is_wrong_and_what_mends_it(monkeypatch):
    text = invoke(monkeypatch, BAD).stdout
    assert "torch is [broken]" in text
    assert "\nmend it  # torch\n" in text
    assert machine.card().fingerprint in text


def test_refresh_measures_again(monkeypatch):
    seen = []
    card = machine.card()

    def measure(*, refresh):
        seen.append(refresh)
        return card

    monkeypatch.setattr(machine, "card", measure)
    invoke(monkeypatch, GOOD)
    invoke(monkeypatch, GOOD, "--refresh")
    assert seen == [False, True]
