"""Whole models under the sanitizers: threads meet where they must, nothing leaves its array."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import onnx_ir
import pytest
from native_models import graph, needs_compiler
from onnx import helper

from redline import machine
from redline.native import isa, toolchain
from redline.native.compile import lower
from redline.native.tune import key

pytestmark = [needs_compiler, pytest.mark.slow]

CALLS = """
#include <cstdio>
#include <cstdlib>
#include <vector>
extern "C" {
void* redline_open(const void*);
int redline_run(void*, const void* const*, void* const*);
void redline_close(void*);
}
int main(int, char** argv) {
    FILE* f = fopen(argv[1], "rb");
    char* weights = (char*)aligned_alloc(64, SIZE);
    if (fread(weights, 1, SIZE, f) > SIZE) return 2;
    std::vector<float> in(INPUT, 0.5f), out(OUTPUT);
    const void* x[] = {in.data()};
    void* y[] = {out.data()};
    void* context = redline_open(weights);
    for (int i = 0; i < 20; ++i)
        if (redline_run(context, x, y)) return 3;
    redline_close(context);
}
"""


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * 0.1


def convolutions():
    """Winograd, a ring of widened rows, strides, a shared image, pooling and a product."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w0"], ["a"], pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "w1"], ["c"], pads=[1] * 4),
        node("Add", ["c", "b"], ["d"]),
        node("Conv", ["d", "w2"], ["e"]),
        node("Conv", ["e", "w3"], ["f"], pads=[1] * 4, group=96),
        node("GlobalAveragePool", ["f"], ["g"]),
        node("Flatten", ["g"], ["h"]),
        node("MatMul", ["h", "w4"], ["y"]),
    ]
    shapes = [(32, 3, 3, 3), (32, 32, 3, 3), (96, 32, 1, 1), (96, 1, 3, 3), (96, 70)]
    weights = {f"w{i}": array(*shape, seed=i) for i, shape in enumerate(shapes)}
    return graph(nodes, {"x": array(1, 3, 56, 56)}, ["y"], weights), 3 * 56 * 56, 70


def encoder():
    """Products, attention, norms and the copies between them."""
    node = helper.make_node
    weights = {"w": array(64, 64), "g": array(64, seed=1), "v": array(64, 2048, seed=2)}
    weights["s"] = np.array([40, 4, 16])
    weights["r"] = np.array([40, 64])
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Reshape", ["a", "s"], ["b"])]
    nodes += [
        node("Transpose", ["b"], ["q"], perm=[1, 0, 2]),
        node("Transpose", ["b"], ["k"], perm=[1, 2, 0]),
        node("MatMul", ["q", "k"], ["c"]),
        node("Softmax", ["c"], ["p"], axis=-1),
        node("MatMul", ["p", "q"], ["o"]),
        node("Transpose", ["o"], ["t"], perm=[1, 0, 2]),
        node("Reshape", ["t", "r"], ["u"]),
        node("LayerNormalization", ["u", "g"], ["n"]),
        node("MatMul", ["n", "v"], ["m"]),
        node("Softmax", ["m"], ["y"], axis=-1),
    ]
    return graph(nodes, {"x": array(40, 64)}, ["y"], weights), 40 * 64, 40 * 2048


def recurrent():
    """The steps of an LSTM, shared out among threads."""
    weights = {"w": array(1, 512, 64), "r": array(1, 512, 128, seed=1)}
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=128)]
    return graph(nodes, {"x": array(20, 1, 64)}, ["y"], weights), 20 * 64, 20 * 128


def sanitized(model, inside, outside, folder, change=lambda text: text, kind="thread", **how):
    """What a sanitizer says of twenty calls with four threads."""
    target = isa.usable(sorted(machine.isa_flags()))[0]
    _, sources = lower(onnx_ir.serde.deserialize_model(model), target, 4, winograd=True, **how)
    (folder / "weights.bin").write_bytes(sources.weights)
    head = f"#define SIZE {max(64, len(sources.weights))}\n#define INPUT {inside}\n"
    head += f"#define OUTPUT {outside}\n"
    for name, text in {**sources.files, "main.cpp": head + CALLS}.items():
        (folder / name).write_text(change(text))
    flags = [*target.flags, f"-DRL_VECTOR_BYTES={target.vector_bytes}", f"-I{toolchain.KERNELS}"]
    made = subprocess.run(
        [toolchain.compiler(), "-std=c++17", "-O1", "-g1", f"-fsanitize={kind}", "-Wno-psabi",
         "-fno-sanitize-recover=all", "-fwrapv",
         *flags, *folder.glob("*.cpp"), "-o", folder / "model", "-lpthread"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr[-2000:]
    ran = subprocess.run(
        [folder / "model", folder / "weights.bin"], capture_output=True, text=True, check=False,
        env=dict(os.environ, ASAN_OPTIONS="detect_leaks=0"),  # which needs ptrace
    )  # fmt: skip
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("the thread sanitizer does not run on this kernel")
    return ran


MEMORY = "address,undefined"


@pytest.mark.parametrize("kind", ["thread", MEMORY])
def test_attention_by_blocks_of_keys(kind, tmp_path):
    model, inside, outside = encoder()
    for place, n in enumerate(model.graph.node):
        n.name = f"{n.op_type}{place}"
    target = isa.usable(sorted(machine.isa_flags()))[0]
    program, _ = lower(onnx_ir.serde.deserialize_model(model), target, 4)
    name = next(key(made) for made in program.nodes if made.kind == "attention")
    ran = sanitized(model, inside, outside, tmp_path, kind=kind, choices={name: {"blocks": True}})
    assert "attention_blocks" in "".join(f.read_text() for f in tmp_path.glob("groups*.cpp"))
    assert ran.returncode == 0, ran.stderr[:3000]
    assert "WARNING" not in ran.stderr


@pytest.mark.parametrize("make", [convolutions, encoder, recurrent])
def test_nothing_is_read_or_written_beyond_its_array(make, tmp_path):
    ran = sanitized(*make(), tmp_path, kind=MEMORY)
    assert ran.returncode == 0, ran.stderr[:3000]


def test_the_sanitizers_see_what_is_wrong(tmp_path):
    """Negative controls: an output that is one too short, a shift by more bits than there are."""
    model, inside, outside = recurrent()
    ran = sanitized(model, inside, outside - 1, tmp_path, kind=MEMORY)
    assert ran.returncode != 0
    assert "ERROR: AddressSanitizer" in ran.stderr  # which overflow it is depends on the vector

    def shifted(text: str) -> str:
        head = "void group0(rl::Context& c, int t) {"
        return text.replace(head, head + "volatile int wide = 40; if (1 << wide) (void)c;")

    ran = sanitized(model, inside, outside, tmp_path, shifted, kind=MEMORY)
    assert ran.returncode != 0
    assert "shift exponent 40" in ran.stderr


@pytest.mark.parametrize("make", [convolutions, encoder, recurrent])
def test_no_thread_reads_what_another_writes(make, tmp_path):
    ran = sanitized(*make(), tmp_path)
    assert ran.returncode == 0, ran.stderr[:3000]
    assert "WARNING" not in ran.stderr


def test_the_sanitizer_sees_a_barrier_that_is_gone(tmp_path):
    def cut(text: str) -> str:
        return text.replace("rl::barrier(c);\ngroup3(c, t);", "group3(c, t);")

    model, inside, outside = convolutions()
    ran = sanitized(model, inside, outside, tmp_path, cut)
    assert "data race" in ran.stderr
