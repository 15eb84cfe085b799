"""Modules of every form: what goes in, what comes out, and what is refused."""

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from agreement import assert_graph_agrees

from redline.capture.capture import capture
from redline.errors import InputError, ModelError
from redline.tree import flatten

Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Batch:
    x: torch.Tensor
    mask: torch.Tensor


@dataclass
class Answer:
    score: torch.Tensor
    extra: torch.Tensor | None = None


class Fn(torch.nn.Module):
    """A module around a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Embedded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(10, 4)

    def forward(self, ids, mask, *, scale=2.0):
        return self.table(ids).masked_fill(~mask[..., None], 0.0) * scale


X = torch.randn(3, 4)


@pytest.mark.parametrize("example", [X, (X,), {"x": X}, ((X,), {}), ((), {"x": X}), X.numpy()])
def test_every_form_of_example_is_the_same(example):
    model = capture(Fn(torch.relu).eval(), example)
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.signature.inputs] == [
        ("x", "float32", (3, 4))
    ]
    assert_graph_agrees(model)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x + 1, ["output"]),
        (lambda x: (x + 1, x.sum()), ["output.0", "output.1"]),
        (lambda x: [x.max(), {"a": x * 2}], ["output.0", "output.1.a"]),
        (lambda x: {"b": x * 2, "a": x.argmax(-1)}, ["output.b", "output.a"]),
        (lambda x: Pair(x > 0, x.mean(0)), ["output.first", "output.second"]),
        (lambda x: Answer(x + 1), ["output.score"]),
        (lambda x: (x, x * 2), ["output.0", "output.1"]),
        (lambda x: (x + 1,) * 2, ["output.0", "output.1"]),
    ],
    ids=["tensor", "tuple", "nested", "dict", "namedtuple", "dataclass", "alias", "twice"],
)
def test_outputs_of_every_form(function, names):
    model = capture(Fn(function).eval(), X)
    assert [spec.name for spec in model.signature.outputs] == names
    assert_graph_agrees(model)


def test_integers_and_booleans_and_a_constant():
    ids, mask = torch.randint(0, 10, (2, 5)), torch.rand(2, 5) > 0.5
    model = capture(Embedded().eval(), ((ids,), {"mask": mask, "scale": 3.0}))
    assert [spec.dtype for spec in model.signature.inputs] == ["int64", "bool"]
    assert_graph_agrees(model)


def test_nested_inputs_are_named_by_their_path():
    class Nested(torch.nn.Module):
        def forward(self, batch, others):
            return batch.x * batch.mask + others[0]["y"]

    model = capture(Nested().eval(), (Batch(X, X > 0), [{"y": X}]))
    assert [spec.name for spec in model.signature.inputs] == ["batch.x", "batch.mask", "others.0.y"]
    assert_graph_agrees(model)


def test_star_arguments():
    class Sum(torch.nn.Module):
        def forward(self, *tensors):
            return sum(tensors)

    model = capture(Sum().eval(), (X, X, X))
    assert len(model.signature.inputs) == 3
    assert_graph_agrees(model)


def test_an_unused_input_is_kept():
    class Half(torch.nn.Module):
        def forward(self, used, unused):
            return used + 1

    model = capture(Half().eval(), (X, X))
    assert [spec.name for spec in model.signature.inputs] == ["used", "unused"]
    assert_graph_agrees(model)


def test_shared_parameters():
    layer = torch.nn.Linear(4, 4)
    assert_graph_agrees(capture(torch.nn.Sequential(layer, torch.nn.Tanh(), layer).eval(), X))


def test_an_input_and_an_output_of_one_name():
    class Same(torch.nn.Module):
        def forward(self, output):
            return output * 2

    model = capture(Same().eval(), X)
    assert model.signature.outputs[0].name != model.signature.inputs[0].name
    assert_graph_agrees(model)


def test_outputs_come_back_as_the_class_they_were():
    model = capture(Fn(lambda x: Answer(x + 1)).eval(), X)
    assert model.signature.output_tree.type.endswith(":Answer")
    assert len(flatten(model.signature.output_tree, Answer(X))) == 1


def test_training_mode_is_refused_or_set_aside():
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    with pytest.raises(ModelError, match=r"training mode.*\n.*model.eval\(\)"):
        capture(net, X)
    model = capture(net, X, eval_mode=True)
    assert net.training, "the user's module stays as it was"
    assert net[1].training
    assert not model.module.training
    assert model.module[0].weight is net[0].weight, "weights are shared, not copied"
    assert "training mode" in model.notes[0].what
    assert_graph_agrees(model)


def test_another_device_is_refused_with_the_fix():
    with pytest.raises(ModelError, match=r"weight is on meta.*\n.*model\.cpu\(\)"):
        capture(torch.nn.Linear(4, 2, device="meta").eval(), X)


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (None, "example_inputs is missing"),
        ((X, X), "do not fit forward"),
        ({"y": X}, "do not fit forward"),
        ((3.0,), "hold no tensor"),
    ],
)
def test_examples_that_do_not_fit(example, words):
    with pytest.raises(InputError, match=words):
        capture(Fn(torch.relu).eval(), example)


def test_a_failing_forward_is_the_users_own_error_with_the_line():
    class Wrong(torch.nn.Module):
        def forward(self, x):
            return x @ torch.zeros(7, 2)

    with pytest.raises(ModelError, match="fails on the example inputs") as caught:
        capture(Wrong().eval(), X)
    assert "test_module.py" in caught.value.where
    assert "torch.zeros(7, 2)" in caught.value.where


@pytest.mark.parametrize("result", [None, 3, object()])
def test_a_forward_without_tensors_is_refused(result):
    with pytest.raises(ModelError, match="forward returns"):
        capture(Fn(lambda x: result).eval(), X)


def test_bfloat16_is_refused_by_name():
    with pytest.raises(ModelError, match=r"'x' is torch\.bfloat16"):
        capture(Fn(torch.relu).eval(), X.bfloat16())


@pytest.mark.parametrize("thing", [object(), 3, torch.nn.Linear, np.zeros(3)])
def test_what_is_not_a_model(thing):
    with pytest.raises(ModelError, match="is not a model"):
        capture(thing, X)


def test_the_same_model_has_the_same_hash_and_other_weights_another():
    def build(seed):
        torch.manual_seed(seed)
        return capture(torch.nn.Linear(4, 2).eval(), X).graph_hash

    assert build(0) == build(0) != build(1)
