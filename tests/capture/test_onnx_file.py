"""ONNX files of any age: converted and run equal, sizes settled, bad ones refused."""

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from redline.capture import onnx_proto
from redline.capture.onnx_file import load_onnx
from redline.capture.onnx_reference import run_onnx
from redline.errors import InputError, ModelError, UnknownNameError
from redline.graph.opset import OPSET
from redline.graph.serialize import to_bytes
from redline.signature import Dim, TensorSpec

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def model(nodes, inputs, outputs, weights=None, opset=OPSET, ir_version=8, domains=()):
    infos = [
        [helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in values]
        for values in (inputs, outputs)
    ]
    tensors = [numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    graph = helper.make_graph(nodes, "net", *infos, tensors)
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)
    return onnx.shape_inference.infer_shapes(made)  # an output given without shape gets one


def relu(shape=(2, 3), dtype=FLOAT, opset=OPSET):
    node = helper.make_node("Relu", ["x"], ["y"])
    return model([node], [("x", dtype, shape)], [("y", dtype, shape)], opset=opset)


def add(first, second, out=None):
    node = helper.make_node("Add", ["a", "b"], ["y"])
    return model([node], [("a", FLOAT, first), ("b", FLOAT, second)], [("y", FLOAT, out)])


def op(name, inputs, **attributes):
    return helper.make_node(name, inputs, ["y"], **attributes)


def old_forms():
    """(opset, nodes, weights, input shape) of forms that later opsets write otherwise."""
    image = [1, 2, 4, 4]
    scales = {"roi": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}
    half = np.float32(0.5)
    norm = {name: np.array([0.5, 2], np.float32) for name in "sbmv"}
    return {
        "squeeze-axes": (11, [op("Squeeze", ["x"], axes=[0])], {}, image),
        "unsqueeze-axes": (12, [op("Unsqueeze", ["x"], axes=[0, 3])], {}, image),
        "clip-11": (11, [op("Clip", ["x", "lo", "hi"])], {"lo": -half, "hi": half}, image),
        "dropout-ratio": (11, [op("Dropout", ["x"], ratio=0.5)], {}, image),
        "softmax-flattens": (12, [op("Softmax", ["x"], axis=1)], {}, image),
        "logsoftmax-default": (11, [op("LogSoftmax", ["x"])], {}, [3, 5]),
        "reduce-axes": (13, [op("ReduceMean", ["x"], axes=[2, 3], keepdims=0)], {}, image),
        "reducesum-axes": (11, [op("ReduceSum", ["x"], axes=[1], keepdims=1)], {}, image),
        "split-sizes": (
            12,
            [
                helper.make_node("Split", ["x"], ["p", "q"], axis=3, split=[1, 3]),
                op("Concat", ["q", "p"], axis=3),
            ],
            {},
            image,
        ),
        "resize": (11, [op("Resize", ["x", "roi", "s"], mode="linear")], scales, image),
        "batchnorm": (12, [op("BatchNormalization", ["x", *"sbmv"])], norm, image),
        "pad-11": (
            11,
            [op("Pad", ["x", "p"], mode="reflect")],
            {"p": np.array([0, 0, 1, 1, 0, 0, 1, 2])},
            image,
        ),
        "hardswish-14": (14, [op("HardSwish", ["x"])], {}, image),
    }


FORMS = old_forms()


@pytest.mark.parametrize("form", FORMS)
def test_old_forms_are_converted_and_run_equal(form):
    opset, nodes, weights, shape = FORMS[form]
    proto = model(nodes, [("x", FLOAT, shape)], [("y", FLOAT, None)], weights, opset)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    loaded = load_onnx(proto, x)
    assert loaded.graph.opset_imports[""] == OPSET
    assert loaded.notes == ()
    (before,), (after,) = (
        run_onnx(data, [(x,)])[0] for data in (proto.SerializeToString(), to_bytes(loaded.graph))
    )
    assert loaded.signature.outputs[0].shape == before.shape
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_below_11_is_converted_where_onnx_can():
    node = helper.make_node("Clip", ["x"], ["y"], min=-0.5, max=0.5)
    proto = model([node], [("x", FLOAT, [2, 3])], [("y", FLOAT, [2, 3])], opset=9)
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    loaded = load_onnx(proto, x)
    assert loaded.graph.opset_imports[""] == OPSET
    np.testing.assert_array_equal(run_onnx(to_bytes(loaded.graph), [(x,)])[0][0], x.clip(-0.5, 0.5))


def test_upsample_of_opset_9_becomes_resize():
    node = helper.make_node("Upsample", ["x", "s"], ["y"], mode="nearest")
    scales = {"s": np.array([1, 1, 2, 2], np.float32)}
    proto = model([node], [("x", FLOAT, [1, 1, 2, 2])], [("y", FLOAT, [1, 1, 4, 4])], scales, 9)
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    loaded = load_onnx(proto, x)
    y = run_onnx(to_bytes(loaded.graph), [(x,)])[0][0]
    np.testing.assert_array_equal(y, x.repeat(2, 2).repeat(2, 3))


def refuse(*_args):
    raise RuntimeError("No Adapter From Version 12 for Relu")


def test_what_the_converter_refuses_stays_at_its_opset(monkeypatch):
    monkeypatch.setattr(onnx_proto, "_convert", refuse)
    loaded = load_onnx(relu(opset=12))
    assert loaded.graph.opset_imports[""] == 12
    assert loaded.notes[0].what.startswith("kept at opset 12")
    with pytest.raises(ModelError, match=r"opset 8.*No Adapter"):
        load_onnx(relu(opset=8))


def test_a_conversion_that_changes_the_results_is_not_taken(monkeypatch):
    def wrong(proto):
        changed = onnx.version_converter.convert_version(proto, OPSET)
        changed.graph.node[0].op_type = "Neg"
        return changed

    monkeypatch.setattr(onnx_proto, "_convert", wrong)
    loaded = load_onnx(relu(opset=12))
    assert [node.op_type for node in loaded.graph.graph] == ["Relu"]
    assert "gives other results" in loaded.notes[0].what


def test_path_bytes_message_and_graph_give_the_same(tmp_path):
    proto = relu()
    path = tmp_path / "tiny.onnx"
    onnx.save(proto, path)
    sources = [path, str(path), path.read_bytes(), proto, onnx_ir.serde.deserialize_model(proto)]
    loaded = [load_onnx(source) for source in sources]
    assert len({one.graph_hash for one in loaded}) == 1
    assert [one.name for one in loaded] == ["tiny", "tiny", "net", "net", "net"]
    assert load_onnx(path, name="mine").name == "mine"
    assert loaded[0].origin == "onnx"
    assert proto == relu(), "the message that was given is changed"


def test_signature_and_seeded_example():
    nodes = [
        helper.make_node("Gather", ["t", "i"], ["g"]),
        helper.make_node("Where", ["m", "g", "x"], ["y"]),
    ]
    inputs = [("i", INT64, [3]), ("m", TensorProto.BOOL, [3]), ("x", FLOAT, [3])]
    proto = model(
        nodes, inputs, [("y", FLOAT, [3]), ("g", FLOAT, [3])], {"t": np.ones(2, np.float32)}
    )
    loaded, again = load_onnx(proto), load_onnx(proto)
    assert loaded.signature.inputs == (
        TensorSpec("i", "int64", (3,)),
        TensorSpec("m", "bool", (3,)),
        TensorSpec("x", "float32", (3,)),
    )
    assert loaded.signature.outputs[1] == TensorSpec("g", "float32", (3,))
    assert loaded.signature.input_tree.keys == ("i", "m", "x")
    assert loaded.signature.output_tree.keys == ("y", "g")
    assert set(loaded.example[0]) <= {0, 1}
    for a, b in zip(loaded.example, again.example, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_that_are_also_inputs_are_weights():
    inputs = [("x", FLOAT, [2]), ("w", FLOAT, [2])]
    proto = model([op("Mul", ["x", "w"])], inputs, [("y", FLOAT, [2])], {"w": np.float32([2, 3])},
                  opset=11, ir_version=3)  # fmt: skip
    loaded = load_onnx(proto)
    assert [spec.name for spec in loaded.signature.inputs] == ["x"]
    y = run_onnx(to_bytes(loaded.graph), [(np.ones(2, np.float32),)])[0][0]
    np.testing.assert_array_equal(y, [2, 3])


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_floats(dtype):
    loaded = load_onnx(relu(dtype=helper.np_dtype_to_tensor_dtype(np.dtype(dtype))))
    assert loaded.signature.inputs[0].dtype == dtype
    assert loaded.example[0].dtype == dtype


def test_open_batch_without_example_becomes_one():
    loaded = load_onnx(relu(["N", 3]))
    assert loaded.signature.inputs[0].shape == loaded.signature.outputs[0].shape == (1, 3)
    assert loaded.graph.graph.inputs[0].shape == onnx_ir.Shape([1, 3])
    assert loaded.graph.graph.outputs[0].shape == onnx_ir.Shape([1, 3])
    assert "axis 0 of 'x'" in loaded.notes[0].what
    assert "dynamic=" in loaded.notes[0].hint


def test_open_axes_take_the_sizes_of_the_example():
    loaded = load_onnx(relu(["N", "T", None]), torch.ones(2, 5, 7))
    assert loaded.signature.inputs[0].shape == loaded.signature.outputs[0].shape == (2, 5, 7)


def test_an_open_axis_that_nothing_settles_is_an_error():
    with pytest.raises(InputError, match="axis 1 of the input 'x' open") as caught:
        load_onnx(relu(["N", "T"]))
    assert "example" in caught.value.hint
    assert "'T': (min, opt, max)" in caught.value.hint


@pytest.mark.parametrize(
    ("dynamic", "dim"),
    [
        ({"N": (1, 4, 8)}, "N"),
        ({"batch": (1, 4, 8)}, "batch"),
        ({"x": {0: (1, 4, 8)}}, "N"),
        ({"x": {0: ("items", 1, 4, 8)}}, "items"),
    ],
)
def test_dynamic_dims(dynamic, dim):
    loaded = load_onnx(relu(["N", 3]), dynamic=dynamic)
    assert loaded.signature.dims == (Dim(dim, 1, 4, 8),)
    assert loaded.signature.inputs[0].shape == loaded.signature.outputs[0].shape == (dim, 3)
    assert loaded.example[0].shape == (4, 3)
    assert loaded.notes == ()
    session = onnxruntime.InferenceSession(to_bytes(loaded.graph))
    assert session.get_inputs()[0].shape == [dim, 3]


def test_a_symbol_shared_by_inputs_is_one_dim():
    loaded = load_onnx(add(["N", 3], ["N", 3], ["N", 3]), dynamic={"a": {0: (1, 2, 4)}})
    assert [spec.shape for spec in loaded.signature.inputs] == [("N", 3), ("N", 3)]
    assert len(loaded.signature.dims) == 1


def test_batch_means_axis_0_of_every_input():
    loaded = load_onnx(add([None, 3], [None, 1]), dynamic={"batch": (1, 2, 4)})
    assert [spec.shape for spec in loaded.signature.inputs] == [("batch", 3), ("batch", 1)]


def test_example_is_brought_to_the_opt_size():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    loaded = load_onnx(relu(["N", 3]), x, dynamic={"N": (1, 4, 8)})
    np.testing.assert_array_equal(loaded.example[0], np.concatenate([x, x]))


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"N": (0, 4, 8)}, "expected 1 <= min <= opt <= max"),
        ({"N": (4, 2, 8)}, "expected 1 <= min <= opt <= max"),
        ({"N": (1, 8)}, "expected 1 <= min <= opt <= max"),
        ({"N": 8}, "expected 1 <= min <= opt <= max"),
        ({"N": (1, 2.0, 8)}, "expected 1 <= min <= opt <= max"),
        ({"x": {1: (1, 2, 3)}}, "fixes axis 1 of the input 'x' to 3"),
        ({"x": {7: (1, 2, 3)}}, "axes 0 to 1, got 7"),
        ({"X": {0: (1, 2, 3)}}, "unknown input 'X'"),
        ({"N": (1, 2, 3), "x": {0: (1, 2, 4)}}, "given two ranges"),
    ],
)
def test_dynamic_that_does_not_fit(dynamic, message):
    with pytest.raises(InputError, match=message):
        load_onnx(relu(["N", 3]), dynamic=dynamic)


def test_dynamic_batch_of_a_file_that_fixes_it():
    with pytest.raises(InputError, match="fixes axis 0 of the input 'x' to 2") as caught:
        load_onnx(relu((2, 3)), dynamic={"batch": (1, 2, 3)})
    assert "export" in caught.value.hint


@pytest.mark.parametrize(
    "example",
    [
        (np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)),
        [np.ones((2, 3), np.float32), torch.zeros(2, 3)],
        {"b": torch.zeros(2, 3, requires_grad=True), "a": np.ones((2, 3), np.float32)},
        ((np.ones((2, 3), np.float32),), {"b": torch.zeros(2, 3)}),
    ],
)
def test_examples_in_every_form(example):
    loaded = load_onnx(add([2, 3], [2, 3], [2, 3]), example)
    assert [array.sum() for array in loaded.example] == [6, 0]


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((ONES,), "'b' is missing; expected a, b"),
        ((ONES, ONES, ONES), "got 3 example inputs, expected 2: a, b"),
        ({"a": ONES, "B": ONES}, "unknown input 'B'"),
        (((ONES,), {"a": ONES}), "'a' is given twice"),
        ((ONES, ONES.astype(np.float64)), "'b' is float64, expected float32"),
        ((ONES, ONES[0]), "'b' has shape \\(3,\\), expected 2 axes: \\(2, 3\\)"),
        ((ONES, ONES[:, :2]), "'b' has size 2 on axis 1, expected 3"),
        ((ONES, [[1.0]]), "'b' is a list"),
    ],
)
def test_examples_that_do_not_fit(example, message):
    with pytest.raises(InputError, match=message) as caught:
        load_onnx(add([2, 3], [2, 3], [2, 3]), example)
    assert isinstance(caught.value, InputError | UnknownNameError)


def test_example_outside_the_range_or_at_odds_with_itself():
    with pytest.raises(InputError, match=r"size 9 on axis 0, expected 1 to 8 \('N'\)"):
        load_onnx(relu(["N", 3]), np.ones((9, 3), np.float32), dynamic={"N": (1, 4, 8)})
    with pytest.raises(InputError, match="size 5 on axis 0, expected 2, as other inputs have"):
        load_onnx(add(["N", 3], ["N", 3]), (ONES, np.ones((5, 3), np.float32)))


def test_output_sizes_that_only_a_run_tells():
    nodes = [helper.make_node("NonZero", ["x"], ["n"]), helper.make_node("Transpose", ["n"], ["y"])]
    proto = model(nodes, [("x", FLOAT, [2, 3])], [("y", INT64, [None, 2])])
    loaded = load_onnx(proto, np.eye(2, 3, dtype=np.float32))
    assert loaded.signature.outputs == (TensorSpec("y", "int64", (2, 2)),)


def test_custom_domains_are_kept():
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", alpha=2.0)
    proto = model([node], [("x", FLOAT, [2, 3])], [("y", FLOAT, [2, 2])],
                  {"w": np.ones((3, 2), np.float32)}, domains=["com.microsoft"])  # fmt: skip
    loaded = load_onnx(proto, ONES)
    assert loaded.graph.opset_imports["com.microsoft"] == 1
    np.testing.assert_array_equal(
        run_onnx(to_bytes(loaded.graph), [(ONES,)])[0][0], np.full((2, 2), 6)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, "does not exist"),
        (lambda p: p.parent, "is not a file"),
        (lambda p: p.write_bytes(b"\xff\x00nonsense") and p, "is not an ONNX model"),
        (lambda p: p.write_bytes(b"PK\x03\x04zip") and p, "is not an ONNX model"),
        (lambda p: p.write_bytes(b"") or p, "holds no graph"),
        (lambda p: p.write_bytes(relu().SerializeToString()[:-9]) and p, "not"),
        (lambda p: 3, "got a int, expected a path"),
    ],
)
def test_what_is_no_onnx_file(tmp_path, make, message):
    with pytest.raises(ModelError, match=message):
        load_onnx(make(tmp_path / "net.onnx"))


def test_what_the_checker_refuses_is_one_error():
    broken = relu()
    broken.graph.node[0].op_type = "Rleu"
    with pytest.raises(ModelError, match=r"not a valid ONNX model: .*Rleu"):
        load_onnx(broken)
    dangling = relu()
    dangling.graph.node[0].input[0] = "nobody"
    with pytest.raises(ModelError, match=r"not a valid ONNX model: .*nobody"):
        load_onnx(dangling)


def test_inputs_that_are_no_tensors_of_numbers():
    text = model(
        [op("Identity", ["x"])], [("x", TensorProto.STRING, [2])], [("y", TensorProto.STRING, [2])]
    )
    with pytest.raises(ModelError, match="'x' holds text"):
        load_onnx(text)
    narrow = model(
        [op("Identity", ["x"])],
        [("x", TensorProto.BFLOAT16, [2])],
        [("y", TensorProto.BFLOAT16, [2])],
    )
    with pytest.raises(ModelError, match="'x' holds bfloat16"):
        load_onnx(narrow)
    sequence = helper.make_tensor_sequence_value_info("x", FLOAT, None)
    y = helper.make_tensor_value_info("y", INT64, [])
    graph = helper.make_graph([op("SequenceLength", ["x"])], "g", [sequence], [y])
    with pytest.raises(ModelError, match="'x' is a sequence, expected a tensor"):
        load_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))


def test_a_graph_without_inputs():
    constant = numpy_helper.from_array(np.float32(1), "c")
    proto = model([helper.make_node("Constant", [], ["y"], value=constant)], [], [("y", FLOAT, [])])
    with pytest.raises(ModelError, match="no inputs"):
        load_onnx(proto)
