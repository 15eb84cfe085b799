"""Runs what capture made, and holds it against the model."""

import numpy as np
import onnxruntime
import torch

from redline.capture.cases import resize
from redline.graph.serialize import to_bytes
from redline.tree import as_call, flatten, unflatten


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(to_bytes(model.graph), options)


def assert_graph_agrees(model, sizes=({},)):
    """The graph in ONNX Runtime gives what the module gives, at every set of dynamic sizes."""
    assert model.graph is not None, model.notes
    run = session(model)
    names = [spec.name for spec in model.signature.inputs]
    outputs = [spec.name for spec in model.signature.outputs]
    assert [node.name for node in run.get_inputs()] == names
    assert [node.name for node in run.get_outputs()] == outputs
    for size in sizes:
        shapes = [
            tuple(size.get(axis, array.shape[i]) for i, axis in enumerate(spec.shape))
            for spec, array in zip(model.signature.inputs, model.example, strict=True)
        ]
        arrays = [resize(a, shape) for a, shape in zip(model.example, shapes, strict=True)]
        wanted = call(model, arrays)
        got = run.run(outputs, dict(zip(names, arrays, strict=True)))
        for one, other in zip(got, wanted, strict=True):
            assert one.shape == other.shape
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def call(model, arrays):
    tensors = [torch.from_numpy(np.array(array)) for array in arrays]
    args, kwargs = as_call(unflatten(model.signature.input_tree, tensors))
    with torch.no_grad():
        leaves = flatten(model.signature.output_tree, model.module(*args, **kwargs))
    return [leaf.numpy() for leaf in leaves]
