"""Small ONNX graphs, compiled and run by the native compiler."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import helper, numpy_helper

from redline import machine
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.native import isa, toolchain
from redline.native.compile import Compiled, compile_graph
from redline.runtime.run_native import open_part
from redline.signature import Signature, TensorSpec
from redline.tree import Tree

needs_compiler = pytest.mark.skipif(toolchain.compiler() is None, reason="needs a C++ compiler")


@cache
def targets(whole=False):
    """Every instruction set this machine runs; the portable one is the twin of the others."""
    return [found.name for found in isa.usable(sorted(machine.isa_flags()), whole=whole)]


def graph(nodes, inputs, outputs, weights=None, opset=20):
    """An ONNX model: inputs by name as arrays or shapes of float32."""
    infos = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), np.shape(array)
        )
        for name, array in inputs.items()
    ]
    made = helper.make_graph(
        nodes,
        "test",
        infos,
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)])


def compiled(
    model: onnx.ModelProto, folder: Path, *, target="", threads=2, winograd=False
) -> Compiled:
    chosen = isa.get(target or targets()[0])
    read = onnx_ir.serde.deserialize_model(model)
    return compile_graph(read, chosen, threads, folder, winograd=winograd)


def opened(model, arrays, folder, *, threads=2):
    specs = tuple(
        TensorSpec(value.name, str(array.dtype), array.shape)
        for value, array in zip(model.graph.input, arrays, strict=True)
    )
    leaf = Tree("leaf")
    part = Part("native", {"threads": threads}, files=("model.so", "weights.bin"), code=True)
    return open_part(part, FolderStore(folder), Signature(specs, (), leaf, leaf))


def run(model, arrays, *, target="", threads=2, winograd=False):
    """Outputs of the compiled model."""
    with tempfile.TemporaryDirectory() as name:
        compiled(model, Path(name), target=target, threads=threads, winograd=winograd)
        runner = opened(model, arrays, Path(name), threads=threads)
        try:
            first = runner.run(arrays)
            second = runner.run(arrays)
        finally:
            runner.close()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    return first


def reference(model, arrays):
    """The same in float64, by ONNX's own reference."""
    from onnx.reference import ReferenceEvaluator

    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    for value in wide.graph.input:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    feed = {
        value.name: array.astype(np.float64) if array.dtype == np.float32 else array
        for value, array in zip(model.graph.input, arrays, strict=True)
    }
    return ReferenceEvaluator(wide).run(None, feed)


def agree(model, arrays, *, tolerance=2e-5, **how):
    """The compiled model agrees with float64 on the given target."""
    for got, want in zip(run(model, arrays, **how), reference(model, arrays), strict=True):
        assert got.shape == want.shape
        scale = max(1e-6, float(np.sqrt(np.mean(np.square(want))))) if want.size else 1.0
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def with_types(model):
    """The model with float32 outputs declared, which ONNX Runtime asks for."""
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    typed.ir_version = 10
    for value in typed.graph.output:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return typed
