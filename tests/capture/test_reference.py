"""The float64 reference: true to the model, and without a trace left in the user's process."""

import copy
import inspect
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from redline.capture import reference as module_under_test
from redline.capture.cases import Case, make_cases
from redline.capture.onnx_file import load_onnx
from redline.capture.onnx_reference import evaluate_in_float64, run_onnx
from redline.capture.reference import make_reference
from redline.errors import ModelError
from redline.graph.model import Model
from redline.graph.serialize import to_bytes
from redline.graph.widen import widen
from redline.signature import Dim, Signature, TensorSpec, Tree


def model_of(module, *example, dims=(), outputs=None):
    """A Model of forward(a, b, ...) whose axis 0 is the dim, if one is given."""
    names = tuple(inspect.signature(module.forward).parameters)
    specs = tuple(
        TensorSpec(
            name, array.dtype.name, (dims[0].name, *array.shape[1:]) if dims else array.shape
        )
        for name, array in zip(names, example, strict=True)
    )
    tree = Tree("dict", names, (Tree(),) * len(names))
    signature = Signature(specs, (), tree, outputs or Tree(), tuple(dims))
    return Model("net", "module", signature, tuple(example), "", module=module.eval())


def refer(model, extra=1):
    return make_reference(model, make_cases(model.signature, model.example, extra=extra))


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


class Stubborn(torch.nn.Module):
    """Insists on float32 in every way that `.double()` does not reach."""

    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.LSTM(8, 8, batch_first=True)
        self.scale = torch.linspace(0.1, 0.9, 8)
        self.register_buffer("memory", torch.zeros(8))

    def forward(self, a):
        y, _ = self.rnn(a)
        z = torch.zeros(y.shape)
        z[:, 1:] += y[:, 1:].to(torch.float32) * self.scale
        z = z + torch.arange(8).float() / 3 + self.memory
        return torch.softmax(z, -1, dtype=torch.float32)


def test_float64_reaches_where_double_does_not():
    torch.manual_seed(0)
    net, x = Stubborn(), normal(2, 5, 8)
    with torch.no_grad():
        doubled = copy.deepcopy(net).double()(torch.from_numpy(x).double())
    assert doubled.dtype == torch.float32, "the float64 of .double() is lost on the way"
    found = refer(model_of(net, x))
    assert found.how == "the model in float64 on 2 cases"
    expected, baseline = found.expected[0][0], found.baseline[0][0]
    assert expected.dtype == np.float64
    assert baseline.dtype == np.float32
    y, _ = copy.deepcopy(net.rnn).double()(torch.from_numpy(x).double())
    z = torch.zeros_like(y)
    z[:, 1:] = y[:, 1:] * net.scale.double()
    truth = torch.softmax(z + torch.arange(8).double() / 3, -1).detach().numpy()
    assert np.abs(expected - truth).max() < 1e-14
    assert 0 < np.abs(baseline - truth).max() < 1e-6


def test_outputs_come_in_the_order_of_the_signature_and_integers_stay():
    class Net(torch.nn.Module):
        def forward(self, a, b):
            return {"index": a.argmax(-1) + b, "pair": (a * 2, a > 0)}

    pair = Tree("tuple", children=(Tree(), Tree()))
    outputs = Tree("dict", ("index", "pair"), (Tree(), pair))
    found = refer(model_of(Net(), normal(2, 3), np.array([1, 2]), outputs=outputs))
    kinds = [array.dtype for array in found.expected[0]]
    assert kinds == [np.int64, np.float64, np.bool_]
    np.testing.assert_array_equal(found.expected[0][0], normal(2, 3).argmax(-1) + np.array([1, 2]))


def test_every_end_of_a_dynamic_dim_is_run():
    found = refer(model_of(torch.nn.Linear(3, 2), normal(2, 3), dims=[Dim("n", 1, 2, 5)]), extra=0)
    assert [case[0].shape for case in found.expected] == [(2, 2), (1, 2), (5, 2)]


def test_nothing_of_the_user_is_changed():
    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 3)
            self.register_buffer("seen", torch.zeros(1))
            self.calls = 0

        def forward(self, a):
            self.calls += 1
            self.seen += 1
            a += 0  # writes to its input
            return self.linear(a)

    net, x = Counting(), normal(2, 3)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    random, kept = torch.get_rng_state(), x.copy()
    refer(model_of(net, x))
    assert net.calls == 0
    for name, tensor in net.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    np.testing.assert_array_equal(x, kept)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize(
    "forward",
    [
        lambda a: torch.nn.functional.dropout(a, 0.5, training=True),
        lambda a: a + torch.rand(a.shape),
        lambda a: torch.randint(0, 1000, (5,)) + a.long()[0],
    ],
)
def test_a_model_that_does_not_repeat_itself_is_refused(forward):
    class Net(torch.nn.Module):
        def forward(self, a):
            return forward(a)

    state = torch.get_rng_state()
    with pytest.raises(ModelError, match="other outputs when it is called again") as caught:
        refer(model_of(Net(), normal(4, 5)))
    assert "self.training" in caught.value.hint
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_fails_on_a_case_says_which():
    class Net(torch.nn.Module):
        def forward(self, a):
            if a.shape[0] == 5:
                raise RuntimeError("five is too many\nmore lines")
            return a

    with pytest.raises(ModelError, match="fails on case 'n=5': five is too many") as caught:
        refer(model_of(Net(), normal(2, 3), dims=[Dim("n", 1, 2, 5)]))
    assert "float32[5, 3]" in caught.value.where


def test_float64_that_fails_leaves_float32_and_says_so():
    class Net(torch.nn.Module):
        def forward(self, a):
            if a.dtype != torch.float32:
                raise TypeError("only float32")
            return a * 2

    found = refer(model_of(Net(), normal(2, 3)))
    assert "only float32" in found.how
    assert found.expected is found.baseline
    np.testing.assert_array_equal(found.expected[0][0], normal(2, 3) * 2)


def test_float64_that_takes_another_way_is_no_yardstick():
    class Net(torch.nn.Module):
        def forward(self, a):
            return a + 1 if a.dtype == torch.float64 else a

    found = refer(model_of(Net(), normal(2, 3)))
    assert "takes another way" in found.how
    np.testing.assert_array_equal(found.expected[0][0], normal(2, 3))


def test_a_model_that_cannot_be_copied_still_has_a_reference():
    class Net(torch.nn.Module):
        def __deepcopy__(self, memo):
            raise RuntimeError("never copy me")

        def forward(self, a):
            return a * 2

    found = refer(model_of(Net(), normal(2, 3)))
    assert "never copy me" in found.how


def test_without_memory_for_a_copy_float32_is_taken(monkeypatch):
    monkeypatch.setattr(module_under_test.machine, "memory_available", lambda: 100)
    found = refer(model_of(torch.nn.Linear(8, 8), normal(2, 8)))
    assert "no memory" in found.how
    assert found.expected is found.baseline


def test_half_precision_is_held_against_float64():
    torch.manual_seed(0)
    net = torch.nn.Linear(64, 8).half()
    x = normal(4, 64).astype(np.float16)
    found = refer(model_of(net, x))
    assert found.how.startswith("the model in float64")
    assert found.expected[0][0].dtype == np.float64
    assert found.baseline[0][0].dtype == np.float16


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_an_exported_program_runs_in_float64():
    torch.manual_seed(0)
    net, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU()).eval(), normal(2, 8)
    program = torch.export.export(net, (torch.from_numpy(x),))
    model = model_of(net, x)
    found = refer(replace(model, module=program.module()))
    np.testing.assert_allclose(found.expected[0][0], refer(model).expected[0][0], rtol=1e-13)


def graph_model(nodes, shape, weights, opset=20):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return load_onnx(onnx.shape_inference.infer_shapes(proto))


def linear():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Cast", ["m"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["c"], ["y"]),
    ]
    return graph_model(nodes, [4, 32], {"w": normal(32, 6)})


def test_a_graph_is_evaluated_in_float64():
    found = refer(linear())
    assert found.how == "onnx's reference evaluator in float64 on 2 cases"
    x = linear().example[0].astype(np.float64)
    truth = np.tanh(x @ normal(32, 6).astype(np.float64))
    assert np.abs(found.expected[0][0] - truth).max() < 1e-14
    assert 0 < np.abs(found.baseline[0][0] - truth).max() < 1e-5
    assert found.baseline[0][0].dtype == np.float32


def test_a_large_graph_is_held_against_onnx_runtime(monkeypatch):
    monkeypatch.setattr(module_under_test, "_EVALUATOR_FLOPS", 1)
    found = refer(linear())
    assert "ONNX Runtime without optimisation" in found.how
    assert "too large" in found.how
    np.testing.assert_allclose(found.expected[0][0], found.baseline[0][0], atol=1e-5)


def test_a_slow_evaluator_is_given_up():
    model = linear()
    assert evaluate_in_float64(model.graph, [model.example] * 2, budget=0.0) is None


def test_a_disagreement_is_reported_and_survived(monkeypatch):
    def wrong(graph, inputs, *, budget):
        return [tuple(y + 1 for y in case) for case in run_onnx(to_bytes(graph), inputs)]

    monkeypatch.setattr(module_under_test, "evaluate_in_float64", wrong)
    found = refer(linear())
    assert "gives something else" in found.how
    np.testing.assert_array_equal(
        found.expected[0][0], run_onnx(to_bytes(linear().graph), [linear().example])[0][0]
    )


def test_a_graph_that_onnx_runtime_refuses_is_evaluated_alone(monkeypatch):
    def refuse(*_args, **_options):
        raise ModelError("ONNX Runtime cannot run this graph: no kernel")

    monkeypatch.setattr(module_under_test, "run_onnx", refuse)
    found = refer(linear())
    assert found.how.endswith("because ONNX Runtime cannot run this graph: no kernel")
    assert found.expected[0][0].dtype == np.float64
    assert found.baseline[0][0].dtype == np.float32


def test_a_graph_that_nothing_runs_is_an_error():
    node = helper.make_node("Mystery", ["x"], ["y"], domain="nobody")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nobody", 1)]
    proto = helper.make_model(helper.make_graph([node], "g", [x], [y]), opset_imports=opsets)
    with pytest.raises(ModelError, match="nothing here can run this graph") as caught:
        refer(load_onnx(proto))
    assert "its own domain" in caught.value.hint


def test_widen_leaves_no_float32():
    nodes = [
        helper.make_node("ConstantOfShape", ["s"], ["k"],
                         value=numpy_helper.from_array(np.float32([0.1]))),
        helper.make_node("Add", ["x", "k"], ["a"]),
        helper.make_node("Cast", ["a"], ["y"], to=TensorProto.FLOAT16),
    ]  # fmt: skip
    weights = {"s": np.array([2]), "unused": normal(3)}
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [2])
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = onnx_ir.serde.deserialize_model(
        helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors))
    )
    wide = widen(graph)
    assert wide.graph.inputs[0].dtype == wide.graph.outputs[0].dtype == onnx_ir.DataType.DOUBLE
    assert graph.graph.inputs[0].dtype == onnx_ir.DataType.FLOAT
    case = Case("one", (np.array([1 / 3, 2], np.float32),))
    result = evaluate_in_float64(graph, [case.inputs], budget=60)[0][0]
    assert result.dtype == np.float64
    np.testing.assert_array_equal(result, case.inputs[0].astype(float) + float(np.float32(0.1)))
