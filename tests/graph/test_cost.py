"""Flops, traffic and parameters, held against torch's own counter and against hand counts."""

import numpy as np
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from redline.graph.cost import cost, operators
from redline.graph.flops import RULES
from redline.graph.shapes import bind, infer_shapes, is_static
from redline.signature import Dim, Signature, TensorSpec, Tree

# torch.export copies tree specs of a kind that it deprecates itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")

MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Attention", "LSTM", "GRU", "RNN")


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.Linear(32, 96)
        self.out = torch.nn.Linear(32, 32)

    def forward(self, x):
        parts = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        return self.out(y.transpose(1, 2).flatten(2))


class Block(torch.nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.a = torch.nn.Conv2d(channels, 2 * channels, 3, stride, 1, bias=False)
        self.b = torch.nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, groups=channels)
        self.side = torch.nn.Conv2d(channels, 2 * channels, 1, stride)
        self.norm = torch.nn.BatchNorm2d(2 * channels)

    def forward(self, x):
        return torch.relu(self.b(torch.relu(self.norm(self.a(x)))) + self.side(x))


def resnet_like():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 7, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1),
        Block(8, 1), Block(16, 2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(32, 10),
    )  # fmt: skip


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4))


NETS = {
    "mlp": (mlp(), (16,)),
    "resnet": (resnet_like(), (3, 32, 32)),
    "transposed": (torch.nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 9, 9)),
    "conv1d": (torch.nn.Conv1d(4, 6, 5, dilation=2), (4, 40)),
    "attention": (Attention(), (12, 32)),
}  # fmt: skip


def signature_of(shape, dims=()):
    spec = TensorSpec("x", "float32", shape)
    return Signature((spec,), (), Tree("dict", ("x",), (Tree(),)), Tree(), tuple(dims))


def single(operator, shapes, output, weights=None, **attributes):
    """A graph of one node on float inputs x0, x1, ..."""
    names = [f"x{index}" for index in range(len(shapes))]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(names, shapes, strict=True)
    ]
    weights = weights or {}
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    node = helper.make_node(operator, [*names, *weights], ["y"], **attributes)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    graph = helper.make_graph([node], "g", inputs, [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    specs = tuple(TensorSpec(n, "float32", tuple(s)) for n, s in zip(names, shapes, strict=True))
    tree = Tree("dict", tuple(names), (Tree(),) * len(names))
    return onnx_ir.serde.deserialize_model(model), Signature(specs, (), tree, Tree())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("batch", [2, 5])
def test_matrix_flops_agree_with_torch(name, batch):
    net, shape = NETS[name]
    net = net.eval()
    dims = {0: torch.export.Dim("batch", min=1, max=8)}
    graph = torch.onnx.export(
        net, (torch.randn(2, *shape),), dynamo=True, verbose=False, dynamic_shapes=(dims,)
    ).model
    # torch's counter does not know the fused attention of the CPU.
    math = sdpa_kernel(SDPBackend.MATH)
    with math, FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randn(batch, *shape))
    graph.graph.inputs[0].name = "x"
    found = cost(graph, signature_of(("batch", *shape), [Dim("batch", 1, batch, 8)]))
    matrix = sum(flops for name, flops in found.flops_by_operator.items() if name in MATRIX)
    assert matrix == counter.get_total_flops()
    assert found.unknown == {}
    assert found.flops == sum(found.flops_by_operator.values())


def test_traffic_and_parameters_of_a_linear_layer():
    graph = torch.onnx.export(mlp().eval(), (torch.randn(3, 16),), dynamo=True, verbose=False).model
    graph.graph.inputs[0].name = "x"
    found = cost(graph, signature_of((3, 16)))
    parameters = 16 * 64 + 64 + 64 * 4 + 4
    assert found.parameters == parameters
    assert found.bytes == 4 * (parameters + 3 * 16 + 3 * 4)
    assert found.activation_bytes == 4 * 2 * (3 * 64 + 3 * 64)  # before and after the relu
    assert found.operators == {"Gemm": 2, "Relu": 1} == operators(graph)


def test_embedding_counts_the_rows_that_are_read():
    net = torch.nn.Embedding(1000, 8).eval()
    ids = torch.zeros(2, 5, dtype=torch.int64)
    graph = torch.onnx.export(net, (ids,), dynamo=True, verbose=False).model
    spec = TensorSpec(graph.graph.inputs[0].name, "int64", (2, 5))
    signature = Signature((spec,), (), Tree("dict", (spec.name,), (Tree(),)), Tree())
    found = cost(graph, signature)
    assert found.parameters == 8000
    assert found.bytes == 10 * 8 * 4 + 10 * 8 + 10 * 8 * 4  # rows, indices, output


def test_lstm_meets_all_weights_at_every_step():
    steps, batch, size, hidden = 7, 3, 5, 4
    weights = {
        "W": np.zeros((1, 4 * hidden, size), np.float32),
        "R": np.zeros((1, 4 * hidden, hidden), np.float32),
    }
    shape = [steps, batch, size]
    graph, signature = single(
        "LSTM", [shape], [steps, 1, batch, hidden], weights, hidden_size=hidden
    )
    expected = 2 * steps * batch * 4 * hidden * (size + hidden)
    assert cost(graph, signature).flops_by_operator == {"LSTM": expected}


WINDOW = {"kernel_shape": [2, 2], "strides": [2, 2]}


@pytest.mark.parametrize(
    ("operator", "shapes", "output", "attributes", "flops"),
    [
        ("Einsum", [[2, 3, 4], [2, 4, 5]], [2, 3, 5], {"equation": "bij,bjk->bik"}, 240),
        ("Einsum", [[2, 3, 4], [4, 5]], [2, 3, 5], {"equation": "...j, jk -> ...k"}, 240),
        ("MatMul", [[7, 2, 3], [3, 5]], [7, 2, 5], {}, 2 * 7 * 2 * 3 * 5),
        ("Gemm", [[3, 2], [5, 3]], [2, 5], {"transA": 1, "transB": 1}, 2 * 2 * 3 * 5),
        ("AveragePool", [[1, 2, 8, 8]], [1, 2, 4, 4], WINDOW, 128),
        ("Softmax", [[2, 10]], [2, 10], {}, 100),
        ("ReduceMean", [[2, 10]], [1, 1], {}, 20),
        ("Add", [[2, 1], [1, 10]], [2, 10], {}, 20),
        ("Max", [[4], [4], [4]], [4], {}, 8),
        ("Transpose", [[2, 3]], [3, 2], {}, 0),
    ],
)  # fmt: skip
def test_rules_against_hand_counts(operator, shapes, output, attributes, flops):
    graph, signature = single(operator, shapes, output, **attributes)
    found = cost(graph, signature)
    assert found.flops == flops
    assert found.unknown == {}


def test_an_operator_without_a_rule_is_named():
    graph, signature = single("Det", [[3, 3]], [])
    found = cost(graph, signature)
    assert found.flops == 0
    assert found.unknown == {"Det": 1}


def test_shapes_that_the_graph_computes_are_found():
    """Reshape to sizes that come from Shape, Gather, Mul and Concat."""

    class Net(torch.nn.Module):
        def forward(self, x):
            y = x.reshape(x.shape[0] * x.shape[1], -1)
            return y @ y.new_ones(y.shape[1], 3)

    dims = {0: torch.export.Dim("a", min=2, max=9), 1: torch.export.Dim("b", min=2, max=9)}
    graph = torch.onnx.export(
        Net().eval(), (torch.randn(3, 4, 5),), dynamo=True, verbose=False, dynamic_shapes=(dims,)
    ).model
    for node in graph.graph:
        for value in node.outputs:
            value.shape = None
    values = infer_shapes(graph, {"x": (6, 7, 5)})
    assert all(is_static(value) for value in values.values())
    name = graph.graph.outputs[0].name
    assert values[name].shape == onnx_ir.Shape([42, 3])


def test_bind_refuses_what_the_graph_fixes():
    graph, _ = single("Relu", [[2, 3]], [2, 3])
    with pytest.raises(ValueError, match="size 2 on axis 0, got 4"):
        bind(graph, {"x0": (4, 3)})
    with pytest.raises(ValueError, match="has 2 axes, got 1"):
        bind(graph, {"x0": (4,)})


def test_rules_name_operators_that_exist():
    import onnx.defs

    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(RULES) - known == set()
