"""Weights of few bits: what is stored, what it does to the numbers, what is refused."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from redline.capture.capture import capture
from redline.compress.float_nodes import plain_proto
from redline.compress.lookups import unpacked_late
from redline.compress.methods import compress
from redline.compress.scheme import Scheme
from redline.errors import InputError, RefusedError
from redline.graph.serialize import to_bytes


class Block(nn.Module):
    """A linear layer with a bias, an embedding, a product without one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 96)
        self.one, self.two = nn.Linear(96, 100), nn.Linear(100, 64, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.two(torch.tanh(self.one(self.table(ids))))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return capture(Block().eval(), torch.arange(12).reshape(1, 12))


def run(graph):
    session = onnxruntime.InferenceSession(plain_proto(graph).SerializeToString())
    name = session.get_inputs()[0].name
    return session.run(None, {name: np.arange(12).reshape(1, 12)})[0]


@pytest.mark.parametrize(
    ("method", "error", "size"),
    [
        ("fp16", 2e-3, 0.56),
        ("bf16", 2e-2, 0.56),
        ("int8-weights", 2e-2, 0.34),
        ("int8-dynamic", 5e-2, 0.65),  # the embedding stays
        ("int4-weights", 0.2, 0.6),
    ],
)
def test_what_is_stored_is_smaller_and_near(model, method, error, size):
    made = compress(model.graph, Scheme(method))
    want, got = run(model.graph), run(made.graph)
    assert 0 < np.linalg.norm(got - want) / np.linalg.norm(want) < error
    assert len(to_bytes(made.graph)) < size * len(to_bytes(model.graph))
    assert all(layer.reason == "" for layer in made.layers)


def test_int8_weights_are_within_half_a_step_of_what_they_were(model):
    made = compress(model.graph, Scheme("int8-weights"))
    held = {name: v.const_value.numpy() for name, v in made.graph.graph.initializers.items()}
    plain = {name: v.const_value.numpy() for name, v in model.graph.graph.initializers.items()}
    packed = [name for name, array in held.items() if array.dtype == np.int8]
    assert len(packed) == 3
    for name in packed:
        source = plain[name.removesuffix("_int8-weights")]
        scale, small = held[f"{name}1"], held[name]
        axis = small.shape.index(len(scale))
        wide = scale.reshape([-1 if i == axis else 1 for i in range(small.ndim)])
        assert np.all(np.abs(small * wide - source) <= wide / 2 + 1e-6)


def test_a_table_is_unpacked_after_the_look_up(model):
    made = compress(model.graph, Scheme("int8-weights"))
    late = unpacked_late(made.graph)
    np.testing.assert_array_equal(run(late), run(made.graph))
    makers = {value.name: node for node in late.graph for value in node.outputs}
    tables = [node.inputs[0] for node in late.graph if node.op_type == "Gather"]
    assert len(tables) == 2  # the bytes, and the steps of their rows
    assert not any(table.name in makers for table in tables)
    assert len(to_bytes(late)) < 1.1 * len(to_bytes(made.graph))
    assert to_bytes(unpacked_late(model.graph)) == to_bytes(model.graph)


@pytest.mark.parametrize("method", ["fp16", "int8-weights", "int8-dynamic", "int4-weights"])
def test_layers_that_are_kept_stay_float(model, method):
    names = [layer.node for layer in compress(model.graph, Scheme(method)).layers]
    made = compress(model.graph, Scheme(method, keep=frozenset(names[:1])))
    assert [one.precision for one in made.layers if one.node == names[0]] == ["fp32"]
    assert len(to_bytes(made.graph)) > len(to_bytes(compress(model.graph, Scheme(method)).graph))


@pytest.mark.parametrize("method", ["fp16", "bf16", "int8-weights", "int8-dynamic", "int4-weights"])
@pytest.mark.parametrize("before", ["int8-weights", "int8-dynamic", "int4-weights"])
def test_a_graph_is_not_quantised_twice(model, before, method):
    made = compress(model.graph, Scheme(before))
    with pytest.raises(RefusedError, match="quantised already: it holds"):
        compress(made.graph, Scheme(method))


def test_what_cannot_be_stored_is_said():
    small = capture(nn.Linear(4, 4).eval(), torch.zeros(1, 4))
    for method in ("fp16", "int8-weights"):
        with pytest.raises(RefusedError, match="no weight has"):
            compress(small.graph, Scheme(method))
    for method in ("int4-weights", "int8-dynamic"):
        with pytest.raises(RefusedError, match="no product has constant weights"):
            compress(small.graph, Scheme(method))
    large = nn.Linear(64, 64).eval()
    with torch.no_grad():
        large.weight[0, 0] = 1e6
    graph = capture(large, torch.zeros(1, 64)).graph
    with pytest.raises(RefusedError, match="does not fit fp16"):
        compress(graph, Scheme("fp16"))
    assert compress(graph, Scheme("bf16")).layers[0].precision == "bf16"
    with pytest.raises(InputError, match="group is 48"):
        compress(graph, Scheme("int4-weights", {"group": 48}))
