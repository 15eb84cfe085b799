"""Q/DQ pairs: layers between them multiply whole numbers, as exactly as ONNX says."""

import numpy as np
import onnx_ir
import pytest
from native_models import compiled, graph, needs_compiler, reference, run, targets
from onnx import helper

from redline import backends
from redline.native import isa
from redline.native.compile import lower

pytestmark = needs_compiler
node = helper.make_node


@pytest.fixture(params=targets(whole=True))
def target(request):
    return request.param


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def small(*shape, low=-128, seed=0):
    return (
        np.random.default_rng(seed)
        .integers(low, low + 256, shape)
        .astype(np.int8 if low < 0 else np.uint8)
    )


def f(value):
    return np.array(value, np.float32)


class Net:
    """A graph with Q/DQ pairs, put together node by node."""

    def __init__(self):
        self.nodes, self.weights = [], {}

    def rounded(self, x, scale=0.03, zero=None):
        """x -> Q -> DQ."""
        name = f"{x}_d"
        zero = np.array(np.uint8(120) if zero is None else zero)
        self.weights |= {f"{x}_s": f(scale), f"{x}_z": zero}
        pair = [f"{x}_s", f"{x}_z"]
        self.nodes.append(node("QuantizeLinear", [x, *pair], [f"{x}_q"]))
        self.nodes.append(node("DequantizeLinear", [f"{x}_q", *pair], [name]))
        return name

    def fixed(self, name, whole, axis=0, scale=None, zero=None):
        """Whole numbers -> DQ."""
        if scale is None:  # no two levels apart by a number that makes ties
            scale = np.random.default_rng(7).uniform(0.001, 0.004, whole.shape[axis])
        self.weights |= {name: whole, f"{name}_s": np.asarray(scale, np.float32)}
        ins = [name, f"{name}_s"]
        if zero is not None:
            self.weights[f"{name}_z"] = np.full(np.shape(scale), zero, whole.dtype)
            ins.append(f"{name}_z")
        self.nodes.append(node("DequantizeLinear", ins, [f"{name}_d"], axis=axis))
        return f"{name}_d"

    def add(self, kind, ins, out, **attributes):
        self.nodes.append(node(kind, ins, [out], **attributes))
        return out

    def model(self, x, out="y"):
        return graph(self.nodes, {"x": x}, [out], self.weights)


def whole(model, target="avx2", threads=2):
    """The layers that multiply whole numbers."""
    read = onnx_ir.serde.deserialize_model(model)
    program, _ = lower(read, isa.get(target), threads)
    return [one for one in program.nodes if one.whole]


def check(model, x, count, *, flips=0.0, **how):
    """So many layers in whole numbers, and ONNX's own result.

    `flips`: the share of elements that may differ by more than float32's rounding, since a value
    between two levels may take either.
    """
    assert len(whole(model)) == count
    for got, want in zip(run(model, [x], **how), reference(model, [x]), strict=True):
        away = np.abs(got - want) / np.sqrt(np.mean(np.square(want)))
        assert got.shape == want.shape
        assert np.mean(away > 2e-5) <= flips
        assert away.max(initial=0) < 0.1


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (1, 2, 1),
        (3, 8, 33),
        (29, 40, 70),
        (64, 300, 257),
        (30, 2048, 40),
        (1, 512, 1000),
        (700, 64, 20),
    ],
)
def test_product(target, threads, m, k, n):
    x, net = array(m, k), Net()
    w = net.fixed("w", small(k, n), axis=1)
    net.add("MatMul", [net.rounded("x"), w], "h")
    net.weights["b"] = array(n, seed=1)
    net.add("Add", ["h", "b"], "s")
    net.add("Gelu", ["s"], "y")
    check(net.model(x), x, 1, target=target, threads=threads)


@pytest.mark.parametrize("zero", [np.int8(-128), np.int8(5), np.uint8(0), np.uint8(255)])
def test_every_zero_point_and_the_extremes(target, zero):
    """Far outside of what eight bits reach on one side, and both ends of the weights."""
    x, net = 20 * array(9, 64), Net()
    w = small(12, 64, seed=1)
    w[0], w[1] = -128, 127
    net.weights["b"] = array(12)
    ins = [net.rounded("x", zero=zero), net.fixed("w", w, scale=0.01), "b"]
    net.add("Gemm", ins, "y", transB=1)
    check(net.model(x), x, 1, target=target)


def test_sums_as_large_as_they_get_do_not_overflow(target):
    k, net = 1 << 16, Net()
    x = np.full((2, k), 1e3, np.float32)
    w = net.fixed("w", np.full((k, 3), -128, np.int8), axis=1, scale=1e-6)
    net.add("MatMul", [net.rounded("x", zero=np.uint8(0)), w], "y")
    check(net.model(x), x, 1, target=target)


def test_the_next_layer_s_numbers_are_written_at_once(target):
    """Two layers: what lies between them is never a float in memory."""
    x, net = array(50, 64), Net()
    net.add("MatMul", [net.rounded("x"), net.fixed("w", small(64, 96), axis=1)], "h")
    net.add("Relu", ["h"], "r")
    ins = [net.rounded("r", zero=np.uint8(0)), net.fixed("v", small(96, 24, seed=2), axis=1)]
    net.add("MatMul", ins, "y")
    model = net.model(x)
    assert [str(one.out.dtype) for one in whole(model)] == ["int16", "float32"]
    _, sources = lower(onnx_ir.serde.deserialize_model(model), isa.get("avx2"), 2)
    assert sum(str(group["kernel"]).startswith("int8 gemm") for group in sources.groups) == 2
    check(model, x, 2, flips=0.01, target=target)


@pytest.mark.parametrize(
    ("n", "channels", "outs", "size", "kernel", "stride"),
    [
        (1, 16, 16, (9, 11), 3, 1),
        (2, 32, 48, (14, 14), 3, 2),
        (1, 64, 40, (7, 7), 1, 1),
        (1, 128, 128, (28, 28), 3, 1),
        (3, 48, 20, (13, 6), 5, 1),
        (1, 256, 64, (14, 14), 1, 2),
        (1, 512, 512, (7, 7), 3, 1),
    ],
)
def test_convolution(target, n, channels, outs, size, kernel, stride):
    """A first layer in float, one in whole numbers, a residual from another."""
    x, net = array(n, 3, *size), Net()
    net.weights |= {"w0": array(channels, 3, 3, 3, seed=1) / 5, "b": array(outs, seed=2)}
    net.add("Conv", ["x", "w0"], "c0", pads=[1] * 4)
    net.add("Relu", ["c0"], "r0")
    image = net.rounded("r0", 0.02, np.int8(-128))
    w = net.fixed("w", small(outs, channels, kernel, kernel, seed=3), scale=0.001)
    strides = [stride, stride]
    net.add("Conv", [image, w, "b"], "c1", pads=[kernel // 2] * 4, strides=strides)
    net.add("Relu", ["c1"], "r1")
    last = [net.rounded("r1", 0.05, np.uint8(3)), net.fixed("v", small(24, outs, 1, 1, seed=4))]
    net.add("Conv", last, "c2") if outs % 16 == 0 else net.add("Relu", ["r1_d"], "c2")
    if outs % 16 == 0:
        net.add(
            "Conv",
            [image, net.fixed("u", small(24, channels, 1, 1, seed=5))],
            "c3",
            strides=strides,
        )
        net.add("Add", ["c2", "c3"], "c4")
    net.add("Relu", ["c4" if outs % 16 == 0 else "c2"], "y")
    count = 3 if outs % 16 == 0 else 1
    check(net.model(x), x, count, flips=0.01, target=target, winograd=True)


def test_pooling_and_reshaping_leave_whole_numbers_whole(target):
    x, net = array(2, 32, 12, 12), Net()
    net.add("MaxPool", [net.rounded("x")], "p", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Conv", ["p", net.fixed("w", small(16, 32, 3, 3))], "c", pads=[1] * 4)
    net.add("Flatten", [net.rounded("c", 0.2)], "f")
    net.add("MatMul", ["f", net.fixed("v", small(16 * 36, 10, seed=1), axis=1)], "y")
    check(net.model(x), x, 2, flips=0.05, target=target)


def test_a_view_of_whole_numbers_is_one_pass(target):
    """Transposed and reshaped on the way from its pair to the product."""
    x, net = array(2, 6, 5, 8), Net()
    net.weights["shape"] = np.array([2, 5, 48])
    net.add("Transpose", [net.rounded("x")], "t", perm=[0, 2, 3, 1])
    net.add("Reshape", ["t", "shape"], "r")
    net.add("MatMul", ["r", net.fixed("w", small(48, 20), axis=1)], "y")
    check(net.model(x), x, 1, target=target)
    net = Net()
    net.add("Transpose", [net.rounded("x")], "t", perm=[0, 2, 1, 3])
    net.add("MatMul", ["t", net.fixed("w", small(8, 20), axis=1)], "y")
    check(net.model(x), x, 1, target=target)


def test_a_table_stays_in_whole_numbers(target, tmp_path):
    places, net = np.random.default_rng(0).integers(0, 900, (2, 7)), Net()
    net.add("Gather", [net.fixed("w", small(900, 64)), "x"], "g")
    net.add("Mul", ["g", "g"], "y")
    model = net.model(places)
    for got, want in zip(
        run(model, [places], target=target), reference(model, [places]), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    compiled(model, tmp_path, target=target)
    assert (tmp_path / "weights.bin").stat().st_size < 900 * 64 * 2


def odd():
    net = Net()
    net.add("MatMul", [net.rounded("x"), net.fixed("w", small(7, 5), axis=1)], "y")
    return net, array(4, 7)


def steps_along_k():
    net = Net()
    net.add("MatMul", [net.rounded("x"), net.fixed("w", small(8, 5), axis=0)], "y")
    return net, array(4, 8)


def nine_bits():
    net = Net()
    w = net.fixed("w", small(8, 5, low=0), axis=1, zero=3)
    net.add("MatMul", [net.rounded("x"), w], "y")
    return net, array(4, 8)


def weights_alone():
    net = Net()
    net.add("MatMul", ["x", net.fixed("w", small(8, 5), axis=1)], "y")
    return net, array(4, 8)


def groups():
    net = Net()
    w = net.fixed("w", small(32, 16, 3, 3))
    net.add("Conv", [net.rounded("x"), w], "y", pads=[1] * 4, group=2)
    return net, array(1, 32, 6, 6)


@pytest.mark.parametrize("net", [odd, steps_along_k, nine_bits, weights_alone, groups])
def test_what_has_no_such_form_is_computed_in_float(target, net):
    made, x = net()
    check(made.model(x), x, 0, target=target)


def test_only_int8_is_offered():
    native = backends.get("native")
    assert native.lacks("int8") == ""
    assert "int8 alone" in native.lacks("int8-dynamic")
