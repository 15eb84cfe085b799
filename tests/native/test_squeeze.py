"""Squeeze and excitation: sums in the depthwise kernel, scales in the weights behind it."""

import onnx_ir
import pytest
from native_models import agree, graph, needs_compiler, targets
from onnx import helper
from test_kernels import array

from redline.native import isa
from redline.native.compile import lower


def network(channels, kernel, stride, size, out=24, batch=1, averaged="GlobalAveragePool"):
    """A block of EfficientNet: widened, filtered, weighed by its average, narrowed."""
    widened = 2 * channels
    pad, few = kernel // 2, max(1, widened // 8)
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node(
            "Conv", ["b", "w1", "b0"], ["c"], pads=[pad] * 4, strides=[stride] * 2, group=widened
        ),
        helper.make_node("Sigmoid", ["c"], ["d"]),
        helper.make_node("Mul", ["c", "d"], ["e"]),
        helper.make_node(averaged, ["e"], ["f"]),
        helper.make_node("Conv", ["f", "w2"], ["g"]),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("Conv", ["h", "w3"], ["i"]),
        helper.make_node("Sigmoid", ["i"], ["j"]),
        helper.make_node("Mul", ["e", "j"], ["k"], name="gate"),
        helper.make_node("Conv", ["k", "w4"], ["y"], name="narrow"),
    ]
    shapes = {
        "w0": (widened, channels, 1, 1), "b0": (widened,), "w1": (widened, 1, kernel, kernel),
        "w2": (few, widened, 1, 1), "w3": (widened, few, 1, 1), "w4": (out, widened, 1, 1),
    }  # fmt: skip
    weights = {name: array(*shape, seed=i) * 0.3 for i, (name, shape) in enumerate(shapes.items())}
    x = array(batch, channels, *size, seed=9)
    return graph(nodes, {"x": x}, ["y"], weights), x


def lowered(model, threads=2):
    read = onnx_ir.serde.deserialize_model(model)
    program, _ = lower(read, isa.get("avx2"), threads)
    return program


@needs_compiler
@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "size", "batch"),
    [
        (20, 3, 1, (17, 15), 1),  # inside the fused pair, channels that fill no vector
        (16, 5, 2, (30, 16), 1),
        (20, 3, 1, (9, 7), 1),  # the depthwise kernel alone
        (60, 5, 1, (40, 40), 1),  # enough work for both threads
        (24, 3, 1, (15, 15), 2),
        (8, 3, 1, (2, 2), 1),  # more outputs than pixels
    ],
)
def test_a_block_that_weighs_its_channels(target, threads, channels, kernel, stride, size, batch):
    model, x = network(channels, kernel, stride, size, batch=batch)
    agree(model, [x], target=target, threads=threads)


@pytest.mark.parametrize("averaged", ["GlobalAveragePool", "GlobalMaxPool"])
def test_no_pass_over_the_widened_image_is_left(averaged):
    model, _ = network(20, 3, 1, (17, 15), averaged=averaged)
    program = lowered(model)
    kinds = [node.kind for node in program.nodes if node.kind not in ("block", "unblock")]
    assert kinds == ["expand", "pool", "conv", "conv", "conv"]
    pool = next(node for node in program.nodes if node.kind == "pool")
    small = averaged == "GlobalAveragePool"
    assert pool.ins[0].shape[2:] == ((1, 2) if small else (17, 15))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch": 2}, "it has 2 images of 40 channels"),
        ({"size": (4, 4)}, "24 rows of weights are more than the image's 16 pixels"),
    ],
)
def test_a_scale_that_stays_says_why(changes, reason):
    model, _ = network(**{"channels": 20, "kernel": 3, "stride": 1, "size": (17, 15)} | changes)
    program = lowered(model)
    assert f"gate is not folded into the weights of narrow: {reason}" in program.notes
    assert "loop" in [node.kind for node in program.nodes]
