"""The call from Python: in C and by ctypes, alone, from many threads, after a fork."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from native_models import compiled, graph, needs_compiler, opened
from onnx import helper

from redline import backends
from redline.backends.base import Candidate, Source
from redline.capture.capture import capture
from redline.engine.store import FolderStore
from redline.errors import RefusedError, RunError, SignatureError
from redline.graph import serialize
from redline.runtime import run_native
from redline.runtime.session import Session
from redline.signature import Signature, TensorSpec
from redline.tree import Tree

pytestmark = needs_compiler
WEIGHTS = np.random.default_rng(0).standard_normal((64, 64), np.float32)
MODEL = graph(
    [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
        helper.make_node("Neg", ["n"], ["z"]),
    ],
    {"x": np.zeros((300, 64), np.float32), "n": np.arange(6)},
    ["y", "z"],
    {"w": WEIGHTS},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("call")
    compiled(MODEL, folder)
    return folder


def inputs(seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.standard_normal((300, 64), np.float32), generator.integers(0, 9, 6)]


def want(arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [np.maximum(arrays[0].astype(float) @ WEIGHTS, 0), -arrays[1]]


def close(got: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(got, wanted, strict=True))


@pytest.fixture(params=["c", "ctypes"])
def runner(request, folder, monkeypatch):
    if request.param == "ctypes":
        monkeypatch.setattr(run_native, "Caller", None)
    elif run_native.Caller is None:
        pytest.skip("installed without a C compiler")
    runner = opened(MODEL, inputs(), folder)
    yield runner
    runner.close()


def test_results_are_right_and_new_each_time(runner):
    first, second = runner.run(inputs(1)), runner.run(inputs(2))
    assert close(first, want(inputs(1)))
    assert close(second, want(inputs(2)))
    assert [array.dtype for array in first] == [np.float32, np.int64]


def test_any_memory_order_is_taken(runner):
    x, n = inputs()
    strange = [np.asfortranarray(x), np.repeat(n, 2)[::2]]
    assert close(runner.run(strange), want([x, n]))


@pytest.mark.parametrize(
    "change", [lambda x: x[:10], lambda x: x.astype(np.float64), lambda x: x[None]]
)
def test_other_arrays_are_refused_by_shape_and_type(runner, change):
    x, n = inputs()
    with pytest.raises(RunError, match=r"compiled for float32\[300, 64\]"):
        runner.run([change(x), n])


def test_unaligned_arrays_are_copied(runner):
    x, n = inputs()
    strange = np.frombuffer(b"x" + x.tobytes(), np.float32, x.size, 1).reshape(x.shape)
    assert not strange.flags.aligned
    assert runner.offer([strange, n]) is None
    assert close(runner.run([strange, n]), want([x, n]))


def test_an_engine_asks_once_and_binds_only_what_is_not_taken(runner):
    signature = Signature(
        (TensorSpec("x", "float32", (300, 64)), TensorSpec("n", "int64", (6,))),
        (TensorSpec("y", "float32", (300, 64)), TensorSpec("z", "int64", (6,))),
        Tree("dict", ("x", "n"), (Tree(), Tree())),
        Tree("tuple", children=(Tree(), Tree())),
    )
    session = Session(runner, signature)
    asked = []
    session.run = lambda arrays: asked.append(arrays) or runner.run(arrays)
    x, n = inputs()
    assert close(session(x, n), want([x, n]))
    assert not asked
    assert close(session(n=n, x=x), want([x, n]))
    assert close([each.numpy() for each in session(torch.tensor(x), n)], want([x, n]))
    assert close(session(np.asfortranarray(x), n), want([x, n]))
    assert len(asked) == 3
    for strange in ((x,), (x, n, n), (x, x), (x[:10], n), (x, "n"), (x, n.astype("int32"))):
        with pytest.raises(SignatureError):
            session(*strange)
    session.close()
    with pytest.raises(RunError, match="closed"):
        session(x, n)


def test_many_threads_never_share_a_context(runner):
    def turn(seed: int) -> bool:
        return close(runner.run(inputs(seed)), want(inputs(seed)))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(turn, range(200)))


def test_closed_is_closed(runner):
    runner.close()
    runner.close()
    with pytest.raises(RunError, match="closed"):
        runner.run(inputs())


def child(runner, answer):
    answer.put(close(runner.run(inputs(3)), want(inputs(3))))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(runner):
    runner.run(inputs())
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=child, args=(runner, answer))
    process.start()
    assert answer.get(timeout=60)
    process.join(60)
    assert process.exitcode == 0
    assert close(runner.run(inputs()), want(inputs()))


def test_another_version_of_the_interface_is_refused(folder, monkeypatch):
    monkeypatch.setattr(run_native, "ABI", 99)
    with pytest.raises(RunError, match="has ABI 1, this Redline reads 99"):
        opened(MODEL, inputs(), folder)


def test_cut_weights_are_refused(folder, tmp_path):
    for name in ("model.so", "weights.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "weights.bin").write_bytes(b"short")
    with pytest.raises(RunError, match="has 5 bytes, expected"):
        opened(MODEL, inputs(), tmp_path)


NET = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 5)).eval()


def built(module, example, dynamic, folder):
    """The native part of a model with dynamic dims, opened; and its signature."""
    model = capture(module, example, dynamic=dynamic)
    graph = folder / "graph.onnx"
    graph.write_bytes(serialize.to_bytes(model.graph))
    backend = backends.get("native")
    source = Source(model.signature, tuple(model.example), graph)
    part = backend.build(source, Candidate("native", {"threads": 1, "winograd": False}), folder)
    return run_native.open_part(part, FolderStore(folder), model.signature), part


def test_a_batch_of_any_size_runs_in_pieces(tmp_path):
    runner, part = built(NET, torch.randn(4, 8), {"batch": (1, 4, 20)}, tmp_path)
    assert sorted(part.files)[:3] == ["model-batch1.so", "model-batch20.so", "model-batch4.so"]
    for size in (1, 2, 4, 7, 19, 20, 31):
        x = torch.randn(size, 8, generator=torch.Generator().manual_seed(size))
        (got,) = runner.run([x.numpy()])
        np.testing.assert_allclose(got, NET(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert runner.profile([np.zeros((4, 8), np.float32)], calls=2)
    runner.close()


class Pairs(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ x.transpose(1, 2)


def test_a_few_sizes_have_a_build_each(tmp_path):
    dynamic = {"x": {1: ("length", 3, 4, 6)}}
    runner, part = built(Pairs().eval(), torch.randn(2, 4, 5), dynamic, tmp_path)
    assert len(part.files) == 8
    for size in (3, 4, 5, 6):
        x = torch.randn(2, size, 5, generator=torch.Generator().manual_seed(size))
        (got,) = runner.run([x.numpy()])
        np.testing.assert_allclose(got, Pairs()(x).numpy(), rtol=1e-4, atol=1e-5)
    runner.close()


def test_a_wide_range_that_is_no_batch_is_refused_by_name(tmp_path):
    with pytest.raises(RefusedError, match="dynamic length from 3 to 99"):
        built(Pairs().eval(), torch.randn(2, 4, 5), {"x": {1: ("length", 3, 4, 99)}}, tmp_path)
