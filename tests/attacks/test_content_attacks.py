"""Files whose hashes are right and whose content is not."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_samples import CODE, GRAPH, X, Y, graph_proto, save_sample
from forge import change_manifest, forge, read_members, write_members
from hypothesis import given, settings
from hypothesis import strategies as st

from redline.engine import sign
from redline.engine.arrays import pack_arrays, unpack_arrays
from redline.engine.file import open_file
from redline.engine.manifest import Part
from redline.engine.scan import check_graph
from redline.engine.validate import decode_manifest
from redline.errors import (
    EngineFileError,
    SelfTestError,
    TamperedError,
    UnsafeError,
    UntrustedError,
)
from redline.runtime.load import open_engine
from redline.tree import Fields


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return save_sample(tmp_path / "sample.redline")


def deep_tree() -> dict[str, Any]:
    tree: dict[str, Any] = {"kind": "leaf"}
    for _ in range(100):
        tree = {"kind": "list", "children": [tree]}
    return tree


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["members"].pop("check.npz"),
        lambda m: m["members"].update(extra={"size": 1, "sha256": "0" * 64}),
        lambda m: m["parts"].clear(),
        lambda m: m["parts"][0].update(files=["gone.bin"]),
        lambda m: m["parts"][0].update(files=["graph.onnx"]),
        lambda m: m["parts"][0].update(backend="os.system"),
        lambda m: m["parts"][0].update(setting={"threads": [1]}),
        lambda m: m["signature"]["inputs"].clear(),
        lambda m: m["signature"]["inputs"][0].update(dtype="object"),
        lambda m: m["signature"]["inputs"][0].update(shape=[-1, 4]),
        lambda m: m["signature"]["inputs"][0].update(shape=[1] * 100),
        lambda m: m["signature"]["dims"][0].update(min=20),
        lambda m: m["signature"].update(output_tree=deep_tree()),
        lambda m: m["signature"].update(output_tree={"kind": "pickle"}),
        lambda m: m["signature"]["input_tree"].update(keys=["x", "y"]),
        lambda m: m["check"].update(tolerance=-1),
        lambda m: m["check"].update(tolerance="inf"),
        lambda m: m.pop("signature"),
        lambda m: m.update(schema="1"),
        lambda m: m.update(schema=0),
        lambda m: m["check"].update(latency_s="1"),
    ],
)
def test_a_manifest_that_contradicts_itself(engine: Path, change: Any) -> None:
    change_manifest(engine, change)
    with pytest.raises(TamperedError):
        open_engine(engine)


@pytest.mark.parametrize(
    "data", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"schema":1}']
)
def test_what_is_no_manifest(data: bytes) -> None:
    with pytest.raises(TamperedError, match="cannot be read"):
        decode_manifest(data)


def test_a_missing_member(engine: Path) -> None:
    forge(engine, lambda manifest, members: members.pop("graph.onnx") and None)
    with pytest.raises(TamperedError, match=r"graph.onnx"):
        open_file(engine)


def test_an_extra_member(engine: Path) -> None:
    forge(engine, lambda manifest, members: members.update(hidden=b"x"))
    with pytest.raises(TamperedError, match="hidden"):
        open_file(engine)


def external(location: str, place: str = "initializer") -> bytes:
    """The sample graph with a tensor whose bytes lie in another file."""
    model = graph_proto()
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[4, 3], data_location=1)
    tensor.external_data.add(key="location", value=location)
    if place == "initializer":
        model.graph.initializer[0].CopyFrom(tensor)
        return model.SerializeToString()
    node = onnx.helper.make_node("Constant", [], ["w"], value=tensor)
    if place == "constant":
        model.graph.node.insert(0, node)
    elif place == "function":
        model.functions.add(name="f").node.append(node)
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    else:
        body = onnx.helper.make_graph([node], "body", [], [])
        loop = onnx.helper.make_node("If", ["c"], ["d"], then_branch=body, else_branch=body)
        model.graph.node.append(loop)
    return model.SerializeToString()


@pytest.mark.parametrize("place", ["initializer", "constant", "function", "sparse", "subgraph"])
def test_a_graph_that_would_read_other_files(engine: Path, place: str) -> None:
    (engine.parent / "secret").write_bytes(bytes(48))
    graph = external(str(engine.parent / "secret"), place)
    forge(engine, lambda _, members: members.update({"graph.onnx": graph}))
    with pytest.raises(UnsafeError, match="in another file"):
        open_engine(engine)


def test_a_graph_in_a_format_that_is_not_looked_into(engine: Path) -> None:
    forge(engine, lambda _, members: members.update({"graph.onnx": b"\0\0\0\0ORTM" + GRAPH}))
    with pytest.raises(UnsafeError, match="format"):
        open_engine(engine)


def test_a_sound_graph_passes() -> None:
    check_graph(GRAPH)
    check_graph(memoryview(GRAPH))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(GRAPH)), st.integers(0, 8), st.binary(max_size=8))
def test_a_damaged_graph_never_ends_in_another_error(start: int, cut: int, new: bytes) -> None:
    damaged = GRAPH[:start] + new + GRAPH[start + cut :]
    with suppress(EngineFileError):
        check_graph(damaged)


def npz(**arrays: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, data in arrays.items():
            zipped.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        npz(in_0=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,)}")),
        npz(in_0=npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", bytes(4))),
        npz(in_0=npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n")),
        npz(in_0=npy("__import__('os').system('true')")),
        npz(in_0=npy("(" * 90)),
        npz(in_0=b"\x93NUMPY\x09\x09"),
        npz(in_0=b""),
        npz(),
        npz(in_0=b"", in_1=b""),
    ],
)
def test_arrays_that_lie(data: bytes) -> None:
    with pytest.raises(EngineFileError):
        unpack_arrays(data, 1, 0)


def test_compressed_arrays_are_refused() -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, in_0=np.zeros(1_000_000))
    with pytest.raises(UnsafeError, match="compressed"):
        unpack_arrays(buffer.getvalue(), 1, 0)


def test_a_wrong_expectation_is_a_failed_self_test(engine: Path) -> None:
    wrong = pack_arrays([X], [Y + 0.5])
    forge(engine, lambda _, members: members.update({"check.npz": wrong}))
    with pytest.raises(SelfTestError, match="allowed is 1e-05"):
        open_engine(engine)
    with open_engine(engine, self_test=False) as session:
        np.testing.assert_allclose(session(X), Y, rtol=1e-6)


def test_an_unsigned_code_part_does_not_run(tmp_path: Path) -> None:
    crash = Part("null", {"behaviour": "crash"}, code=True)
    path = save_sample(tmp_path / "a.redline", (crash, tmp_path), sign=False, graph=None)
    with pytest.raises(UntrustedError, match="machine code and the file is not signed") as error:
        open_engine(path)
    assert "trust=True" in error.value.hint


def test_a_code_part_by_an_unknown_signer_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_sample(tmp_path / "a.redline", (CODE, tmp_path))
    line = sign.public_key()
    with open_engine(path) as session:
        assert session.part == CODE
    monkeypatch.setenv("REDLINE_CONFIG_DIR", str(tmp_path / "other-machine"))
    heard: list[str] = []
    with open_engine(path, notify=heard.append) as session:
        assert session.part is not None
        assert session.part.backend == "onnxruntime"
        assert session.notices == tuple(heard)
        assert "does not trust" in heard[0]
        np.testing.assert_allclose(session(X), Y, rtol=1e-6)
    with open_engine(path, trust=True) as session:
        assert session.part == CODE
    sign.trust_key(line)
    with open_engine(path) as session:
        assert session.part == CODE


@pytest.mark.parametrize("backend", ["null", "inductor"])
def test_code_that_says_it_is_none(tmp_path: Path, backend: str) -> None:
    """The mark in the manifest is not believed: only known data formats run unsigned."""
    (tmp_path / "model.pt2").write_bytes(b"\x7fELF")
    part = Part(backend, {"behaviour": "crash"}, files=("model.pt2",), code=False)
    path = save_sample(tmp_path / "a.redline", (part, tmp_path), sign=False, graph=None)
    with pytest.raises(UntrustedError, match="machine code"):
        open_engine(path)


def test_a_signed_part_that_is_swapped(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"\x7fELF")
    part = Part("inductor", files=("model.pt2",), code=True)
    path = save_sample(tmp_path / "a.redline", (part, tmp_path))
    members = read_members(path)
    write_members(path, {**members, "parts/0/model.pt2": b"\x7fEVI"})
    with pytest.raises(TamperedError, match="not what the manifest says"):
        open_engine(path, part="inductor")


@pytest.mark.parametrize("name", ["subprocess:Popen", "os:system", "builtins:exec"])
def test_an_object_type_is_never_called(engine: Path, name: str) -> None:
    tree = {
        "kind": "object",
        "keys": ["y", "shell"],
        "children": [{"kind": "leaf"}, {"kind": "constant", "value": True}],
        "type": name,
    }
    change_manifest(engine, lambda m: m["signature"].update(output_tree=tree))
    with open_engine(engine) as session:
        result = session(X)
    assert isinstance(result, Fields)
    np.testing.assert_allclose(result.y, Y, rtol=1e-6)
