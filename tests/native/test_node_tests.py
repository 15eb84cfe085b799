"""ONNX's own backend node tests: the committed list holds, and no test fails."""

import re
import subprocess
import sys

import numpy as np
import pytest
from native_models import needs_compiler

import node_tests

pytestmark = needs_compiler


@pytest.fixture(scope="module")
def listed():
    return {line.split(":")[0]: line for line in node_tests.stored()}


@pytest.fixture(scope="module")
def cases():
    return node_tests.cases()


def held(chosen, listed):
    done = list(node_tests.results(chosen, node_tests.fastest()))
    wrong = [case.verdict() for case in done if case.verdict() != listed.get(case.name)]
    assert not wrong, "the list no longer holds; python tools/node_tests.py writes it anew"
    return done


def test_the_list_keeps_its_promise(listed):
    verdicts = [line.split(": ", 1)[1] for line in listed.values()]
    assert not [v for v in verdicts if v.startswith("FAIL")]
    assert sum(v.startswith("pass") for v in verdicts) >= 1500
    assert all(re.match(r"pass( \(bound: .+\))?$|refused: .+", v) for v in verdicts)


def test_a_sample_holds(cases, listed):
    """One in eight, and one for each operator; `make test-all` runs them all."""
    order = np.random.default_rng(7).permutation(len(cases))
    seen, chosen = set(), []
    for place in order:
        case = cases[place]
        operators = {node.op_type for node in case.model.graph.node}
        if operators - seen or place % 8 == 0:
            chosen.append(case)
            seen |= operators
    done = held(sorted(chosen, key=lambda case: case.name), listed)
    passed = [case for case in done if case.sources is not None]
    operators = {node.op_type for case in passed for node in case.model.graph.node}
    assert len(operators) >= 90


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_hold(cases, listed):
    assert {case.name for case in cases} == set(listed)
    held(cases, listed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_under_the_sanitizers():
    """Every array's end and every undefined operation is watched while all node tests run."""
    done = subprocess.run(
        [sys.executable, node_tests.__file__, "--sanitize"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert " 0 fail" in done.stdout


def test_a_wrong_result_is_seen(cases):
    """The comparison can fail: the expected values of one test are moved by a little."""
    (case,) = (case for case in cases if case.name == "test_add")
    inputs, (wanted,) = case.data[0]
    wrong = node_tests.Case("test_add", case.model, [(inputs, [wanted * 1.01])], case.tolerance)
    (done,) = node_tests.results([wrong], node_tests.fastest())
    assert done.error
    assert "test_add: FAIL" in done.verdict()


def test_no_test_has_all_its_inputs_bound(cases, listed):
    inputs = {case.name: len(case.model.graph.input) for case in cases}
    for name, line in listed.items():
        bound = re.search(r"\(bound: (.+)\)$", line)
        assert not bound or len(bound[1].split(", ")) < inputs[name]


def test_the_tool_writes_its_list(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(node_tests, "LIST", tmp_path / "list.txt")
    monkeypatch.setattr(node_tests, "cases", lambda _="": [])
    monkeypatch.setattr(sys, "argv", ["node_tests.py"])
    assert node_tests.main() == 0
    assert (tmp_path / "list.txt").read_text().startswith("# ONNX")
    assert "0 pass" in capsys.readouterr().out
