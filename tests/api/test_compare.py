import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import redline
from redline.errors import InputError


@pytest.fixture
def onnx_file(tmp_path):
    """y = relu(x @ w), with the weight inside."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 2), np.ones(8, np.float32).tolist())
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2))],
        [weight],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


def test_engine_onnx_file_and_module_side_by_side(onnx_file, tmp_path):
    engine = redline.optimize(onnx_file, backends=["onnxruntime"], budget="20s")
    path = engine.save(tmp_path / "tiny.redline")
    net = torch.nn.Linear(4, 2, bias=False).eval()
    with torch.no_grad():
        net.weight.fill_(1.0)
    report = redline.compare(
        [path, onnx_file, torch.nn.Sequential(net, torch.nn.ReLU()).eval()], budget=8
    )
    assert [record.outcome for record in report.records] == ["ok"] * 3
    assert {record.backend for record in report.records} == {"onnxruntime", "eager"}
    assert all(record.error < 1e-5 for record in report.records)
    assert sum(record.winner for record in report.records) == 1
    assert all(record.timing.median > 0 and record.ratio for record in report.records)


def test_the_same_thing_twice_is_two_rows(onnx_file):
    report = redline.compare([onnx_file, onnx_file], budget=8)
    assert len({record.id for record in report.records}) == 2


def test_what_gives_other_numbers_shows_its_error(onnx_file):
    net = torch.nn.Linear(4, 2).eval()
    report = redline.compare([onnx_file, net], budget=8)
    assert report.records[1].error > 0.01


def test_things_that_take_other_inputs_are_refused(onnx_file):
    with pytest.raises(InputError, match=r"size 5 on axis 1, expected 4"):
        redline.compare([onnx_file, torch.nn.Linear(5, 2).eval()], torch.zeros(1, 5))


def test_nothing_to_compare_is_refused():
    with pytest.raises(InputError, match="nothing to compare"):
        redline.compare([])
