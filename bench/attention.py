"""Claim: attention over blocks of keys is faster than over all keys at once where they are many.

    python bench/attention.py              # 128 to 4096 keys, about a minute
    python bench/attention.py 512 2048     # some

Twelve heads of 64 (four above 1000 keys), as many queries as keys, fp32, every core. Both forms and
ONNX Runtime's take turns in one run: median of each, and blocks over the better of the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from redline import machine
from redline.native import isa
from redline.native.attention import fuse_attention
from redline.native.compile import compile_graph
from redline.native.fuse import fuse
from redline.native.read import read
from redline.native.tune import Model, key

WIDTH = 64


def network(heads: int, n: int) -> onnx.ModelProto:
    """softmax(0.125 Q K^T) V with K given transposed."""
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["s"], name="scores"),
        helper.make_node("Mul", ["s", "c"], ["m"], name="scaled"),
        helper.make_node("Softmax", ["m"], ["p"], axis=-1, name="weights"),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="result"),
    ]
    shapes = {"q": (1, heads, n, WIDTH), "k": (1, heads, WIDTH, n), "v": (1, heads, n, WIDTH)}
    infos = [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in shapes.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, shapes["q"])
    scale = numpy_helper.from_array(np.array(0.125, np.float32), "c")
    made = helper.make_graph(nodes, "attention", infos, [out], [scale])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def forms(n: int, folder: Path) -> dict[str, Callable[[], object]]:
    """What takes turns, ready to be called."""
    heads = 12 if n < 1000 else 4
    model, random = network(heads, n), np.random.default_rng(0)
    inputs = {
        v.name: random.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in model.graph.input
    }
    inputs = {name: array.astype(np.float32) for name, array in inputs.items()}
    threads = machine.usable_cores()
    target = isa.usable(sorted(machine.isa_flags()))[0]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: dict[str, Callable[[], object]] = {"onnxruntime": lambda: session.run(None, inputs)}
    for name in ("whole", "blocks"):
        graph = onnx_ir.serde.deserialize_model(model)
        (node,) = fuse_attention(fuse(read(graph))).nodes
        place = folder / f"{name}{n}"
        place.mkdir()
        choices = {key(node): {"blocks": name == "blocks"}}
        compile_graph(graph, target, threads, place, choices=choices)
        found[name] = Model(place, list(inputs.values())).call
    return found


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("keys", nargs="*", type=int, default=[128, 197, 384, 512, 1024, 2048, 4096])
    print("keys  onnxruntime  all keys  blocks  blocks over the better")
    for n in parser.parse_args().keys:
        with tempfile.TemporaryDirectory() as folder:
            calls = forms(n, Path(folder))
            times: dict[str, list[float]] = {name: [] for name in calls}
            until = time.monotonic() + 6
            while time.monotonic() < until or len(times["whole"]) < 7:
                for name in [*calls, *reversed(calls)]:
                    start = time.perf_counter()
                    calls[name]()
                    times[name].append(time.perf_counter() - start)
        ort, whole, blocks = (1e3 * float(np.median(t)) for t in times.values())
        print(
            f"{n:4} {ort:9.2f} ms {whole:6.2f} ms {blocks:6.2f} ms {min(ort, whole) / blocks:6.2f}x"
        )


if __name__ == "__main__":
    main()
