"""Options and arrays: texts read, inputs put in order, outputs saved."""

import numpy as np
import pytest

from redline.cli import arrays, options
from redline.errors import InputError, SaveError, SignatureError, UnknownNameError

ONE, TWO = np.zeros((2, 3), np.float32), np.ones(4, np.int64)


def test_inputs_by_name_come_in_the_order_of_the_signature():
    found = arrays.ordered({"b": TWO, "a": ONE}, ["a", "b"])
    assert found[0] is ONE
    assert found[1] is TWO


def test_a_scalar_stays_a_scalar_and_memory_is_in_c_order():
    scalar, column = np.array(3.0), np.asfortranarray(np.arange(6).reshape(2, 3))
    found = arrays.ordered((scalar, column), ["a", "b"])
    assert found[0].shape == ()
    assert found[1].flags.c_contiguous
    np.testing.assert_array_equal(found[1], column)


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ((ONE,), SignatureError, "got 1 inputs, expected 2: left, right"),
        ({"left": ONE}, SignatureError, "'right' is missing"),
        ({"left": ONE, "rigth": TWO}, UnknownNameError, "did you mean 'right'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(given, error, said):
    with pytest.raises(error, match=said):
        arrays.ordered(given, ["left", "right"])


def test_a_summary_of_what_has_no_numbers():
    assert arrays.summary(np.zeros((0, 3)))["first"] == []
    assert "mean" not in arrays.summary(np.array([True, False]))


def test_several_outputs_do_not_fit_an_npy(tmp_path):
    path = tmp_path / "y.npy"
    path.write_bytes(b"before")
    with pytest.raises(InputError, match="holds one output"):
        arrays.save(path, {"a": ONE, "b": TWO})
    assert path.read_bytes() == b"before"


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "y.npz"
    path.write_bytes(b"before")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(SaveError, match="No space left"):
        arrays.save(path, {"a": ONE})
    assert path.read_bytes() == b"before"
    assert [one.name for one in tmp_path.iterdir()] == ["y.npz"]


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (None, None),
        ([], None),
        (["batch=1:8:32"], {"batch": (1, 8, 32)}),
        (["ids.1=16:64:128"], {"ids": {1: (16, 64, 128)}}),
        (["ids.1=length:16:64:128"], {"ids": {1: ("length", 16, 64, 128)}}),
        (["ids.0=1:2:4", "ids.1=8:8:9"], {"ids": {0: (1, 2, 4), 1: (8, 8, 9)}}),
        (["batch.mask.1=1:2:4"], {"batch.mask": {1: (1, 2, 4)}}),
    ],
)
def test_dynamic_axes_are_read(texts, found):
    assert options.dynamic(texts) == found


@pytest.mark.parametrize(
    "text", ["batch", "batch=1", "batch=1:2", "batch=a:b:c", "=1:2:3", "x=1:2:3:4"]
)
def test_dynamic_axes_that_cannot_be_read(text):
    with pytest.raises(InputError, match="--dynamic"):
        options.dynamic([text])
