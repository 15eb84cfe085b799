"""Weights in other files: read from the model's folder and from nowhere else."""

import os
import socket

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from redline.capture.onnx_file import load_onnx
from redline.errors import InputError, UnsafeError
from redline.graph import external_data
from redline.graph.serialize import to_bytes

WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


def model(location="w.bin", dims=(3, 4), where="initializer", **entries):
    """x @ w, with w in another file."""
    tensor = numpy_helper.from_array(WEIGHT, "w")
    set_external_data(tensor, location, **entries)
    tensor.ClearField("raw_data")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if where == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    weights = [tensor] if where == "initializer" else []
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.fixture
def folder(tmp_path):
    """model/ holds the weights; outside.bin, beside it, must never be read."""
    (tmp_path / "outside.bin").write_bytes(WEIGHT.tobytes())
    inside = tmp_path / "model"
    (inside / "sub").mkdir(parents=True)
    for name in ("w.bin", "sub/w.bin"):
        (inside / name).write_bytes(WEIGHT.tobytes())
    return inside


def load(folder, proto):
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    return load_onnx(path)


def weight_of(loaded):
    return loaded.graph.graph.initializers["w"].const_value.numpy()


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin", "./sub/./w.bin"])
@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_weights_inside_the_folder_are_read(folder, location, where):
    loaded = load(folder, model(location, where=where))
    np.testing.assert_array_equal(weight_of(loaded), WEIGHT)
    for file in folder.rglob("*.bin"):
        file.unlink()
    assert WEIGHT.tobytes() in to_bytes(loaded.graph)


def test_offset_and_length(folder):
    (folder / "w.bin").write_bytes(b"\xff" * 64 + WEIGHT.tobytes() + b"\xff" * 9)
    loaded = load(folder, model(offset=64, length=48))
    np.testing.assert_array_equal(weight_of(loaded), WEIGHT)


def test_a_current_folder_with_such_a_file_is_not_read(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    (elsewhere / "other.bin").write_bytes(WEIGHT.tobytes())
    monkeypatch.chdir(elsewhere)
    with pytest.raises(InputError, match=r"cannot read external data 'other\.bin'"):
        load(folder, model("other.bin"))


def test_paths_out_of_the_folder(folder, tmp_path):
    outside = str(tmp_path / "outside.bin")
    for location in (
        "../outside.bin",
        "sub/../../outside.bin",
        "sub/../w.bin",
        outside,
        "/" + outside,
        "..\\outside.bin",
        "C:\\outside.bin",
        "C:outside.bin",
    ):
        with pytest.raises(UnsafeError, match="leaves the folder"):
            load(folder, model(location))


@pytest.mark.parametrize("location", ["", ".", "sub/.", "w.bin\0x"])
def test_locations_that_name_no_file(folder, location):
    with pytest.raises((InputError, UnsafeError)):
        load(folder, model(location))


def test_symbolic_links(folder, tmp_path):
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "door").symlink_to(tmp_path)
    (folder / "inner.bin").symlink_to(folder / "w.bin")
    for location in ("link.bin", "door/outside.bin", "inner.bin"):
        with pytest.raises(UnsafeError, match="symbolic link"):
            load(folder, model(location))


def test_hard_link(folder, tmp_path):
    os.link(tmp_path / "outside.bin", folder / "hard.bin")
    with pytest.raises(UnsafeError, match="hard link"):
        load(folder, model("hard.bin"))


@pytest.mark.timeout(20)
def test_pipes_sockets_and_folders_are_not_read(folder, monkeypatch):
    os.mkfifo(folder / "pipe")
    with pytest.raises(UnsafeError, match="not a regular file"):
        load(folder, model("pipe"))
    with pytest.raises((UnsafeError, InputError)):
        load(folder, model("sub"))
    monkeypatch.chdir(folder)  # the path of a socket is short by law
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind("plug")
        with pytest.raises((UnsafeError, InputError)):
            load(folder, model("plug"))


def test_devices_are_not_read():
    with pytest.raises(UnsafeError, match="not a regular file"):
        external_data.read(external_data.Path("/dev"), "zero", offset=0, length=4, size=4, name="w")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": -4}, "offset -4"),
        ({"offset": 4}, "has 44 bytes after offset 4, expected 48"),
        ({"offset": 10**30}, "0 bytes after offset"),
        ({"length": -1}, "length -1, expected 48"),
        ({"length": 47}, "length 47, expected 48"),
        ({"length": 10**12}, "expected 48 bytes"),
    ],
)
def test_offset_or_length_out_of_range(folder, entries, message):
    with pytest.raises(InputError, match=message):
        load(folder, model(**entries))


def test_numbers_that_are_none(folder):
    proto = model(offset=0)
    proto.graph.initializer[0].external_data[1].value = "zero"
    with pytest.raises(InputError, match="has offset 'zero'"):
        load(folder, proto)


def test_a_shape_that_does_not_fit_the_file(folder):
    with pytest.raises(InputError, match="expected 4000000000000"):
        external_data.read(folder, "w.bin", offset=0, length=4 * 10**12, size=4 * 10**12, name="w")
    with pytest.raises(InputError, match="the size -3"):
        load(folder, model(dims=(-3, -4)))
    with pytest.raises(InputError, match=r"more than 2\.0 GiB"):
        load(folder, model(dims=(10**6, 10**6)))


def test_many_weights_on_one_large_file_do_not_fill_the_memory(folder, monkeypatch):
    monkeypatch.setattr(external_data, "MAX_WEIGHTS", 100)
    proto = model()
    for number in range(2):
        copy = proto.graph.initializer.add()
        copy.CopyFrom(proto.graph.initializer[0])
        copy.name = f"w{number}"
    with pytest.raises(InputError, match="the weights take more than"):
        load(folder, proto)


def test_bytes_and_messages_have_no_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for source in (model(), model().SerializeToString()):
        with pytest.raises(InputError, match="has no folder to look in"):
            load_onnx(source)


def test_weights_of_functions_are_looked_at_too(folder, tmp_path):
    tensor = model(str(tmp_path / "outside.bin")).graph.initializer[0]
    body = [
        helper.make_node("Constant", [], ["w"], value=tensor),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    function = helper.make_function("mine", "Layer", ["a"], ["b"], body, opsets[:1])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    graph = helper.make_graph(
        [helper.make_node("Layer", ["x"], ["y"], domain="mine")], "g", [x], [y]
    )
    proto = helper.make_model(graph, functions=[function], opset_imports=opsets)
    with pytest.raises(UnsafeError, match="leaves the folder"):
        load(folder, proto)


def test_a_lazy_graph_of_onnx_ir_is_confined_as_well(folder, tmp_path):
    (folder / "net.onnx").write_bytes(model().SerializeToString())
    loaded = load_onnx(onnx_ir.load(folder / "net.onnx"))
    np.testing.assert_array_equal(weight_of(loaded), WEIGHT)
    (folder / "w.bin").unlink()
    (folder / "w.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(UnsafeError, match="symbolic link"):
        load_onnx(onnx_ir.load(folder / "net.onnx"))


def test_what_onnx_itself_saves(folder):
    whole = model()
    external_data.embed(whole, folder)
    path = folder / "saved.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="saved.data", size_threshold=0)
    np.testing.assert_array_equal(weight_of(load_onnx(path)), WEIGHT)
