"""What `redline tune-training` is given: a function in a script, or in a module."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from redline.capture.factory import load_factory
from redline.errors import InputError
from redline.train.tuning.loop import Loop, as_loop
from redline.train.tuning.result import Tuning
from redline.train.tuning.tuner import tune


def load_loop(target: str) -> Loop:
    """The loop that "script.py:function" or "pkg.module:factory" returns.

    A script is run up to its `if __name__ == "__main__"`, with its own folder first on the path,
    as `python script.py` would.

    Raises:
        InputError: no such file, module or function, or it returns no loop.
        ModelError: the function fails.
    """
    place, _, name = target.rpartition(":")
    if not place.endswith(".py"):
        loop = as_loop(load_factory(target))
        module = sys.modules.get(target.partition(":")[0])
        return _with_source(loop, getattr(module, "__file__", None))
    path = Path(place).resolve()
    if not path.is_file():
        raise InputError(f"there is no file {place}", where=target, hint="write script.py:function")
    _import(path)
    return _with_source(as_loop(load_factory(f"{path.stem}:{name}")), str(path))


def tune_target(
    target: str, *, budget: str, skip: Sequence[str], say: Callable[[str], None]
) -> Tuning:
    """Load a loop by name and tune it."""
    return tune(load_loop(target), budget=budget, skip=skip, say=say)


def _import(path: Path) -> None:
    """Import a script under its own name, so that workers and children find its classes too."""
    sys.path.insert(0, str(path.parent))
    known = sys.modules.get(path.stem)
    if known is not None and Path(getattr(known, "__file__", None) or "").resolve() != path:
        raise InputError(
            f"{path.name} has the name of a module that is loaded already",
            where=str(path), hint="rename the script",
        )  # fmt: skip
    if importlib.util.find_spec(path.stem) is None:
        raise InputError(f"{path.name} cannot be imported", hint="its name must be a Python name")
    try:
        importlib.import_module(path.stem)
    except Exception as error:  # the script's own code
        raise InputError(f"{path.name} fails: {type(error).__name__}: {error}") from error


def _with_source(loop: Loop, path: str | None) -> Loop:
    return loop if loop.source or path is None else replace(loop, source=path)
