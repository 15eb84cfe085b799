"""Every kernel against float64, on every instruction set of this machine, over odd shapes."""

import numpy as np
import onnx_ir
import pytest
from native_models import agree, graph, needs_compiler, opened, reference, run, targets, with_types
from onnx import helper

from redline.native import isa
from redline.native.compile import compile_graph
from redline.native.winograd import tolerance_class

pytestmark = needs_compiler


@pytest.fixture(params=targets())
def target(request):
    return request.param


def rng(seed=0):
    return np.random.default_rng(seed)


def array(*shape, seed=0):
    return rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (1, 1, 1),
        (1, 16, 64),
        (3, 7, 33),
        (29, 40, 70),
        (64, 300, 257),
        (61, 512, 70),
        (97, 1100, 70),
        (700, 520, 40),
        (3001, 300, 20),
        (0, 4, 5),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_product_with_constant_weights(target, threads, m, k, n):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["s"]),
        helper.make_node("Gelu", ["s"], ["y"]),
    ]
    model = graph(
        nodes, {"x": array(m, k)}, ["y"], {"w": array(k, n, seed=1), "b": array(n, seed=2)}
    )
    agree(model, [array(m, k)], target=target, threads=threads)


def test_product_whose_rows_alias_in_the_cache(target):
    x = array(30, 1024)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    agree(graph(nodes, {"x": x}, ["y"], {"w": array(1024, 40, seed=1)}), [x], target=target)


@pytest.mark.parametrize("shape", [(2, 3, 17, 9, 21), (1, 1, 50, 64, 50), (1, 4, 5, 1, 3)])
def test_attention_like_product(target, shape):
    b, h, s, d, t = shape
    q, k = array(b, s, h, d), array(b, t, h, d, seed=1)
    nodes = [
        helper.make_node("Transpose", ["q"], ["qt"], perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["qt", "kt"], ["s"]),
        helper.make_node("Mul", ["s", "scale"], ["m"]),
        helper.make_node("Softmax", ["m"], ["p"]),
        helper.make_node("Transpose", ["k"], ["v"], perm=[0, 2, 1, 3]),
        helper.make_node("MatMul", ["p", "v"], ["o"]),
        helper.make_node("Transpose", ["o"], ["y"], perm=[0, 2, 1, 3]),
    ]
    model = graph(nodes, {"q": q, "k": k}, ["y"], {"scale": np.array(0.3, np.float32)})
    agree(model, [q, k], target=target)


CONVOLUTIONS = [  # channels in, out, groups, kernel, stride, dilation, pads, size
    (3, 20, 1, (7, 7), 2, 1, (3, 3, 3, 3), (31, 29)),
    (1, 6, 1, (5, 5), 1, 1, (2, 2, 2, 2), (28, 28)),
    (32, 40, 1, (3, 3), 1, 1, (1, 1, 1, 1), (13, 9)),
    (40, 33, 1, (1, 1), 1, 1, (0, 0, 0, 0), (7, 7)),
    (32, 64, 1, (1, 1), 2, 1, (0, 0, 0, 0), (14, 15)),
    (72, 80, 1, (1, 1), 2, 1, (0, 0, 0, 0), (14, 15)),  # its pixels are put side by side
    (64, 32, 2, (3, 3), 1, 2, (2, 2, 2, 2), (10, 11)),
    (24, 24, 24, (3, 3), 1, 1, (1, 1, 1, 1), (15, 16)),
    (40, 40, 40, (5, 5), 2, 1, (1, 2, 2, 1), (16, 17)),
    (35, 17, 1, (1, 3), 1, 1, (0, 1, 0, 1), (1, 40)),
    (200, 40, 1, (3, 3), 2, 1, (1, 1, 1, 1), (14, 15)),  # its sum is taken in parts
    (1100, 24, 1, (1, 1), 1, 1, (0, 0, 0, 0), (5, 7)),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_convolution(target, case, batch):
    channels, out, groups, kernel, stride, dilation, pads, size = case
    x = array(batch, channels, *size)
    weights = {"w": array(out, channels // groups, *kernel, seed=1), "b": array(out, seed=2)}
    nodes = [
        helper.make_node(
            "Conv", ["x", "w", "b"], ["h"], pads=pads, group=groups,
            strides=[stride] * 2, dilations=[dilation] * 2,
        ),
        helper.make_node("Sigmoid", ["h"], ["g"]),
        helper.make_node("Mul", ["h", "g"], ["y"]),
    ]  # fmt: skip
    agree(graph(nodes, {"x": x}, ["y"], weights), [x], target=target)


@pytest.mark.parametrize("size", [(12, 12), (14, 14), (30, 17), (56, 56)])
@pytest.mark.parametrize(("channels", "out"), [(32, 32), (40, 50), (130, 70)])
def test_winograd_within_its_class(target, size, channels, out):
    if target == "portable" and size == (56, 56):
        pytest.skip("slow, and the smaller images take the same paths")
    x = array(1, channels, *size)
    weights = {"w": array(out, channels, 3, 3, seed=1), "b": array(out, seed=2)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    model = graph(nodes, {"x": x}, ["y"], weights)
    agree(model, [x], target=target, winograd=True, tolerance=1e-4)


def test_large_filters_stay_as_they_are_in_the_file(tmp_path):
    """Transformed at the build they would be four times as large; the numbers hold either way."""
    x, weights = array(1, 200, 14, 14), {"w": array(170, 200, 3, 3, seed=1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])]
    model = graph(nodes, {"x": x}, ["y"], weights)
    made = compile_graph(
        onnx_ir.serde.deserialize_model(model), isa.get(targets()[0]), 2, tmp_path, winograd=True
    )
    assert tolerance_class(made.program.nodes) == "winograd-f43"
    assert (tmp_path / "weights.bin").stat().st_size < 1.3 * weights["w"].nbytes
    agree(model, [x], target=targets()[0], winograd=True, tolerance=1e-4)


@pytest.mark.parametrize("size", [(7, 7), (9, 14), (4, 4)])
@pytest.mark.parametrize("channels", [(32, 32), (70, 50)])
def test_the_smaller_winograd_within_its_class(target, size, channels, tmp_path):
    inside, outside = channels
    x = array(1, inside, *size)
    weights = {"w": array(outside, inside, 3, 3, seed=1)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], name="conv")]
    model = graph(nodes, {"x": x}, ["y"], weights)
    made = compile_graph(
        onnx_ir.serde.deserialize_model(model), isa.get(target), 2, tmp_path, winograd=True,
        choices={"conv": {"winograd": 2}},
    )  # fmt: skip
    assert tolerance_class(made.program.nodes) in ("winograd-f23", "fp32")  # few channels: direct
    assert ("winograd" in [n.kind for n in made.program.nodes]) == (
        inside >= 2 * isa.get(target).lanes
    )
    runner = opened(model, [x], tmp_path)
    (got,), (want,) = runner.run([x]), reference(model, [x])
    runner.close()
    scale = np.sqrt(np.mean(np.square(want)))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (17, 17)])
@pytest.mark.parametrize("channels", [40, 900])
def test_tiles_that_go_on_in_the_next_row(target, size, channels):
    """The sum, and what it reads, has a halo for the convolutions that read it."""
    x = array(2, channels, *size)
    weights = {"w0": array(48, channels, 1, 1, seed=1), "w1": array(20, 48, 3, 3, seed=2)}
    weights |= {"w2": array(48, 20, 1, 1, seed=3), "w3": array(20, 48, 3, 3, seed=4)}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"]),
        helper.make_node("Conv", ["a", "w1"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["b", "w2"], ["c"]),
        helper.make_node("Add", ["c", "a"], ["d"]),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "w3"], ["y"], pads=[1, 1, 1, 1]),
    ]
    agree(graph(nodes, {"x": x}, ["y"], weights), [x], target=target)


def test_convolutions_in_a_row_share_memory_and_keep_their_halos(target):
    x = array(1, 3, 20, 20)
    weights = {"w0": array(32, 3, 3, 3)}
    nodes = [helper.make_node("Conv", ["x", "w0"], ["h0"], pads=[1, 1, 1, 1])]
    for i in range(1, 6):
        weights[f"w{i}"] = 0.1 * array(32, 32, 3, 3, seed=i)
        nodes.append(helper.make_node("Conv", [f"h{i - 1}", f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Add", [f"c{i}", f"h{i - 1}"], [f"a{i}"]))
        nodes.append(helper.make_node("Relu", [f"a{i}"], [f"h{i}"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["h5"], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["y"]))
    agree(graph(nodes, {"x": x}, ["y", "h5"], weights), [x], target=target)


@pytest.mark.parametrize("mode", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("ceil", [0, 1])
def test_pooling(target, mode, ceil):
    x = array(2, 19, 15, 14)
    node = helper.make_node(
        mode, ["x"], ["y"], kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 1, 1], ceil_mode=ceil
    )
    agree(graph([node], {"x": x}, ["y"]), [x], target=target)


@pytest.mark.parametrize("length", [1, 15, 16, 197, 1024])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax", "LayerNormalization"])
def test_rows(target, kind, length):
    x = 5 * array(3, 7, length) + 2
    weights = {"g": array(length, seed=1), "b": array(length, seed=2)}
    more = ["g", "b"] if kind == "LayerNormalization" else []
    node = helper.make_node(kind, ["x", *more], ["y"])
    agree(graph([node], {"x": x}, ["y"], weights if more else None), [x], target=target)


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 2], [1, 2], [0, 1, 2]])
@pytest.mark.parametrize("kind", ["ReduceSum", "ReduceMean", "ReduceMax"])
def test_reductions(target, kind, axes):
    x = array(5, 6, 35)
    node = helper.make_node(kind, ["x", "a"], ["y"], keepdims=0)
    agree(graph([node], {"x": x}, ["y"], {"a": np.array(axes)}), [x], target=target)


UNARY = ["Exp", "Log", "Tanh", "Erf", "Sigmoid", "Relu", "Sqrt", "Abs", "Neg", "Softplus", "Mish"]


@pytest.mark.parametrize("kind", [*UNARY, "Gelu", "HardSwish", "Elu", "LeakyRelu", "Floor", "Sin"])
def test_elementwise(target, kind):
    x = np.concatenate([np.linspace(-20, 20, 1001), np.geomspace(1e-30, 80, 500)])
    x = x.astype(np.float32)
    if kind in ("Log", "Sqrt"):
        x = np.abs(x) + np.float32(1e-30)
    agree(
        graph([helper.make_node(kind, ["x"], ["y"])], {"x": x}, ["y"]),
        [x],
        target=target,
        tolerance=1e-6,
    )


@pytest.mark.parametrize("kind", ["Exp", "Sigmoid", "Tanh", "Relu", "Softplus", "Erf"])
def test_what_is_not_a_number_stays_so_and_infinity_has_its_limit(target, kind):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, 3e38, -3e38] * 4, np.float32)
    from native_models import reference

    model = graph([helper.make_node(kind, ["x"], ["y"])], {"x": x}, ["y"])
    with np.errstate(all="ignore"):
        (want,) = reference(model, [x])
        (got,) = run(model, [x], target=target)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_allclose(got, want.astype(np.float32), rtol=1e-5, atol=1e-37)


def test_views_and_copies(target):
    x = array(4, 6, 10)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[2, 0, 1]),
        helper.make_node("Slice", ["t", "starts", "ends", "axes", "steps"], ["s"]),
        helper.make_node("Reshape", ["s", "shape"], ["r"]),
        helper.make_node("Split", ["r"], ["p", "q"], axis=0, num_outputs=2),
        helper.make_node("Concat", ["q", "p"], ["c"], axis=1),
        helper.make_node("Gather", ["c", "places"], ["y"], axis=1),
    ]
    weights = {
        "starts": np.array([8, 0]), "ends": np.array([-100, 4]), "axes": np.array([0, 1]),
        "steps": np.array([-2, 1]), "shape": np.array([10, 12]),
        "places": np.array([[3, -1], [0, 23]]),
    }  # fmt: skip
    agree(graph(nodes, {"x": x}, ["y", "c"], weights), [x], target=target)


@pytest.mark.parametrize("hidden", [5, 16, 48, 128])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_lstm(target, hidden, direction):
    both = 2 if direction == "bidirectional" else 1
    x = array(7, 2, 9)
    weights = {
        "w": 0.3 * array(both, 4 * hidden, 9, seed=1),
        "r": 0.1 * array(both, 4 * hidden, hidden, seed=2),
        "b": array(both, 8 * hidden, seed=3),
        "h": array(both, 2, hidden, seed=4),
        "c": array(both, 2, hidden, seed=5),
    }
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "b", "", "h", "c"], ["y", "last", "cell"],
        hidden_size=hidden, direction=direction,
    )  # fmt: skip
    model = graph([node], {"x": x}, ["y", "last", "cell"], weights)
    import onnxruntime

    session = onnxruntime.InferenceSession(
        with_types(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )  # ONNX's reference knows no bidirectional LSTM
    for got, want in zip(run(model, [x], target=target), session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_gather_by_several_axes(target):
    x, places = array(4, 5, 6), np.array([[0, -1], [3, 2], [-4, 4]])
    model = graph([helper.make_node("GatherND", ["x", "i"], ["y"])], {"x": x, "i": places}, ["y"])
    (got,) = run(model, [x, places], target=target)
    np.testing.assert_array_equal(got, x[places[:, 0], places[:, 1]])
