"""Operators over random shapes, drawn by hypothesis, against NumPy and ONNX's reference.

A file of C++ for each example would take a second: an example is a list of graphs, compiled
together, as tools/node_tests.py does it.
"""

import warnings
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from native_models import graph, needs_compiler, reference, targets
from onnx import helper

import node_tests
from redline.native import isa

pytestmark = needs_compiler

SEEDS = st.integers(0, 2**31)
DIM = st.integers(1, 9)


def shapes(low=1, high=4):
    return st.lists(DIM, min_size=low, max_size=high).map(tuple)


def normal(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def elementwise(draw):
    shape = draw(shapes())
    other = tuple(n if draw(st.booleans()) else 1 for n in shape)[
        draw(st.integers(0, len(shape))) :
    ]
    kind = draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Min", "Greater", "LessOrEqual"]))
    after = draw(
        st.sampled_from(["Tanh", "Sigmoid", "Softplus", "Exp", "Erf", "HardSwish", "Celu"])
    )
    nodes = [helper.make_node(after, ["a"], ["c"]), helper.make_node(kind, ["c", "b"], ["y"])]
    seed = draw(SEEDS)
    return nodes, {"a": normal(shape, seed), "b": normal(other, seed + 1)}


@st.composite
def whole_numbers(draw):
    dtype = draw(st.sampled_from([np.int64, np.int32, np.uint8, np.int8]))
    kind = draw(st.sampled_from(["Add", "Mul", "Max", "Equal", "Less", "BitwiseXor", "Mod"]))
    shape, random = draw(shapes()), np.random.default_rng(draw(SEEDS))
    a, b = (random.integers(1, 100, shape).astype(dtype) for _ in range(2))
    return [helper.make_node(kind, ["a", "b"], ["y"])], {"a": a, "b": b}


@st.composite
def reductions(draw):
    shape = draw(shapes())
    axes = draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    kind = draw(
        st.sampled_from(["Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"])
    )
    node = helper.make_node(f"Reduce{kind}", ["a", "axes"], ["y"], keepdims=draw(st.integers(0, 1)))
    return [node], {"a": normal(shape, draw(SEEDS))}, {"axes": np.array(sorted(axes))}


@st.composite
def pads(draw):
    shape = tuple(n + 2 for n in draw(shapes()))
    mode = draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    most = min(shape) - 1
    amounts = [draw(st.integers(0, most)) for _ in range(2 * len(shape))]
    node = helper.make_node("Pad", ["a", "pads"], ["y"], mode=mode)
    return [node], {"a": normal(shape, draw(SEEDS))}, {"pads": np.array(amounts)}


def nearly_whole(n, m):
    """Whether a place is like 3.0000000000000004, which ONNX's reference takes for 2."""
    i = np.arange(m)
    at = np.concatenate([(i + 0.5) / (m / n) - 0.5, i / (m / n)])
    return bool(np.any((np.abs(at - np.rint(at)) < 1e-9) & (at != np.rint(at))))


@st.composite
def resizes(draw):
    rank = draw(st.integers(1, 3))
    shape = (draw(DIM), draw(DIM), *(draw(st.integers(2, 9)) for _ in range(rank)))
    sizes = [*shape[:2], *(draw(st.integers(1, 17)) for _ in range(rank))]
    mode = draw(st.sampled_from(["nearest", "linear"] + ["cubic"] * (rank == 2)))
    places = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    how = {"coordinate_transformation_mode": draw(st.sampled_from(places))}
    if mode == "nearest":
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    assume(not any(nearly_whole(n, m) for n, m in zip(shape, sizes, strict=True)))
    node = helper.make_node("Resize", ["a", "", "", "sizes"], ["y"], mode=mode, **how)
    return [node], {"a": normal(shape, draw(SEEDS))}, {"sizes": np.array(sizes)}


@st.composite
def placing(draw):
    shape = draw(shapes())
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    random = np.random.default_rng(draw(SEEDS))
    size = shape[axis]
    a = random.standard_normal(shape).astype(np.float32)
    kind = draw(st.sampled_from(["GatherElements", "CumSum", "TopK", "ArgMax", "Tile", "Trilu"]))
    if kind == "GatherElements":
        at = random.integers(-size, size, shape)
        return [helper.make_node(kind, ["a", "i"], ["y"], axis=axis)], {"a": a, "i": at}
    if kind == "CumSum":
        flags = {"reverse": draw(st.integers(0, 1)), "exclusive": draw(st.integers(0, 1))}
        return [helper.make_node(kind, ["a", "i"], ["y"], **flags)], {"a": a}, {"i": np.array(axis)}
    if kind == "TopK":
        k = np.array([draw(st.integers(1, size))])
        node = helper.make_node(kind, ["a", "k"], ["y", "p"], axis=axis)
        return [node], {"a": a}, {"k": k}
    if kind == "ArgMax":
        return [helper.make_node(kind, ["a"], ["y"], axis=axis)], {"a": a}
    if kind == "Tile":
        times = random.integers(1, 4, len(shape))
        return [helper.make_node(kind, ["a", "n"], ["y"])], {"a": a}, {"n": times}
    wide = random.standard_normal((*shape, draw(DIM))).astype(np.float32)
    node = helper.make_node(kind, ["a"], ["y"], upper=draw(st.integers(0, 1)))
    return [node], {"a": wide}


@st.composite
def transposed_convolutions(draw):
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    inner, outer = draw(st.integers(1, 3)) * groups, draw(st.integers(1, 3))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    strides = [draw(st.integers(1, 3)) for _ in range(rank)]
    more = [draw(st.integers(0, s - 1)) for s in strides]
    low = [draw(st.integers(0, (k - 1) // 2)) for k in kernel]
    size = [draw(st.integers(2, 6)) for _ in range(rank)]
    node = helper.make_node(
        "ConvTranspose", ["a", "w", "b"], ["y"], strides=strides, group=groups,
        pads=low + low, output_padding=more,
    )  # fmt: skip
    seed = draw(SEEDS)
    weights = {"w": normal((inner, outer, *kernel), seed), "b": normal((outer * groups,), seed + 1)}
    return [node], {"a": normal((draw(st.integers(1, 2)), inner, *size), seed + 2)}, weights


@st.composite
def convolutions(draw):
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    inner, outer = draw(st.integers(1, 9)), draw(st.integers(1, 9)) * groups
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    attributes = {
        "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
        "pads": [draw(st.integers(0, 2)) for _ in range(2 * rank)],
    }
    size = [draw(st.integers(5, 9)) for _ in range(rank)]
    node = helper.make_node("Conv", ["a", "w"], ["y"], group=groups, **attributes)
    seed, known = draw(SEEDS), draw(st.booleans())
    w, a = normal((outer, inner, *kernel), seed), normal((2, inner * groups, *size), seed + 1)
    return ([node], {"a": a}, {"w": w}) if known else ([node], {"a": a, "w": w})


@st.composite
def products(draw):
    """With known weights and without, over batches of any rank, tails of every tile."""
    m, k, n = (draw(st.integers(1, 40)) for _ in range(3))
    lead = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    seed = draw(SEEDS)
    a = normal((*lead, m, k), seed)
    if draw(st.booleans()):
        nodes = [
            helper.make_node("MatMul", ["a", "w"], ["h"]),
            helper.make_node("Relu", ["h"], ["y"]),
        ]
        return nodes, {"a": a}, {"w": normal((k, n), seed + 1)}
    b = normal((*(lead if draw(st.booleans()) else ()), k, n), seed + 1)
    return [helper.make_node("MatMul", ["a", "b"], ["y"])], {"a": a, "b": b}


@st.composite
def attentions(draw):
    m, n, k, d = (draw(st.integers(1, 24)) for _ in range(4))
    lead, seed = tuple(draw(st.lists(st.integers(1, 3), max_size=2))), draw(SEEDS)
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"]),
        helper.make_node("Add", ["s", "mask"], ["t"]),
        helper.make_node("Softmax", ["t"], ["p"], axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"]),
    ]
    shapes_of = {"q": (*lead, m, k), "k": (*lead, k, n), "mask": (m, n), "v": (*lead, n, d)}
    return nodes, {name: normal(s, seed + i) for i, (name, s) in enumerate(shapes_of.items())}


@st.composite
def norms(draw):
    shape = draw(shapes(2, 4))
    kind = draw(
        st.sampled_from(["Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"])
    )
    seed = draw(SEEDS)
    a = normal(shape, seed)
    if kind.endswith("Softmax"):
        axis = draw(st.integers(-len(shape), len(shape) - 1))
        return [helper.make_node(kind, ["a"], ["y"], axis=axis)], {"a": a}
    node = helper.make_node(kind, ["a", "g"], ["y"], axis=-1)
    return [node], {"a": a}, {"g": normal(shape[-1:], seed + 1)}


@st.composite
def group_norms(draw):
    groups, each = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    size, seed = tuple(draw(st.lists(DIM, min_size=1, max_size=2))), draw(SEEDS)
    kind = draw(st.sampled_from(["GroupNormalization", "InstanceNormalization"]))
    how = {"num_groups": groups} if kind.startswith("Group") else {}
    node = helper.make_node(kind, ["a", "g", "b"], ["y"], **how)
    wide = groups * each
    weights = {"g": normal((wide,), seed + 1), "b": normal((wide,), seed + 2)}
    return [node], {"a": normal((2, wide, *size, 2), seed)}, weights


@st.composite
def pools(draw):
    rank = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    low = [draw(st.integers(0, k - 1)) for k in kernel]
    node = helper.make_node(
        draw(st.sampled_from(["MaxPool", "AveragePool"])), ["a"], ["y"], kernel_shape=kernel,
        strides=[draw(st.integers(1, 3)) for _ in kernel], pads=low + low,
    )  # fmt: skip
    shape = (
        draw(st.integers(1, 2)),
        draw(st.integers(1, 20)),
        *(draw(st.integers(4, 9)) for _ in kernel),
    )
    return [node], {"a": normal(shape, draw(SEEDS))}


@st.composite
def depthwise(draw):
    """Every size of kernel and stride that has a kernel of its own, and others."""
    channels, kernel = draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 3, 5]))
    node = helper.make_node(
        "Conv", ["a", "w"], ["y"], group=channels, strides=[draw(st.integers(1, 2))] * 2,
        dilations=[draw(st.integers(1, 2))] * 2, pads=[draw(st.integers(0, 2)) for _ in range(4)],
    )  # fmt: skip
    seed = draw(SEEDS)
    size = [draw(st.integers(10, 14)) for _ in range(2)]
    weights = {"w": normal((channels, 1, kernel, kernel), seed)}
    return [node], {"a": normal((draw(st.integers(1, 2)), channels, *size), seed + 1)}, weights


@st.composite
def recurrent(draw):
    kind, hidden = (
        draw(st.sampled_from([("LSTM", 4), ("GRU", 3), ("RNN", 1)])),
        draw(st.integers(1, 20)),
    )
    steps, batch, wide = (draw(st.integers(1, 5)) for _ in range(3))
    seed = draw(SEEDS)
    weights = {
        "w": 0.5 * normal((1, kind[1] * hidden, wide), seed),
        "r": 0.3 * normal((1, kind[1] * hidden, hidden), seed + 1),
        "b": normal((1, 2 * kind[1] * hidden), seed + 2),
    }
    node = helper.make_node(kind[0], ["a", "w", "r", "b"], ["y", "h"], hidden_size=hidden)
    return [node], {"a": normal((steps, batch, wide), seed + 3)}, weights


@st.composite
def empty(draw):
    """An axis of no elements, in what is computed and in what is summed over."""
    shape = list(draw(shapes(2, 3)))
    shape[draw(st.integers(0, len(shape) - 2))] = 0
    a = normal(shape, 0)
    kind = draw(st.sampled_from(["Relu", "Softmax", "MatMul", "Concat", "ReduceSum", "Transpose"]))
    if kind == "MatMul":
        return (
            [helper.make_node(kind, ["a", "w"], ["y"])],
            {"a": a},
            {"w": normal((shape[-1], 7), 1)},
        )
    if kind == "Concat":
        return [helper.make_node(kind, ["a", "a"], ["y"], axis=-1)], {"a": a}
    if kind == "ReduceSum":
        axes = {"axes": np.array([draw(st.integers(0, len(shape) - 1))])}
        return [helper.make_node(kind, ["a", "axes"], ["y"])], {"a": a}, axes
    return [helper.make_node(kind, ["a"], ["y"])], {"a": a}


KERNELS = [products, attentions, norms, group_norms, pools, depthwise, recurrent, empty]
ALL = [elementwise, whole_numbers, reductions, pads, resizes, placing, convolutions]


class Drawn:
    """What was drawn, with a short name for hypothesis' reports."""

    def __init__(self, made):
        self.made = made

    def __repr__(self):
        shapes_of = {name: array.shape for name, array in self.made[1].items()}
        return f"{self.made[0][0].op_type}{shapes_of}"


ONE = st.one_of(*(make().map(Drawn) for make in [*ALL, *KERNELS, transposed_convolutions]))


def case(number, nodes, inputs, weights=None):
    outputs = [name for name in nodes[-1].output if name]
    model = graph(nodes, inputs, outputs, weights, opset=21)  # GroupNormalization by channel
    arrays = list(inputs.values())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        wanted = torch_result(nodes[0], inputs, weights) or reference(model, arrays)
    kept = [np.asarray(w) for w in wanted]
    floats = [w.astype(np.float32) if w.dtype == np.float64 else w for w in kept]
    return node_tests.Case(f"case{number}", model, [(arrays, floats)], (3e-5, 3e-5))


def torch_result(node, inputs, weights):
    """By torch where ONNX's reference fails: grouped transposed convolutions, odd pooling."""
    if node.op_type not in ("ConvTranspose", "MaxPool", "AveragePool"):
        return None
    import torch

    functional = torch.nn.functional
    a = {x.name: onnx.helper.get_attribute_value(x) for x in node.attribute}
    x = torch.from_numpy(inputs["a"]).double()
    rank = x.ndim - 2
    if node.op_type == "ConvTranspose":
        w, b = (torch.from_numpy(weights[name]).double() for name in "wb")
        how = {"padding": a["pads"][:rank], "output_padding": a["output_padding"]}
        function = getattr(functional, f"conv_transpose{rank}d")
        return [function(x, w, b, stride=a["strides"], groups=a["group"], **how).numpy()]
    around = [pad for low in reversed(a["pads"][:rank]) for pad in (low, low)]
    size = {"kernel_size": a["kernel_shape"], "stride": a["strides"]}
    if node.op_type == "MaxPool":
        padded = functional.pad(x, around, value=-torch.inf)
        return [getattr(functional, f"max_pool{rank}d")(padded, **size).numpy()]
    mean = getattr(functional, f"avg_pool{rank}d")
    share = mean(functional.pad(torch.ones_like(x), around), **size)
    return [(mean(functional.pad(x, around), **size) / share).numpy()]


def check(drawn, target):
    cases = [case(i, *one.made) for i, one in enumerate(drawn)]
    quick = replace(isa.get(target), flags=(*isa.get(target).flags, "-O1"))
    for done in node_tests.results(cases, quick, verbose=True):
        nodes = [str(node).replace("\n", " ") for node in done.model.graph.node]
        shapes_of = [np.shape(a) for a in done.data[0][0]]
        assert not done.error, f"{nodes} {shapes_of}: {done.error}"
        assert not done.refused, f"{nodes}: {done.refused}"


QUICK = settings(
    max_examples=2,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@QUICK
@given(st.lists(ONE, min_size=24, max_size=24))
def test_random_shapes(drawn):
    check(drawn, targets()[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", targets())
@settings(QUICK, max_examples=12)
@given(drawn=st.lists(ONE, min_size=50, max_size=50))
def test_many_random_shapes(target, drawn):
    """On every instruction set; the portable one is the twin of the others."""
    check(drawn, target)
