"""What the command line names: "pkg.models:build" and "--input 1x3x224x224"."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redline.errors import InputError, ModelError, RedlineError

_SHAPE = re.compile(
    r"(?:(?P<name>[A-Za-z_][\w.]*)[:=])?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?"
)
_TOKENS = 100  # random integers stay below: small enough for any vocabulary


def load_factory(target: str) -> Any:
    """What "pkg.models:build" names: an nn.Module, or what calling the attribute returns.

    The current folder is searched first, as `python -m` would.

    Raises:
        InputError: no such module or attribute; says "did you mean".
        ModelError: the factory fails.
    """
    return _build(load_object(target), target)


def load_data(target: str) -> Any:
    """A loader from the command line: the arrays of an .npy or .npz file as one batch, whose first
    axis counts samples; or what "pkg.module:loader" names, called where it is a function.

    Raises:
        InputError: no such file, module or attribute; or the function raised.
    """
    if target.endswith((".npy", ".npz")):
        pairs = _read(Path(target))
        return [dict(pairs) if pairs[0][0] else pairs[0][1]]
    found = load_object(target)
    if not callable(found):
        return found
    try:
        return found()
    except Exception as error:  # the caller's code
        raise InputError(f"{target} raised {type(error).__name__}: {error}") from error


def load_object(target: str) -> Any:
    """What "pkg.module:name" names, as it is.

    Raises:
        InputError: no such module or attribute; says "did you mean".
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise InputError(
            f"{target!r} names nothing in a module",
            hint="write pkg.module:name, or the path of a file",
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"there is no module {error.name!r}",
            where=target,
            hint="check the spelling, and run from the folder that holds it",
        ) from None
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f"did you mean {module_name}:{near[0]}?" if near else "check the spelling"
        raise InputError(f"module {module_name!r} has no {attribute!r}", where=target, hint=hint)
    return getattr(module, attribute)


def _build(found: Any, target: str) -> Any:
    """Call a factory; a module, program or path is taken as it is."""
    is_module = hasattr(found, "forward") and not isinstance(found, type)
    if is_module or not callable(found):
        return found
    try:
        return found()
    except RedlineError:
        raise
    except Exception as error:
        raise ModelError(
            f"the factory failed: {type(error).__name__}: {error}",
            where=target,
            hint="it is called without arguments and must return the model",
        ) from error


def parse_inputs(texts: Sequence[str]) -> Any:
    """Example inputs from the command line; None for no texts.

    "1x3x224x224"          random normal float32 of that shape
    "ids:1x128:int64"      the parameter `ids`; random integers from 0 to 99
    "x.npy", "batch.npz"   arrays from a file; names in an .npz are parameter names

    Returns:
        A tuple of arrays, or a dict if any of them has a name.

    Raises:
        InputError: a text that cannot be read, or some with a name and some without.

    Example:
        >>> parse_inputs(["2x3"])[0].shape
        (2, 3)
    """
    if not texts:
        return None
    random = np.random.default_rng(0)
    pairs = [pair for text in texts for pair in _parse(text, random)]
    named = [name for name, _ in pairs if name]
    if named and len(named) < len(pairs):
        raise InputError(
            f"only some inputs have a name: {', '.join(named)}", hint="name all or none"
        )
    return dict(pairs) if named else tuple(array for _, array in pairs)


def _parse(text: str, random: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    if text.endswith((".npy", ".npz")):
        return _read(Path(text))
    match = _SHAPE.fullmatch(text)
    if not match:
        raise InputError(
            f"--input {text!r} cannot be read",
            hint="write 1x3x224x224, ids:1x128:int64, or the path of an .npy or .npz file",
        )
    shape = tuple(map(int, match["shape"].split("x")))
    return [(match["name"] or "", _random(shape, match["dtype"] or "float32", text, random))]


def _read(path: Path) -> list[tuple[str, np.ndarray]]:
    try:
        held = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}", hint="save it with np.save") from None
    if isinstance(held, np.ndarray):
        return [("", held)]
    with held:
        return [(name, held[name]) for name in held.files]


def _random(
    shape: tuple[int, ...], dtype: str, text: str, random: np.random.Generator
) -> np.ndarray:
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise InputError(
            f"--input {text!r}: there is no dtype {dtype!r}",
            hint="for example float32, int64, bool",
        ) from None
    if kind.kind == "f":
        return random.normal(size=shape).astype(kind)
    if kind.kind == "b":
        return random.random(shape) < 0.5
    return random.integers(0, _TOKENS, shape).astype(kind)
