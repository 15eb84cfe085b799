"""What REDLINE_DEBUG and REDLINE_DUMP leave behind, and what a profile says."""

from __future__ import annotations

import numpy as np
import pytest
from native_models import compiled, graph, needs_compiler, opened
from onnx import helper

pytestmark = needs_compiler
X = np.random.default_rng(1).standard_normal((1, 4, 9, 9), np.float32)


@pytest.fixture
def model():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["c"], ["m"]),
        helper.make_node("Mul", ["r", "m"], ["y"]),
    ]
    weights = np.random.default_rng(0).standard_normal((32, 4, 3, 3), np.float32)
    return graph(nodes, {"x": X}, ["y"], {"w": weights})


def test_each_level_says_more(model, tmp_path, monkeypatch, capfd):
    said = []
    for level in ("0", "2", "3", "4"):
        monkeypatch.setenv("REDLINE_DEBUG", level)
        monkeypatch.setenv("REDLINE_DUMP", str(tmp_path / level))
        compiled(model, tmp_path, target="portable", threads=1)
        said.append(capfd.readouterr().err)
        if level != "0":
            assert (tmp_path / level / "compile.log").read_text() == said[-1]
    assert said[0] == ""
    assert len(said[1]) < len(said[2]) < len(said[3])
    assert "its result is read 2 times" in said[2]  # why Relu stayed a pass of its own
    assert (tmp_path / "0" / "groups0.cpp").read_text().count("void group") >= 3


def test_the_last_level_writes_assembly(model, tmp_path, monkeypatch):
    monkeypatch.setenv("REDLINE_DEBUG", "5")
    monkeypatch.setenv("REDLINE_DUMP", str(tmp_path / "dump"))
    compiled(model, tmp_path, target="portable", threads=1)
    assert "mulps" in (tmp_path / "dump" / "groups0.s").read_text()


def test_a_profile_has_every_group_and_its_work(model, tmp_path):
    compiled(model, tmp_path, target="portable", threads=1)
    runner = opened(model, [X], tmp_path, threads=1)
    groups = runner.profile([X], calls=3)
    kernels = [group["kernel"] for group in groups]
    assert any("conv_tile<" in kernel for kernel in kernels)
    conv = next(group for group in groups if "conv_tile<" in group["kernel"])
    assert conv["flops"] == 2 * 32 * 4 * 9 * 9 * 9
    assert conv["bytes"] >= 4 * (4 * 81 + 32 * 81 + 32 * 4 * 9)
    assert all(group["seconds"] >= 0 for group in groups)
    assert any("read 2 times" in line for line in runner.missed)
    runner.close()
