"""Axes that may change: as asked, checked at both ends, and never silently fixed."""

import pytest
import torch
from agreement import assert_graph_agrees

from redline.capture.capture import capture
from redline.capture.dynamic import check_ends, parse
from redline.errors import InputError, SpecializedAxisError, UnknownNameError
from redline.signature import Dim


class Two(torch.nn.Module):
    def forward(self, a, b):
        return a + b, a.sum(1)


class FixedBatch(torch.nn.Module):
    def forward(self, x):
        return x.view(2, -1)


@pytest.mark.parametrize("span", [(1, 4, 16), (1, 1, 16), (1, 2), (3, 3, 5)])
def test_a_batch_of_every_size(span):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    model = capture(net.eval(), torch.randn(1, 3, 8, 8), dynamic={"batch": span})
    least, most = span[0], span[-1]
    assert model.signature.dims[0] == Dim("batch", least, span[1] if len(span) == 3 else most, most)
    assert model.signature.inputs[0].shape == ("batch", 3, 8, 8)
    assert model.signature.outputs[0].shape == ("batch", 5)
    assert model.example[0].shape[0] == model.signature.dims[0].opt
    assert_graph_agrees(model, [{"batch": least}, {"batch": most}])


def test_two_inputs_share_a_dim_and_have_their_own():
    dynamic = {
        "a": {0: ("batch", 1, 2, 8), 1: ("length", 2, 6, 9)},
        "b": {0: ("batch", 1, 2, 8), 1: ("length", 2, 6, 9)},
    }
    model = capture(Two().eval(), (torch.randn(2, 6), torch.randn(2, 6)), dynamic=dynamic)
    assert model.signature.inputs[1].shape == ("batch", "length")
    assert model.signature.outputs[1].shape == ("batch",)
    assert_graph_agrees(model, [{"batch": 1, "length": 2}, {"batch": 8, "length": 9}])


def test_an_axis_without_a_name_gets_one():
    model = capture(torch.nn.ReLU().eval(), torch.randn(2, 6), dynamic={"input": {-1: (2, 6, 9)}})
    assert model.signature.inputs[0].shape == (2, "input_-1")


def test_a_recurrent_net_with_a_dynamic_batch():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = torch.nn.LSTM(4, 8, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0][:, -1]

    model = capture(Net().eval(), torch.randn(2, 5, 4), dynamic={"batch": (1, 2, 6)})
    assert_graph_agrees(model, [{"batch": 1}, {"batch": 6}])


def test_an_axis_that_the_code_fixes_is_an_error_and_not_silence(capfd):
    with pytest.raises(SpecializedAxisError, match="the dim batch was asked to change") as caught:
        capture(FixedBatch().eval(), torch.randn(2, 6), dynamic={"batch": (1, 2, 8)})
    assert caught.value.where.startswith("test_dynamic.py:")
    assert caught.value.where.endswith("in forward: return x.view(2, -1)")
    assert caught.value.hint.endswith("taken from the input; torch suggests batch = 2")
    assert capfd.readouterr() == ("", "")


def test_a_program_that_fixed_an_axis_without_a_word_is_found_out():
    class Rows(torch.nn.Module):
        def forward(self, x):
            return (x + 1,)

    x = torch.randn(2, 6)
    fixed = torch.export.export(Rows(), (x,))
    axes = parse({"batch": (1, 2, 8)}, ["x"], [(2, 6)])
    with pytest.raises(SpecializedAxisError, match="at batch=1 the captured program fails"):
        check_ends(axes, [x], fixed, Rows())


def test_a_range_that_the_model_itself_cannot_take():
    dynamic = {"a": {0: ("rows", 1, 2, 8)}, "b": {0: ("others", 1, 2, 8)}}
    with pytest.raises(InputError, match=r"fails at rows=8, others=2.*\n.*the same name"):
        capture(Two().eval(), (torch.randn(2, 6), torch.randn(2, 6)), dynamic=dynamic)


def test_an_input_that_does_not_exist():
    with pytest.raises(UnknownNameError, match="did you mean 'input'"):
        capture(torch.nn.ReLU().eval(), torch.randn(2, 6), dynamic={"inptu": {0: (1, 2)}})


@pytest.mark.parametrize(
    "span", [(4, 2, 1), (0, 1, 2), (1, 9, 8), "8", (1.0, 2.0), 7, (1, 2, 3, 4)]
)
def test_a_range_that_is_none(span):
    with pytest.raises(InputError, match="1 <= min <= opt <= max"):
        capture(torch.nn.ReLU().eval(), torch.randn(2, 6), dynamic={"batch": span})


@pytest.mark.parametrize("axis", [2, -3, "0"])
def test_an_axis_that_does_not_exist(axis):
    with pytest.raises(InputError, match="has no axis"):
        capture(torch.nn.ReLU().eval(), torch.randn(2, 6), dynamic={"input": {axis: (1, 2)}})


def test_one_name_with_two_ranges():
    dynamic = {"a": {0: ("n", 1, 2, 8)}, "b": {0: ("n", 1, 2, 9)}}
    with pytest.raises(InputError, match="two ranges"):
        capture(Two().eval(), (torch.randn(2, 6), torch.randn(2, 6)), dynamic=dynamic)
