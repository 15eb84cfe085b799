"""Containers come apart and together again, and no class of a file's choosing is called."""

from __future__ import annotations

import dataclasses
import sys
from collections import UserDict
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redline.errors import SignatureError
from redline.signature import Tree
from redline.tree import Fields, describe, flatten, leaf_names, unflatten


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass(frozen=True)
class Boxes:
    corners: Any
    scores: Any
    area: Any = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "area", np.full(3, 9.0))


def array(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


leaves = st.builds(lambda n: np.full(2, n, np.float32), st.integers(0, 9))
constants = st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=3))
nests = st.recursive(
    leaves | constants,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(min_size=1, max_size=3), inner, max_size=3),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)


@given(nests)
def test_a_nest_survives_the_way_there_and_back(value: Any) -> None:
    tree, found = describe(value)
    assert [id(x) for x in flatten(tree, value)] == [id(x) for x in found]
    again, found_again = describe(unflatten(tree, found))
    assert again == tree
    assert all(a is b for a, b in zip(found, found_again, strict=True))
    names = leaf_names(tree, "root")
    assert len(set(names)) == len(names) == len(found)


def test_names_join_the_path_and_never_repeat() -> None:
    tree, _ = describe({"x": array(1), "pair": (array(1), array(1))})
    assert leaf_names(tree) == ("x", "pair.0", "pair.1")
    assert leaf_names(tree, "out") == ("out.x", "out.pair.0", "out.pair.1")
    assert leaf_names(Tree(), "output") == ("output",)
    tree, _ = describe({"a.b": array(1), "a": {"b": array(1)}})
    assert leaf_names(tree) == ("a.b", "a.b_")


def test_classes_come_back_without_their_constructor() -> None:
    value = {"pair": Pair(array(1), 3), "boxes": Boxes(array(2), array(3))}
    tree, found = describe(value)
    result = unflatten(tree, found)
    assert type(result["pair"]) is Pair
    assert result["pair"].second == 3
    assert type(result["boxes"]) is Boxes
    np.testing.assert_array_equal(result["boxes"].area, np.full(3, 9.0))


def test_mappings_are_dicts() -> None:
    tree, found = describe(UserDict(ids=array(1)))
    assert tree.kind == "dict"
    assert type(unflatten(tree, found)) is dict


def test_a_model_output_keeps_its_class_and_leaves_out_none() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    value = outputs.BaseModelOutputWithPooling(last_hidden_state=array(2), pooler_output=array(1))
    tree, found = describe(value)
    assert (tree.kind, tree.keys) == ("object", ("last_hidden_state", "pooler_output"))
    result = unflatten(tree, found)
    assert type(result) is type(value)
    assert list(result) == ["last_hidden_state", "pooler_output"]
    assert result.hidden_states is None
    assert result[0] is result.last_hidden_state is value.last_hidden_state


def test_a_class_that_is_not_imported_becomes_fields() -> None:
    tree = Tree("object", ("logits", "extra"), (Tree(), Tree()), type="not_there.models:Output")
    result = unflatten(tree, [1, 2])
    assert isinstance(result, Fields)
    assert (result.logits, result["extra"], result[1], result[:1]) == (1, 2, 2, (1,))
    assert repr(result) == "Output(logits=1, extra=2)"
    assert describe(Fields("a:B", {"x": array(1)}))[0].type == "a:B"
    with pytest.raises(AttributeError, match="logits, extra"):
        _ = result.loss
    assert "not_there" not in sys.modules


def test_a_named_tuple_that_is_not_imported_still_unpacks_into_values() -> None:
    tree = Tree("object", ("a", "b"), (Tree(), Tree()), type="not_there:class", value="tuple")
    a, b = unflatten(tree, [1, 2])
    assert (a, b) == (1, 2)


@pytest.mark.parametrize("marker", [None, "tuple"])
@pytest.mark.parametrize(
    "name",
    [
        "subprocess:Popen",
        "os:system",
        "builtins:eval",
        "redline.tree:Fields.__init__",
        "redline.tree:dataclasses.replace",
        "redline.tree:sys.modules",
        "antigravity:x",
        "os:path.join",
        ":",
        "",
    ],
)
def test_no_class_of_a_files_choosing_is_called(name: str, marker: str | None) -> None:
    tree = Tree("object", ("args",), (Tree("constant", value="true"),), type=name, value=marker)
    result = unflatten(tree, [])
    assert isinstance(result, (Fields, tuple))
    assert result.args == "true"
    assert "antigravity" not in sys.modules


def test_a_lazy_module_is_not_made_to_import() -> None:
    class Lazy(type(sys)):
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"imported {name}")

    sys.modules["lazy_for_test"] = Lazy("lazy_for_test")
    try:
        tree = Tree("object", ("x",), (Tree(),), type="lazy_for_test:Output")
        assert isinstance(unflatten(tree, [1]), Fields)
    finally:
        del sys.modules["lazy_for_test"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": array(1)}, "'pair' is missing; got 'x'"),
        ({"x": array(1), "pair": (array(1),), "flag": True}, "'pair' has 1 items, expected 2"),
        ({"x": 3, "pair": (array(1), array(1))}, "'x' is a int, expected a tensor"),
        ({"x": array(1), "pair": array(1)}, "'pair' is a ndarray, expected a tuple of 2"),
        ({"x": array(1), "pair": (array(1), [1])}, "'pair.1' is a list, expected a tensor"),
        (
            {"x": array(1), "pair": (array(1), array(1)), "flag": False},
            "'flag' is False, but the engine was made with True",
        ),
        ({"x": array(1), "pair": (array(1), array(1)), "mask": 1}, "'mask' is not known"),
        (array(1), "the value is a ndarray, expected a dict with 'x', 'pair', 'flag'"),
    ],
)
def test_a_wrong_structure_is_named(value: Any, message: str) -> None:
    tree, _ = describe({"x": array(1), "pair": (array(1), array(1)), "flag": True})
    with pytest.raises(SignatureError) as error:
        flatten(tree, value)
    assert message in str(error.value)


def test_what_stands_for_what() -> None:
    tree, _ = describe({"x": array(1), "pair": (array(1), array(1)), "flag": True})
    assert len(flatten(tree, {"pair": [array(1), array(1)], "x": array(1)})) == 3
    tree, _ = describe(Boxes(array(2), array(3)))
    assert len(flatten(tree, {"corners": array(1), "scores": array(1), "area": array(1)})) == 3


@pytest.mark.parametrize("value", [object(), {1, 2}, {0: array(1)}, b"bytes", np.array, 1j])
def test_what_is_no_tensor_is_refused(value: Any) -> None:
    with pytest.raises(SignatureError, match="expected"):
        describe({"x": [value]})


def test_a_nest_without_end_is_refused() -> None:
    nest: list[Any] = []
    nest.append(nest)
    with pytest.raises(SignatureError, match="deep"):
        describe(nest)


def test_the_number_of_tensors_must_fit() -> None:
    with pytest.raises(SignatureError, match="got 2 tensors, expected 1"):
        unflatten(Tree("tuple", children=(Tree(),)), [1, 2])
