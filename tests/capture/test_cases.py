"""Inputs for verification: legal, deterministic, at the ends of every dynamic dim."""

import numpy as np
import pytest

from redline.capture.cases import make_cases, resize
from redline.signature import Dim, Signature, TensorSpec, Tree


def signature(*specs, dims=()):
    inputs = tuple(TensorSpec(f"x{i}", dtype, shape) for i, (dtype, shape) in enumerate(specs))
    names = tuple(spec.name for spec in inputs)
    return Signature(inputs, (), Tree("dict", names, (Tree(),) * len(names)), Tree(), tuple(dims))


def fixed(*arrays):
    return signature(*((array.dtype.name, array.shape) for array in arrays))


def drawn(array, extra=4):
    cases = make_cases(fixed(array), (array,), extra=extra)
    return np.stack([case.inputs[0] for case in cases[1:]])


def test_example_comes_first_untouched():
    example = np.arange(6, dtype=np.float32).reshape(2, 3)
    cases = make_cases(fixed(example), (example,), extra=3)
    assert [case.name for case in cases] == ["example", "random 1", "random 2", "random 3"]
    assert cases[0].inputs[0] is example
    assert not np.array_equal(cases[1].inputs[0], cases[2].inputs[0])


def test_same_seed_same_cases():
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    first, again, other = (make_cases(fixed(x), (x,), seed=seed) for seed in (7, 7, 8))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.inputs[0], b.inputs[0])
    assert not np.array_equal(first[1].inputs[0], other[1].inputs[0])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_keep_statistics_and_range(dtype):
    x = np.random.default_rng(0).uniform(0, 1, (40, 50)).astype(dtype)
    values = drawn(x)
    assert values.dtype == x.dtype
    assert values.min() >= x.min()
    assert values.max() <= x.max()
    assert abs(float(values.astype(np.float64).mean()) - 0.5) < 0.05
    assert 0.15 < float(values.astype(np.float64).std()) < 0.3


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8"])
def test_integers_stay_legal_indices(dtype):
    x = np.array([[3, 9, 4, 7] * 20], dtype)
    values = drawn(x)
    assert values.dtype == x.dtype
    assert set(np.unique(values)) <= set(range(3, 10))
    assert len(np.unique(values)) == 7


def test_mask_of_ones_stays_ones():
    assert (drawn(np.ones((2, 9), np.int64)) == 1).all()


@pytest.mark.parametrize("value", [0.0, 2.5, np.inf, np.nan])
def test_constant_or_infinite_floats_are_kept(value):
    x = np.full((2, 3), value, np.float32)
    for kept in drawn(x):
        np.testing.assert_array_equal(kept, x)


def test_additive_mask_keeps_its_two_values():
    lowest = np.finfo(np.float32).min
    x = np.where(np.arange(60).reshape(6, 10) % 3 == 0, lowest, 0).astype(np.float32)
    assert set(np.unique(drawn(x))) == {lowest, np.float32(0)}


def test_booleans_as_often_true_and_never_all_false():
    often = drawn(np.arange(1000) % 4 != 0)
    assert 0.7 < often.mean() < 0.8
    rare = np.zeros(50, np.bool_)
    rare[3] = True
    assert all(case.any() for case in drawn(rare, extra=30))
    assert drawn(np.ones(5, np.bool_)).all()
    assert not drawn(np.zeros(5, np.bool_)).any()


def test_ends_of_one_dim():
    sig = signature(("float32", ("batch", 3)), ("int64", ("batch",)), dims=[Dim("batch", 1, 2, 5)])
    example = (np.arange(6, dtype=np.float32).reshape(2, 3), np.array([4, 5]))
    cases = make_cases(sig, example, extra=0)
    assert [case.name for case in cases] == ["example", "batch=1", "batch=5"]
    shapes = [[array.shape for array in case.inputs] for case in cases]
    assert shapes == [[(2, 3), (2,)], [(1, 3), (1,)], [(5, 3), (5,)]]


def test_ends_of_two_dims():
    sig = signature(("float32", ("b", "t")), dims=[Dim("b", 1, 2, 4), Dim("t", 3, 5, 5)])
    example = (np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32),)
    cases = make_cases(sig, example, extra=0)
    found = {case.name: case.inputs[0].shape for case in cases}
    assert found == {
        "example": (2, 5),
        "b=1": (1, 5),
        "b=4": (4, 5),
        "t=3": (2, 3),
        "all at min": (1, 3),  # "t=5" is the opt and "all at max" is "b=4": not run twice
    }


def test_empty_and_scalar_inputs():
    empty, scalar = np.zeros((0, 3), np.float32), np.array(2.0, np.float32)
    case = make_cases(fixed(empty, scalar), (empty, scalar))[1]
    assert case.inputs[0].shape == (0, 3)
    assert case.inputs[1] == scalar


def test_resize_tiles_and_crops():
    x = np.arange(4).reshape(2, 2)
    np.testing.assert_array_equal(resize(x, (3, 1)), [[0], [2], [0]])
