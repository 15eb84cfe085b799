"""What GCC makes of the inner loops: every sum stays in its register."""

import platform
import re

import numpy as np
import onnx_ir
import pytest
from native_models import graph, needs_compiler
from onnx import helper
from test_kernels import array

from redline.native import isa, toolchain
from redline.native.compile import lower

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly"),
]


def models():
    """A product, a first layer, a 3x3 layer as Winograd and direct, a 1x1 layer."""
    conv = [
        helper.make_node("Conv", ["x", "a"], ["h"], pads=[2, 2, 2, 2]),
        helper.make_node("Conv", ["h", "b"], ["i"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["i"], ["j"]),
        helper.make_node("Conv", ["j", "b"], ["k"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["k", "c"], ["y"]),
    ]
    weights = {"a": array(32, 3, 5, 5), "b": array(32, 32, 3, 3), "c": array(32, 32, 1, 1)}
    x = array(1, 3, 56, 56)
    product = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gelu", ["h"], ["y"]),
    ]
    rows = array(96, 64)
    pairs = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["v", "s"], ["e"]),
        helper.make_node("MatMul", ["d", "e"], ["y"]),
    ]
    whole = {
        "v": np.ones((64, 96), np.int8), "s": np.array(0.1, np.float32), "z": np.array(9, np.uint8),
    }  # fmt: skip
    return {
        "whole numbers": graph(pairs, {"x": rows}, ["y"], whole),
        "convolutions": graph(conv, {"x": x}, ["y"], weights),
        "product": graph(product, {"x": rows}, ["y"], {"w": array(64, 96)}),
    }


def inner_loops(text):
    """The instructions of each loop that has no other inside."""
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    labels = {
        line[:-1]: place for place, line in enumerate(lines) if re.fullmatch(r"\.L\w+:", line)
    }
    loops = []
    for place, line in enumerate(lines):
        jump = re.match(r"j\w+\s+(\.L\w+)$", line)
        if jump and labels.get(jump[1], place) < place:
            loops.append((labels[jump[1]], place))
    for first, last in loops:
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            yield lines[first : last + 1]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        *((target, name) for target in ("avx2", "avx512") for name in models()),
        ("avx512_vnni", "whole numbers"),
    ],
)
def test_no_product_goes_through_the_stack(target, name, tmp_path):
    read = onnx_ir.serde.deserialize_model(models()[name])
    _, sources = lower(read, isa.get(target), 2, winograd=True)
    for file, text in sources.files.items():
        (tmp_path / file).write_text(text)
    toolchain.assemble(sources.files, isa.get(target), tmp_path)
    products = 0
    for path in tmp_path.glob("groups*.s"):
        for loop in inner_loops(path.read_text()):
            fused = [line for line in loop if line.startswith(("vfmadd", "vpmaddwd", "vpdpwssd"))]
            broadcasts = [line for line in loop if re.search(r"v(p|)broadcast(ss|d)|{1to", line)]
            if len(fused) < 8 or len(broadcasts) < 2:
                continue  # a transform or an epilogue
            products += 1
            spilled = [line for line in loop if re.match(r"v.*\((%rsp|%rbp)", line)]
            assert not spilled, f"{path.name}: {loop}"
    assert products
