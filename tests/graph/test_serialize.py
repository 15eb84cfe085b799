"""Bytes and hash of a graph: deterministic, and nothing of the user's machine in them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from redline.errors import ModelError, RefusedError
from redline.graph import serialize
from redline.graph.serialize import clean, from_bytes, graph_hash, to_bytes

# torch.export copies tree specs of a kind that it deprecates itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

CAPTURE = """
import sys, torch
from redline.graph.serialize import graph_hash, to_bytes
torch.manual_seed(0)
net = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.GELU(), torch.nn.Flatten(),
    torch.nn.Linear(4 * 36, 5),
).eval()
batch = {0: torch.export.Dim("batch", min=1, max=8)}
exported = torch.onnx.export(net, (torch.zeros(2, 3, 8, 8),), dynamo=True, verbose=False,
                             dynamic_shapes=(batch,))
print(graph_hash(exported.model), len(to_bytes(exported.model)))
"""


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.linear(x).relu() * 2.0


@pytest.fixture(scope="module")
def exported():
    return torch.onnx.export(Net().eval(), (torch.ones(2, 4),), dynamo=True, verbose=False).model


def build(value="middle", weight=2.0, operator="Mul", name="graph", output="y"):
    weights = [numpy_helper.from_array(np.full((3,), weight, np.float32), "w_" + value)]
    nodes = [
        helper.make_node(operator, ["x", "w_" + value], [value], name=value + "_node"),
        helper.make_node("Clip", [value], [output]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, name, [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def hash_of(proto):
    return graph_hash(onnx_ir.serde.deserialize_model(proto))


def test_nothing_personal_in_the_bytes(exported):
    raw = onnx_ir.serde.serialize_model(exported).SerializeToString()
    here = Path(__file__).name.encode()
    assert here in raw, "the exporter no longer writes stack traces: this test proves nothing"
    data = to_bytes(exported)
    assert here not in data
    assert b"stack_trace" not in data
    assert str(Path(__file__).parent).encode() not in data
    onnx.checker.check_model(onnx.load_from_string(data))


def test_clean_clears_every_place_that_takes_text():
    proto = build()
    for item in (proto, proto.graph, proto.graph.node[0], proto.graph.input[0]):
        item.doc_string = "secret"
        item.metadata_props.add(key="secret", value="secret")
    proto.graph.initializer[0].doc_string = "secret"
    proto.graph.initializer[0].metadata_props.add(key="secret", value="secret")
    constant = numpy_helper.from_array(np.float32(1), "c")
    constant.doc_string = "secret"
    proto.graph.node.insert(0, helper.make_node("ConstantOfShape", ["s"], ["d"], value=constant))
    proto.graph.node[0].attribute[0].doc_string = "secret"
    proto.graph.initializer.append(numpy_helper.from_array(np.array([3]), "s"))
    proto.graph.node[2].input[0] = "d"
    proto.domain = "secret"
    graph = onnx_ir.serde.deserialize_model(proto)
    before = onnx_ir.serde.serialize_model(graph).SerializeToString()
    assert before.count(b"secret") > 10
    assert b"secret" not in to_bytes(graph)
    assert [node.op_type for node in clean(graph).graph] == ["ConstantOfShape", "Clip"]
    after = onnx_ir.serde.serialize_model(graph).SerializeToString()
    assert after == before, "the graph that was given is changed"


def test_clean_inlines_functions_and_drops_what_nobody_uses():
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "Act", ["a"], ["b"], body, opsets[:1])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    nodes = [
        helper.make_node("Act", ["x"], ["y"], domain="mine"),
        helper.make_node("Exp", ["x"], ["unused"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y])
    proto = helper.make_model(graph, functions=[function], opset_imports=opsets)
    cleaned = clean(onnx_ir.serde.deserialize_model(proto))
    assert [node.op_type for node in cleaned.graph] == ["Relu", "Neg"]
    assert not cleaned.functions
    assert cleaned.opset_imports == {"": 20}


def test_bytes_are_the_same_each_time_and_come_back(exported):
    data = to_bytes(exported)
    assert data == to_bytes(exported)
    assert data == to_bytes(from_bytes(data))
    assert graph_hash(from_bytes(data)) == graph_hash(exported)


def test_hash_is_the_same_in_another_process():
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CAPTURE],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        found.add(result.stdout.splitlines()[-1])
    assert len(found) == 1, found


def test_hash_ignores_what_an_exporter_chose():
    proto = build()
    named = build(value="other", name="another")
    named.graph.node[0].doc_string = "text"
    named.producer_name = "somebody"
    assert hash_of(proto) == hash_of(named)
    reordered = build()
    extra = numpy_helper.from_array(np.zeros(9, np.float32), "unused")
    reordered.graph.initializer.insert(0, extra)
    assert hash_of(proto) == hash_of(reordered)


def test_hash_sees_what_matters():
    variants = [build(), build(weight=2.0000002), build(operator="Add"), build(output="z")]
    opset = build()
    opset.opset_import[0].version = 19
    shape = build()
    shape.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 7
    attribute = build()
    attribute.graph.node[1].op_type = "LeakyRelu"
    slope = onnx.ModelProto()
    slope.CopyFrom(attribute)
    slope.graph.node[1].attribute.append(helper.make_attribute("alpha", 0.3))
    hashes = [hash_of(proto) for proto in (*variants, opset, shape, attribute, slope)]
    assert len(set(hashes)) == len(hashes)


def test_hash_tells_which_operand_is_which():
    def subtract(first, second):
        nodes = [helper.make_node("Sub", [first, second], ["y"])]
        values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("a", "b", "y")]
        graph = helper.make_graph(nodes, "g", values[:2], values[2:])
        return hash_of(helper.make_model(graph))

    assert subtract("a", "b") != subtract("b", "a")


def test_hash_looks_into_subgraphs():
    def branch(operator):
        out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2])
        return helper.make_graph([helper.make_node(operator, ["x"], ["o"])], "b", [], [out])

    def conditional(operator):
        node = helper.make_node(
            "If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch(operator)
        )
        inputs = [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        ]
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
        return hash_of(helper.make_model(helper.make_graph([node], "g", inputs, [y])))

    assert conditional("Neg") == conditional("Neg")
    assert conditional("Neg") != conditional("Exp")


def test_more_than_a_message_holds_is_refused(exported, monkeypatch):
    monkeypatch.setattr(serialize, "MAX_WEIGHTS", 16)
    with pytest.raises(RefusedError, match="GiB of weights"):
        to_bytes(exported)


def test_bytes_that_are_no_graph():
    with pytest.raises(ModelError, match="not an ONNX graph"):
        from_bytes(b"\xff\xffnot a graph")
