"""A session binds as forward() does, checks what it gets, and answers in kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from engine_samples import SIGNATURE

from redline.errors import SignatureError
from redline.runtime.session import Session
from redline.signature import Dim, Signature, TensorSpec, Tree
from redline.tree import Fields

X = np.arange(8, dtype=np.float32).reshape(2, 4)


class Function:
    """A runner that is a NumPy function."""

    def __init__(self, function: Callable[..., Sequence[np.ndarray]]) -> None:
        self._function = function
        self.closed = 0

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert all(type(x) is np.ndarray and x.flags.c_contiguous for x in inputs)
        return list(self._function(*inputs))

    def close(self) -> None:
        self.closed += 1


def first_three(x: np.ndarray) -> list[np.ndarray]:
    return [x[:, :3] * 2]


@pytest.fixture
def session() -> Session:
    return Session(Function(first_three), SIGNATURE)


NESTED = Signature(
    inputs=(
        TensorSpec("ids", "int64", ("batch", "length")),
        TensorSpec("extra.mask", "bool", ("batch", "length")),
        TensorSpec("extra.pair.0", "float32", ("batch", 2)),
    ),
    outputs=(TensorSpec("total", "float32", ("batch",)), TensorSpec("last", "int64", ("batch",))),
    input_tree=Tree(
        "dict",
        ("ids", "extra", "scale"),
        (
            Tree(),
            Tree("dict", ("mask", "pair"), (Tree(), Tree("tuple", children=(Tree(),)))),
            Tree("constant", value=2),
        ),
    ),
    output_tree=Tree(
        "object", ("total", "parts"), (Tree(), Tree("list", children=(Tree(),))), type="gone:Output"
    ),
    dims=(Dim("batch", 1, 2, 8), Dim("length", 2, 3, 5)),
)
IDS = np.arange(6).reshape(2, 3)
MASK = IDS % 2 == 0
PAIR = np.ones((2, 2), np.float32)


@pytest.fixture
def nested() -> Session:
    def run(ids: np.ndarray, mask: np.ndarray, pair: np.ndarray) -> list[np.ndarray]:
        return [(ids * mask).sum(1).astype(np.float32) + pair.sum(1), ids[:, -1].copy()]

    return Session(Function(run), NESTED)


def test_numpy_in_numpy_out(session: Session) -> None:
    y = session(X)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, X[:, :3] * 2)
    np.testing.assert_array_equal(session(x=X), y)


def test_torch_in_torch_out(session: Session) -> None:
    y = session(torch.from_numpy(X))
    assert isinstance(y, torch.Tensor)
    assert not y.requires_grad
    np.testing.assert_array_equal(y.numpy(), X[:, :3] * 2)


class Foreign:
    """A tensor of another library: DLPack and nothing else."""

    def __init__(self, array: np.ndarray, device: int = 1) -> None:
        self._array, self._device = array, device
        self.shape, self.dtype = array.shape, array.dtype

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device, 0


@pytest.mark.parametrize("array", [X, X[::-1], X[:, ::-1], np.asfortranarray(X)])
def test_any_dlpack_tensor(session: Session, array: np.ndarray) -> None:
    y = session(Foreign(array))
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, array[:, :3] * 2)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.from_numpy(X.T.copy()).t(),
        torch.from_numpy(np.repeat(X, 2, 0))[::2],
        torch.from_numpy(X).clone().requires_grad_(),
        torch.nn.Parameter(torch.from_numpy(X)),
        torch.view_as_complex(torch.from_numpy(np.stack([X, -X], -1))).conj().imag,
        torch.ones(1, 4).expand(2, 4),
    ],
)
def test_torch_tensors_of_every_kind(session: Session, tensor: torch.Tensor) -> None:
    y = session(tensor)
    np.testing.assert_array_equal(y.numpy(), tensor.detach().numpy(force=True)[:, :3] * 2)


@pytest.mark.parametrize(
    "array",
    [
        X[::-1],
        X[:, ::-1],
        np.asfortranarray(X),
        np.frombuffer(b"\0" + X.tobytes(), np.float32, 8, 1).reshape(2, 4),  # not aligned
        np.broadcast_to(X[:1], (2, 4)),
        X.view(type("Sub", (np.ndarray,), {})),
    ],
)
def test_numpy_arrays_of_every_kind(session: Session, array: np.ndarray) -> None:
    np.testing.assert_array_equal(session(array), array[:, :3] * 2)


def test_a_nest_binds_as_forward_does(nested: Session) -> None:
    extra = {"mask": MASK, "pair": (PAIR,)}
    for result in (
        nested(IDS, extra),
        nested(IDS, extra=extra),
        nested(extra=extra, ids=IDS),
        nested(IDS, extra, 2),
        nested(IDS, extra=extra, scale=2, other=None),
    ):
        assert isinstance(result, Fields)
        np.testing.assert_array_equal(result.total, (IDS * MASK).sum(1) + 2)
        np.testing.assert_array_equal(result.parts[0], IDS[:, -1])


def test_mixed_inputs_answer_in_torch(nested: Session) -> None:
    result = nested(torch.from_numpy(IDS), {"mask": MASK, "pair": (torch.from_numpy(PAIR),)})
    assert isinstance(result.total, torch.Tensor)
    assert result.parts[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "message", "hint"),
    [
        (lambda s: s(X.astype(np.float64)), "'x' is float64, expected float32", "astype(np.fl"),
        (lambda s: s(X.astype(">f4")), "expected float32", "astype"),
        (lambda s: s(torch.ones(2, 4, dtype=torch.int64)), "'x' is int64", "torch.float32"),
        (lambda s: s(torch.ones(2, 4, dtype=torch.bfloat16)), "torch.bfloat16", "dtype"),
        (lambda s: s(X[:, :3]), "(2, 3), expected (batch 1..16, 4)", "dynamic"),
        (lambda s: s(X[0]), "1 axes (4,), expected 2", "x[None]"),
        (lambda s: s(X[None]), "3 axes (1, 2, 4), expected 2", "x[0]"),
        (lambda s: s(np.zeros((17, 4), np.float32)), "'batch' is 17", '"batch": (1, 2, 17)'),
        (lambda s: s(np.zeros((0, 4), np.float32)), "expected 1 to 16", "dynamic"),
        (lambda s: s(), "'x' is missing", "expected 'x'"),
        (lambda s: s(X, X), "got 2 positional inputs, expected at most 1", "x"),
        (lambda s: s(X, x=X), "'x' twice", ""),
        (lambda s: s(y=X), "unknown input 'y'", "known: x"),
        (lambda s: s(X, xx=X), "did you mean 'x'", "known: x"),
        (lambda s: s([1.0]), "'x' is list, expected a tensor", "NumPy"),
        (lambda s: s(None), "'x' is NoneType, expected a tensor", "NumPy"),
        (lambda s: s(torch.ones(2, 4, device="meta")), "'x' is on meta", "x.cpu()"),
        (lambda s: s(torch.ones(2, 4).to_sparse()), "sparse", "dense"),
        (lambda s: s(Foreign(X, device=2)), "DLPack device 2", "CPU"),
    ],
)
def test_what_is_refused(
    session: Session, call: Callable[[Session], Any], message: str, hint: str
) -> None:
    with pytest.raises(SignatureError) as error:
        call(session)
    assert message in error.value.what
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": IDS[:, :2].copy()}, "'length' is 3 in input 'extra.mask' but 2 in 'ids'"),
        ({"ids": IDS.astype(np.int32)}, "'ids' is int32, expected int64"),
        ({"scale": 3}, "'scale' is 3, but the engine was made with 2"),
        ({"extra": {"mask": MASK}}, "'pair' is missing"),
        ({"extra": MASK}, "'extra' is a ndarray, expected a dict"),
        ({"ids": 3}, "'ids' is a int, expected a tensor"),
    ],
)
def test_what_is_refused_in_a_nest(nested: Session, change: Any, message: str) -> None:
    inputs = {"ids": IDS, "extra": {"mask": MASK, "pair": (PAIR,)}, **change}
    with pytest.raises(SignatureError, match=re.escape(message)):
        nested(**inputs)


def test_a_fixed_shape_is_checked(session: Session) -> None:
    fixed = replace(SIGNATURE, inputs=(TensorSpec("x", "float32", (2, 4)),), dims=())
    session = Session(Function(first_three), fixed)
    assert session(X).shape == (2, 3)
    with pytest.raises(SignatureError, match=r"has shape \(1, 4\), expected \(2, 4\)"):
        session(X[:1])


def test_scalars_and_empty_axes() -> None:
    signature = Signature(
        (TensorSpec("t", "float32", ()), TensorSpec("e", "int64", (0, 3))),
        (TensorSpec("y", "float32", ()),),
        Tree("dict", ("t", "e"), (Tree(), Tree())),
        Tree("tuple", children=(Tree(),)),
    )
    session = Session(Function(lambda t, e: [np.asarray(t + len(e))]), signature)
    (y,) = session(np.array(1.5, np.float32), np.zeros((0, 3), np.int64))
    assert y == 1.5
    (y,) = session(torch.tensor(1.5), torch.zeros(0, 3, dtype=torch.int64))
    assert y == 1.5


def test_run_checks_nothing_and_is_the_runners_own() -> None:
    runner = Function(first_three)
    session = Session(runner, SIGNATURE)
    assert session.run == runner.run
    assert session.run([X.astype(np.float64)])[0].dtype == np.float64


def test_closing_twice_closes_what_it_holds_once() -> None:
    runner = Function(first_three)
    closed: list[int] = []
    with Session(runner, SIGNATURE, on_close=lambda: closed.append(1)) as session:
        session(X)
    session.close()
    assert (runner.closed, closed) == (2, [1])


def test_eight_threads_at_once(nested: Session) -> None:
    def work(seed: int) -> bool:
        ids = IDS + seed
        right = (ids * MASK).sum(1) + 2
        calls = (nested(ids, {"mask": MASK, "pair": (PAIR,)}) for _ in range(50))
        return all(np.array_equal(result.total, right) for result in calls)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(16)))
