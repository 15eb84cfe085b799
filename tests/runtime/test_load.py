"""open_engine(): the best part that may and can run here, with a word about those passed over."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from engine_samples import PORTABLE, X, Y, save_sample
from runner_samples import BACKENDS, make_part

from redline.engine.file import open_file
from redline.engine.manifest import Part
from redline.errors import (
    EngineFileError,
    MissingError,
    RunError,
    SelfTestError,
    UnknownNameError,
    WrongMachineError,
)
from redline.runtime.load import PORTABLE as PLAIN
from redline.runtime.load import open_engine
from redline.runtime.self_test import output_error


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    (tmp_path / "planted").mkdir()
    return tmp_path / "planted"


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_from_a_file(backend: str, tmp_path: Path, planted: Path) -> None:
    part = make_part(backend, planted)
    path = save_sample(tmp_path / "a.redline", (part, planted))
    with open_engine(path) as session:
        assert (session.part, session.notices) == (part, ())
        assert session.manifest is not None
        assert session.manifest.name == session.name == "sample"
        np.testing.assert_allclose(session(X), Y, rtol=1e-5)
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: np.allclose(session(X), Y), range(64)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_file_may_be_deleted_or_replaced_once_open(
    backend: str, tmp_path: Path, planted: Path
) -> None:
    path = save_sample(tmp_path / "a.redline", (make_part(backend, planted), planted))
    with open_engine(path) as session:
        save_sample(path, name="another")
        path.unlink()
        np.testing.assert_allclose(session(X), Y, rtol=1e-5)


def test_the_first_part_wins(tmp_path: Path, planted: Path) -> None:
    openvino = make_part("openvino", planted)
    path = save_sample(tmp_path / "a.redline", (openvino, planted), (PORTABLE, planted))
    with open_engine(path) as session:
        assert session.part == openvino
    with open_engine(path, part="onnxruntime") as session:
        assert session.part == PORTABLE
        assert session.notices == ()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("wrong", "gave an error of 1"), ("nan", "gave an error of inf"), ("error", "told to fail")],
)
def test_a_part_that_fails_its_self_test_is_passed_over(
    tmp_path: Path, planted: Path, behaviour: str, reason: str
) -> None:
    part = make_part("null", planted, behaviour=behaviour)
    path = save_sample(tmp_path / "a.redline", (part, planted))
    heard: list[str] = []
    with open_engine(path, notify=heard.append) as session:
        assert session.part == PLAIN
        assert session.notices == tuple(heard)
        np.testing.assert_allclose(session(X), Y, rtol=1e-5)
    (notice,) = heard
    assert notice.startswith("null part passed over: ")
    assert reason in notice
    assert notice.endswith("onnxruntime runs instead")


def test_nothing_left_raises_the_first_reason(tmp_path: Path, planted: Path) -> None:
    wrong = make_part("null", planted, behaviour="wrong")
    path = save_sample(tmp_path / "a.redline", (wrong, planted))
    with pytest.raises(SelfTestError, match="allowed is 1e-05") as error:
        open_engine(path, part="null")
    assert error.value.where == str(path)
    first = Part("null", {"behaviour": "error"})
    second = make_part("ncnn", planted)
    (planted / "model.param").write_bytes(b"junk")
    path = save_sample(tmp_path / "b.redline", (first, planted), (second, planted), graph=None)
    with pytest.raises(RunError, match="told to fail") as told:
        open_engine(path)
    assert "ncnn part: ncnn cannot read model.param" in told.value.__notes__[0]


@pytest.mark.parametrize("flags", [{"avx2", "fma"}, {"avx2"}])
def test_a_part_for_another_cpu(
    tmp_path: Path, planted: Path, monkeypatch: pytest.MonkeyPatch, flags: set[str]
) -> None:
    monkeypatch.setattr("redline.runtime.load.isa_flags", lambda: frozenset(flags))
    part = Part("null", uses_graph=True, code=True, isa=("avx2", "fma"))
    path = save_sample(tmp_path / "a.redline", (part, planted))
    heard: list[str] = []
    with open_engine(path, notify=heard.append) as session:
        assert session.part == (part if "fma" in flags else PLAIN)
    assert heard == (
        []
        if "fma" in flags
        else [
            (
                "null part passed over: the null part needs fma, which this CPU lacks; "
                "onnxruntime runs instead"
            )
        ]
    )
    if heard:
        with pytest.raises(WrongMachineError):
            open_engine(path, part="null")


def test_a_part_whose_library_is_missing(
    tmp_path: Path, planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = make_part("openvino", planted)
    path = save_sample(tmp_path / "a.redline", (part, planted))
    monkeypatch.delitem(sys.modules, "redline.runtime.run_openvino", raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with open_engine(path, notify=lambda _: None) as session:
        assert session.part == PLAIN
        assert "library that is not installed" in session.notices[0]
    with pytest.raises(MissingError) as error:
        open_engine(path, part="openvino")
    assert error.value.hint == "pip install openvino"


def test_a_part_of_a_backend_of_the_future(tmp_path: Path, planted: Path) -> None:
    path = save_sample(tmp_path / "a.redline", (Part("photonic", uses_graph=True), planted))
    with open_engine(path, notify=lambda _: None) as session:
        assert "cannot run photonic parts" in session.notices[0]
    with pytest.raises(UnknownNameError, match="did you mean 'photonic'"):
        open_engine(path, part="photonik")


def test_without_a_self_test(tmp_path: Path, planted: Path) -> None:
    wrong = make_part("null", planted, behaviour="wrong")
    path = save_sample(tmp_path / "a.redline", (wrong, planted))
    with open_engine(path, self_test=False) as session:
        assert session.part == wrong
    right = save_sample(tmp_path / "b.redline", check=None)
    with open_engine(right) as session:
        np.testing.assert_allclose(session(X), Y, rtol=1e-5)


def test_notices_go_to_the_log_by_default(
    tmp_path: Path, planted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = make_part("null", planted, behaviour="error")
    path = save_sample(tmp_path / "a.redline", (part, planted))
    with caplog.at_level(logging.WARNING, "redline"), open_engine(path):
        pass
    assert "null part passed over" in caplog.text


def test_a_failed_open_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_sample(tmp_path / "a.redline")
    closed: list[int] = []
    monkeypatch.setattr("redline.engine.file.EngineFile.close", lambda self: closed.append(1))
    with pytest.raises(UnknownNameError):
        open_engine(path, part="nothing")
    assert closed == [1]
    monkeypatch.undo()
    with pytest.raises(EngineFileError):
        open_engine(tmp_path / "missing")


@pytest.mark.parametrize(
    ("y", "expected", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0),
        ([1.0, 1.5], [1.0, 1.0], 0.5),
        ([0.25], [0.0], 0.25),
        ([np.nan], [1.0], np.inf),
        ([np.inf], [1.0], np.inf),
        ([1.0], [np.nan], np.inf),
        ([np.nan, np.inf, 2.0], [np.nan, np.inf, 2.0], 0),
        ([np.inf], [-np.inf], np.inf),
        ([1, 2, 3, 4], [1, 2, 3, 5], 0.25),
        ([True], [True], 0),
        ([1.0], [1.0, 2.0], np.inf),
        ([1j], [1.0], np.sqrt(2)),
        ([], [], 0),
    ],
)
def test_the_error_of_an_output(y: list[float], expected: list[float], error: float) -> None:
    assert output_error([np.array(y)], [np.array(expected)]) == pytest.approx(error)
    assert output_error([], [np.array(expected)]) == np.inf


NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "onnxscript", "onnx_ir", "transformers"):
            raise ImportError(f"blocked: {name}")
sys.meta_path.insert(0, Blocked())
import redline, redline.runtime, redline.engine
import numpy as np
from redline.runtime.load import open_engine
x = np.load(sys.argv[1])
for path in sys.argv[2:]:
    with open_engine(path) as engine:
        assert not engine.notices, engine.notices
        print(engine.part.backend, engine(x).sum())
assert "torch" not in sys.modules
"""


def test_engines_run_without_torch(tmp_path: Path) -> None:
    paths = []
    for backend in ("onnxruntime", "openvino", "ncnn"):
        folder = tmp_path / backend
        folder.mkdir()
        part = make_part(backend, folder)
        paths.append(save_sample(tmp_path / f"{backend}.redline", (part, folder)))
    np.save(tmp_path / "x.npy", X)
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, tmp_path / "x.npy", *paths],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[::2] == ["onnxruntime", "openvino", "ncnn"]
    np.testing.assert_allclose([float(word) for word in words[1::2]], Y.sum(), rtol=1e-5)
    assert done.stderr == ""


def test_closing_lets_go_of_the_file(tmp_path: Path) -> None:
    path = save_sample(tmp_path / "a.redline")
    session = open_engine(path)
    session.close()
    session.close()
    with open_file(path) as file:
        assert file.manifest.name == "sample"
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(path) not in maps.read_text()
