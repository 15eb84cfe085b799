"""Take a nest of containers apart into its tensors, and put it together again.

The nest is described by a `redline.signature.Tree`, plain data that an engine file can hold.
Rebuilding an object from such a file runs no code that the file chose: a class is looked up only in
modules that are already imported, must be a dataclass, NamedTuple or ModelOutput, and its
constructor is not called.
"""

from __future__ import annotations

import dataclasses
import keyword
import sys
import types
from collections import OrderedDict, namedtuple
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from redline.errors import SignatureError
from redline.signature import Tree

MAX_DEPTH = 64
_SCALARS = (str, int, float, bool, type(None))


class Fields(Mapping[str, Any]):
    """The fields of an object whose class is not at hand: `.name`, `["name"]` or `[0]`.

    Example:
        >>> Fields("BaseModelOutput", {"logits": 3}).logits
        3
    """

    def __init__(self, type_name: str, fields: Mapping[str, Any]) -> None:
        self._type = type_name
        self._fields = dict(fields)

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._fields[key] if isinstance(key, str) else tuple(self._fields.values())[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"{name!r}; fields: {', '.join(self.__dict__.get('_fields', ()))}")
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in self._fields.items())
        return f"{self._type.rpartition(':')[2].rpartition('.')[2] or 'Fields'}({inside})"


def is_leaf(value: object) -> bool:
    """Whether a value is an array or tensor (NumPy, torch, anything that speaks DLPack).

    Example:
        >>> is_leaf(np.zeros(2)), is_leaf(np.float32(1))
        (True, False)
    """
    if isinstance(value, np.generic):
        return False
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__dlpack__")


def describe(value: object) -> tuple[Tree, list[Any]]:
    """The nest that a value is, and its tensors in order.

    Example:
        >>> tree, leaves = describe({"x": np.zeros(2), "flag": True})
        >>> tree.keys, len(leaves)
        (('x', 'flag'), 1)

    Raises:
        SignatureError: it holds something that is no tensor, container or plain constant.
    """
    leaves: list[Any] = []
    return _describe(value, (), leaves), leaves


def _describe(value: Any, path: tuple[str, ...], leaves: list[Any]) -> Tree:
    if is_leaf(value):
        leaves.append(value)
        return Tree()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _SCALARS):
        return Tree("constant", value=value)
    if len(path) >= MAX_DEPTH:
        raise SignatureError(f"nested more than {MAX_DEPTH} deep", where=_spell(path[:8]))
    shell, children = _open(value, path)
    names = shell.keys or tuple(map(str, range(len(children))))
    nested = tuple(
        _describe(child, (*path, name), leaves) for name, child in zip(names, children, strict=True)
    )
    return dataclasses.replace(shell, children=nested)


def _open(value: Any, path: tuple[str, ...]) -> tuple[Tree, list[Any]]:
    """One container as a childless Tree, and its children."""
    if isinstance(value, Fields):
        return Tree("object", tuple(value), type=value._type), [*value.values()]
    name = f"{type(value).__module__}:{type(value).__qualname__}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Tree("object", tuple(value._fields), type=name, value="tuple"), list(value)
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise SignatureError(
                f"a dict has the key {wrong[0]!r}, expected text", where=_spell(path)
            )
        kind = Tree("object", type=name) if dataclasses.is_dataclass(value) else Tree("dict")
        return dataclasses.replace(kind, keys=tuple(value)), [value[key] for key in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keys = tuple(f.name for f in dataclasses.fields(value) if hasattr(value, f.name))
        return Tree("object", keys, type=name), [getattr(value, key) for key in keys]
    if isinstance(value, (tuple, list)):
        return Tree("tuple" if isinstance(value, tuple) else "list"), list(value)
    raise SignatureError(
        f"got a {type(value).__qualname__}, expected tensors, containers of tensors or constants",
        where=_spell(path),
        hint="use tensors, tuples, lists, dicts, dataclasses, numbers, text or None",
    )


def flatten(tree: Tree, value: object) -> list[Any]:
    """The tensors of a value that must be built as `tree` says.

    A dict may stand for an object and a list for a tuple; what the tree holds as a constant may be
    left out of a dict.

    Example:
        >>> tree, _ = describe({"x": np.zeros(2)})
        >>> flatten(tree, {"y": np.zeros(2)})
        Traceback (most recent call last):
        ...
        redline.errors.SignatureError: 'x' is missing; got 'y'
          hint: expected 'x'

    Raises:
        SignatureError: the structure differs; it names the place, what came and what was expected.
    """
    leaves: list[Any] = []
    _flatten(tree, value, (), leaves)
    return leaves


def _flatten(tree: Tree, value: Any, path: tuple[str, ...], leaves: list[Any]) -> None:
    if tree.kind == "leaf":
        if not is_leaf(value):
            raise _mismatch(tree, value, path)
        leaves.append(value)
    elif tree.kind == "constant":
        _check_constant(tree, value, path)
    else:
        names, children = _match(tree, value, path)
        for child_tree, name, child in zip(tree.children, names, children, strict=True):
            _flatten(child_tree, child, (*path, name), leaves)


def _check_constant(tree: Tree, value: Any, path: tuple[str, ...]) -> None:
    if isinstance(value, np.generic):
        value = value.item()
    known = tree.value
    same = isinstance(value, bool) == isinstance(known, bool) and value == known
    if is_leaf(value) or not (same or (value != value and known != known)):
        shown = "a tensor" if is_leaf(value) else repr(value)
        raise SignatureError(
            f"{_name(path)} is {shown}, but the engine was made with {known!r}",
            hint=f"leave it out or pass {known!r}; for another value, optimize again with it",
        )


def _match(tree: Tree, value: Any, path: tuple[str, ...]) -> tuple[Sequence[str], list[Any]]:
    """The children of `value` in the tree's order, with their names."""
    if is_leaf(value) or isinstance(value, (*_SCALARS, np.generic)):
        raise _mismatch(tree, value, path)
    shell, children = _open(value, path)
    if tree.kind in ("tuple", "list"):
        if shell.kind not in ("tuple", "list") and shell.value != "tuple":
            raise _mismatch(tree, value, path)
        if len(children) != len(tree.children):
            raise SignatureError(
                f"{_name(path)} has {len(children)} items, expected {len(tree.children)}"
            )
        return list(map(str, range(len(children)))), children
    if shell.kind not in ("dict", "object"):
        raise _mismatch(tree, value, path)
    return tree.keys, _by_key(tree, dict(zip(shell.keys, children, strict=True)), path)


def _by_key(tree: Tree, given: dict[str, Any], path: tuple[str, ...]) -> list[Any]:
    extra = [key for key in given if key not in tree.keys and given[key] is not None]
    lacking = [
        key
        for key, child in zip(tree.keys, tree.children, strict=True)
        if key not in given and child.kind != "constant"
    ]
    if extra or lacking:
        got, expected = ", ".join(map(repr, given)) or "nothing", ", ".join(map(repr, tree.keys))
        what = f"{lacking[0]!r} is missing; got {got}" if lacking else f"{extra[0]!r} is not known"
        raise SignatureError(what, where=_spell(path), hint=f"expected {expected}")
    return [
        given.get(key, child.value) for key, child in zip(tree.keys, tree.children, strict=True)
    ]


def _mismatch(tree: Tree, value: Any, path: tuple[str, ...]) -> SignatureError:
    words = {"leaf": "a tensor", "object": tree.type or "an object"}
    expected = words.get(tree.kind, f"a {tree.kind}")
    if tree.keys:
        expected += f" with {', '.join(map(repr, tree.keys))}"
    elif tree.kind in ("tuple", "list"):
        expected += f" of {len(tree.children)}"
    got = "None" if value is None else f"a {type(value).__qualname__}"
    return SignatureError(f"{_name(path)} is {got}, expected {expected}")


def unflatten(tree: Tree, leaves: Sequence[Any]) -> Any:
    """The value that `tree` describes, with these tensors in it.

    An object comes back as its class where that class is already imported, else as a `Fields`.

    Example:
        >>> unflatten(Tree("tuple", children=(Tree(), Tree("constant", value=1))), [7])
        (7, 1)

    Raises:
        SignatureError: too few or too many tensors.
    """
    expected = count_leaves(tree)
    if len(leaves) != expected:
        raise SignatureError(f"got {len(leaves)} tensors, expected {expected}")
    return _unflatten(tree, iter(leaves))


def _unflatten(tree: Tree, leaves: Iterator[Any]) -> Any:
    if tree.kind == "leaf":
        return next(leaves)
    if tree.kind == "constant":
        return tree.value
    children = [_unflatten(child, leaves) for child in tree.children]
    if tree.kind == "tuple":
        return tuple(children)
    if tree.kind == "list":
        return children
    fields = dict(zip(tree.keys, children, strict=True))
    return fields if tree.kind == "dict" else _rebuild(tree, fields)


def _rebuild(tree: Tree, fields: dict[str, Any]) -> Any:
    """The object without running its constructor, which a file must not be able to choose."""
    found = _find_class(tree.type)
    if tree.value == "tuple":
        if not (found and issubclass(found, tuple) and getattr(found, "_fields", 0) == tree.keys):
            found = _named_tuple(tree.type.rpartition(":")[2], tree.keys)
        return tuple.__new__(found, fields.values())
    if found is None or not dataclasses.is_dataclass(found):
        return Fields(tree.type, fields)
    known = {field.name: field for field in dataclasses.fields(found)}
    if not known.keys() >= fields.keys():
        return Fields(tree.type, fields)
    result: Any
    if issubclass(found, OrderedDict):  # ModelOutput: an absent field is None and no key
        result = OrderedDict.__new__(found)
        for key, value in fields.items():
            OrderedDict.__setitem__(result, key, value)
        fields = {key: fields.get(key) for key in known}
    elif found.__new__ is object.__new__:
        result = object.__new__(found)
    else:
        return Fields(tree.type, fields)
    for key, value in fields.items():
        object.__setattr__(result, key, value)
    return result


def _find_class(type_name: str) -> type | None:
    """A class by "module:qualname", from what is imported; `vars` so that no lazy module loads."""
    module_name, _, qualname = type_name.partition(":")
    found: Any = sys.modules.get(module_name)
    if not isinstance(found, types.ModuleType):
        return None
    for name in qualname.split("."):
        if not isinstance(found, (types.ModuleType, type)):
            return None
        found = vars(found).get(name)
    return found if isinstance(found, type) and not hasattr(found, "__del__") else None


@lru_cache(maxsize=256)
def _named_tuple(qualname: str, keys: tuple[str, ...]) -> type:
    name = qualname.rpartition(".")[2]
    usable = name.isidentifier() and not keyword.iskeyword(name)
    return namedtuple(name if usable else "Fields", keys, rename=True)


def count_leaves(tree: Tree) -> int:
    """How many tensors a nest holds."""
    return 1 if tree.kind == "leaf" else sum(map(count_leaves, tree.children))


def leaf_names(tree: Tree, root: str = "") -> tuple[str, ...]:
    """A unique name for each tensor: its path joined with ".", under `root`.

    A lone tensor is called `root`, so give one where that can be ("output").

    Example:
        >>> pair = Tree("tuple", children=(Tree(), Tree()))
        >>> leaf_names(Tree("dict", ("x", "pair"), (Tree(), pair)))
        ('x', 'pair.0', 'pair.1')
    """
    names: list[str] = []
    _collect_names(tree, (root,) if root else (), names)
    for index, name in enumerate(names):  # {"a.b": x, "a": {"b": y}} would name two tensors alike
        while name in names[:index]:
            name += "_"
        names[index] = name
    return tuple(names)


def _collect_names(tree: Tree, path: tuple[str, ...], names: list[str]) -> None:
    if tree.kind == "leaf":
        names.append(".".join(path))
    keys = tree.keys or map(str, range(len(tree.children)))
    for key, child in zip(keys, tree.children, strict=True):
        _collect_names(child, (*path, key), names)


def _spell(path: tuple[str, ...]) -> str:
    return f"in {'.'.join(path)!r}" if path else ""


def _name(path: tuple[str, ...]) -> str:
    return repr(".".join(path)) if path else "the value"


def as_call(given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs by name -> (positionals, keywords) of forward.

    Names "args_0", "args_1", ... stand for what a forward with *args takes by position.

    Example:
        >>> as_call({"args_0": 1, "mask": 2})
        ((1,), {'mask': 2})
    """
    positional = tuple(value for name, value in given.items() if name.startswith("args_"))
    return positional, {
        name: value for name, value in given.items() if not name.startswith("args_")
    }
