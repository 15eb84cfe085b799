"""Every runner: right, fresh, thread-safe, and clear about what goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_samples import SIGNATURE, B, W, X, Y
from runner_samples import BACKENDS, make_part, open_sample

from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.errors import MissingError, RunError, UnknownNameError
from redline.runtime import settings
from redline.runtime.runner import open_part
from redline.signature import TensorSpec


@pytest.mark.parametrize("backend", BACKENDS)
def test_right_at_every_batch(backend: str, tmp_path: Path) -> None:
    runner = open_sample(backend, tmp_path)
    for batch in (2, 1, 7, 2):
        x = np.random.default_rng(batch).standard_normal((batch, 4)).astype(np.float32)
        (y,) = runner.run([x])
        assert (y.dtype, y.shape) == (np.float32, (batch, 3))
        np.testing.assert_allclose(y, x @ W + B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_are_fresh_and_writeable(backend: str, tmp_path: Path) -> None:
    runner = open_sample(backend, tmp_path)
    (first,) = runner.run([X])
    (second,) = runner.run([X * 2])
    assert not np.shares_memory(first, second)
    np.testing.assert_allclose(first, Y, rtol=1e-5)
    first[:] = 0
    np.testing.assert_allclose(runner.run([X])[0], Y, rtol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_may_be_read_only_and_are_left_alone(backend: str, tmp_path: Path) -> None:
    runner = open_sample(backend, tmp_path)
    x = X.copy()
    x.flags.writeable = False
    np.testing.assert_allclose(runner.run([x])[0], Y, rtol=1e-5)
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize("backend", BACKENDS)
def test_eight_threads_at_once(backend: str, tmp_path: Path) -> None:
    runner = open_sample(backend, tmp_path, threads=2)

    def work(seed: int) -> bool:
        x = np.random.default_rng(seed).standard_normal((1 + seed % 4, 4)).astype(np.float32)
        expected = x @ W + B
        return all(np.allclose(runner.run([x])[0], expected, atol=1e-5) for _ in range(40))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_part_says_so(backend: str, tmp_path: Path) -> None:
    runner = open_sample(backend, tmp_path)
    runner.close()
    runner.close()
    with pytest.raises(RunError, match="closed"):
        runner.run([X])


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "ncnn"])
def test_a_failing_run_is_one_line(backend: str, tmp_path: Path) -> None:
    runner = open_sample(backend, tmp_path)
    with pytest.raises(RunError) as error:
        runner.run([np.zeros((2, 1, 1, 1, 1, 9), np.float32)])
    assert backend in error.value.what
    assert "\n" not in error.value.what


@pytest.mark.parametrize("backend", ["onnxruntime-own", "openvino-xml", "ncnn"])
def test_files_that_cannot_be_read(backend: str, tmp_path: Path) -> None:
    part = make_part(backend, tmp_path)
    (tmp_path / part.files[0]).write_bytes(b"junk")
    with pytest.raises(RunError, match="cannot"):
        open_part(part, FolderStore(tmp_path), SIGNATURE)


def test_another_number_of_inputs(tmp_path: Path) -> None:
    more = replace(SIGNATURE, inputs=(*SIGNATURE.inputs, TensorSpec("m", "float32", (1,))))
    part = make_part("onnxruntime", tmp_path)
    with pytest.raises(RunError, match="takes 1 inputs, the signature has 2"):
        open_part(part, FolderStore(tmp_path, tmp_path / "graph.onnx"), more)


def test_inputs_are_matched_by_name_where_the_names_are_the_same() -> None:
    two = replace(SIGNATURE, inputs=tuple(TensorSpec(n, "float32", (1,)) for n in "ab"))
    assert settings.input_order(Part("x"), ["b", "a"], two) == ["a", "b"]
    assert settings.input_order(Part("x"), ["p", "q"], two) == ["p", "q"]


@pytest.mark.parametrize("level", ["all", "extended", "basic", "disabled"])
@pytest.mark.parametrize("spin", [True, False])
def test_settings_of_onnxruntime(level: str, spin: bool, tmp_path: Path) -> None:
    runner = open_sample("onnxruntime", tmp_path, level=level, spin=spin)
    np.testing.assert_allclose(runner.run([X])[0], Y, rtol=1e-5)


def test_an_unknown_level(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'extended'"):
        open_sample("onnxruntime", tmp_path, level="extnded")


@pytest.mark.parametrize("setting", [{"hint": "LATENCY"}, {"hint": "THROUGHPUT", "streams": 2}])
def test_settings_of_openvino(setting: dict[str, object], tmp_path: Path) -> None:
    runner = open_sample("openvino", tmp_path, **setting)
    np.testing.assert_allclose(runner.run([X])[0], Y, rtol=1e-5)


@pytest.mark.parametrize("winograd", [True, False])
def test_settings_of_ncnn(winograd: bool, tmp_path: Path) -> None:
    runner = open_sample("ncnn", tmp_path, winograd=winograd)
    np.testing.assert_allclose(runner.run([X])[0], Y, rtol=1e-5)


def test_ncnn_without_a_batch_axis(tmp_path: Path) -> None:
    runner = open_sample("ncnn", tmp_path, batch=False)
    np.testing.assert_allclose(runner.run([X])[0], Y, rtol=1e-5)


def test_ncnn_gives_no_whole_numbers(tmp_path: Path) -> None:
    part = make_part("ncnn", tmp_path)
    whole = replace(SIGNATURE, outputs=(TensorSpec("y", "int64", ("batch",)),))
    with pytest.raises(RunError, match="output 'y' is int64"):
        open_part(part, FolderStore(tmp_path), whole)


def test_threads_are_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    assert settings.threads(Part("x", {"threads": 3})) == 3
    assert settings.threads(Part("x", {"threads": 64})) == 4
    assert settings.threads(Part("x")) == 4
    monkeypatch.setenv("REDLINE_THREADS", "2")
    assert settings.threads(Part("x", {"threads": 3})) == 2
    assert settings.threads(Part("x")) == 2


def test_a_missing_library_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = replace(make_part("ncnn", tmp_path), needs={"ncnn": "1.0"})
    monkeypatch.delitem(sys.modules, "redline.runtime.run_ncnn", raising=False)
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(MissingError) as error:
        open_part(part, FolderStore(tmp_path), SIGNATURE)
    assert error.value.hint == "pip install ncnn"


def test_a_runner_of_no_name() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        open_part(Part("openvno"), FolderStore(Path()), SIGNATURE)


def test_planted_answers(tmp_path: Path) -> None:
    (echo,) = open_sample("null", tmp_path, behaviour="echo").run([X])
    np.testing.assert_array_equal(echo, np.zeros_like(Y))
    (nan,) = open_sample("null", tmp_path, behaviour="nan").run([X])
    assert np.isnan(nan).all()
    (wrong,) = open_sample("null", tmp_path, behaviour="wrong", error=0.25).run([X])
    rms = np.sqrt(np.mean(Y**2))
    np.testing.assert_allclose((wrong - Y) / rms, 0.25, rtol=1e-4)
    with pytest.raises(RunError, match="told to fail"):
        open_sample("null", tmp_path, behaviour="error").run([X])
    slow = open_sample("null", tmp_path, behaviour="slow", seconds=0.05)
    start = time.perf_counter()
    np.testing.assert_allclose(slow.run([X])[0], Y, rtol=1e-5)
    assert time.perf_counter() - start >= 0.05
    with pytest.raises(UnknownNameError, match="did you mean 'crash'"):
        open_sample("null", tmp_path, behaviour="crahs")


def test_stored_outputs_are_echoed(tmp_path: Path) -> None:
    np.savez(tmp_path / "outputs.npz", out_0=Y)
    part = Part("null", {"behaviour": "echo"}, files=("outputs.npz",))
    runner = open_part(part, FolderStore(tmp_path), SIGNATURE)
    np.testing.assert_array_equal(runner.run([X])[0], Y)


PLANTED = """
import resource, sys
import numpy as np
from pathlib import Path
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.runtime.runner import open_part
from redline.signature import Signature, TensorSpec, Tree
leaf = (TensorSpec("x", "float32", (1,)),)
signature = Signature(leaf, leaf, Tree("dict", ("x",), (Tree(),)), Tree())
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
runner = open_part(Part("null", {"behaviour": sys.argv[1]}), FolderStore(Path()), signature)
print("ready", flush=True)
try:
    runner.run([np.zeros(1, np.float32)])
except MemoryError:
    sys.exit(7)
"""


@pytest.mark.parametrize(("behaviour", "code"), [("crash", -11), ("memory", 7)])
def test_planted_ends(behaviour: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLANTED, behaviour], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("ready\n", code), done.stderr


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from engine_samples import X
from runner_samples import open_sample
first, second = (open_sample("openvino", Path(sys.argv[1])) for _ in range(2))
first.run([X])
first.close()
second.close()
signal.signal(signal.SIGINT, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGINT)
"""


def test_a_signal_after_engines_of_openvino_were_closed(tmp_path: Path) -> None:
    """In the order in which they were opened, each took the other's stack for handlers away."""
    pytest.importorskip("openvino")
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.stdout, done.returncode) == ("handled\n", 0), done.stderr


def test_a_planted_hang() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PLANTED, "hang"], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.3)
        child.kill()
