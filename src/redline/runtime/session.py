"""An engine as a callable: binds arguments as forward() does, checks, runs, answers in kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from redline.engine.manifest import Manifest, Part
from redline.errors import SignatureError, UnknownNameError
from redline.runtime.check import check_arrays
from redline.runtime.convert import from_torch, is_torch, plain, to_numpy, to_torch
from redline.runtime.runner import Runner
from redline.signature import Signature
from redline.tree import flatten, unflatten

Run = Callable[[Sequence[np.ndarray]], list[np.ndarray]]


class Session:
    """A loaded engine. Torch in, torch out; NumPy or any other DLPack tensor in, NumPy out.

    Many threads may call it at once.

    Attributes:
        signature: names, dtypes and shapes of inputs and outputs.
        run: arrays in the order of signature.inputs -> arrays; nothing is checked.
        part, manifest: what it was loaded from; None for an engine that has no file yet.
        notices: what the user should know, e.g. why a faster part was passed over.

    Example:
        >>> with open_engine("model.redline") as session:
        ...     y = session(x)
    """

    def __init__(
        self,
        runner: Runner,
        signature: Signature,
        *,
        name: str = "",
        part: Part | None = None,
        manifest: Manifest | None = None,
        notices: Sequence[str] = (),
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self.runner = runner
        self.signature = signature
        self.name = name
        self.part = part
        self.manifest = manifest
        self.notices = tuple(notices)
        self.run: Run = runner.run
        self._on_close = on_close
        tree = signature.input_tree
        # Where every parameter is one tensor, the arguments are the leaves and need no binding.
        direct = tree.children and all(child.kind == "leaf" for child in tree.children)
        self._direct = len(tree.children) if direct else -1
        # A runner may check for itself, in less time, whether arrays are what it takes.
        self._offer = getattr(runner, "offer", None) if direct else None
        # dtype and shape of each input; a shape with a dynamic dim equals no array's shape.
        self._plan = tuple((np.dtype(s.dtype), s.shape, s.name) for s in signature.inputs)
        self._output_is_leaf = signature.output_tree.kind == "leaf"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run as forward(*args, **kwargs) would; no gradients.

        Raises:
            SignatureError: a wrong name, dtype, shape, structure or device, with what was expected.
            RunError: the backend failed.
        """
        if self._offer is not None and not kwargs and args and type(args[0]) is np.ndarray:
            results = self._offer(args)
            if results is not None:
                return self._answer(results)
        leaves: Sequence[Any] = args
        if kwargs or len(args) != self._direct:
            leaves = self._leaves(args, kwargs)
        arrays = []
        as_torch = unsure = False
        for leaf, (dtype, shape, name) in zip(leaves, self._plan, strict=True):
            array = leaf
            if type(leaf) is not np.ndarray:
                if is_torch(leaf):
                    array = from_torch(leaf, name)
                    as_torch = True
                else:
                    array = self._to_numpy(leaf, name)
            if array.shape != shape or array.dtype != dtype:
                unsure = True
            arrays.append(plain(array))
        if unsure:
            check_arrays(arrays, self.signature)
        results = self.run(arrays)
        if as_torch:
            results = to_torch(results)
        return self._answer(results)

    def _answer(self, results: Sequence[Any]) -> Any:
        if self._output_is_leaf:
            return results[0]
        return unflatten(self.signature.output_tree, results)

    def _to_numpy(self, leaf: Any, name: str) -> np.ndarray:
        if not hasattr(leaf, "__dlpack__"):
            what = f"input {name!r} is {type(leaf).__qualname__}, expected a tensor"
            raise SignatureError(what, hint="pass a NumPy array or a torch tensor")
        return to_numpy(leaf, name)

    def _leaves(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Sequence[Any]:
        tree = self.signature.input_tree
        if len(args) + len(kwargs) == self._direct:
            try:
                return (*args, *[kwargs[name] for name in tree.keys[len(args) :]])
            except KeyError:
                pass  # _bind says which name is wrong
        return flatten(tree, self._bind(args, kwargs))

    def _bind(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments by parameter name."""
        names = self.signature.input_tree.keys
        if len(args) > len(names):
            raise SignatureError(
                f"got {len(args)} positional inputs, expected at most {len(names)}",
                hint=f"inputs are {', '.join(names)}",
            )
        bound = dict(zip(names, args, strict=False))
        for name, value in kwargs.items():
            if name in bound:
                raise SignatureError(f"got input {name!r} twice: by position and by name")
            if name not in names and value is not None:
                known = UnknownNameError("input", name, names)
                raise SignatureError(known.what, hint=known.hint)
            bound[name] = value
        return bound

    def close(self) -> None:
        """Let go of memory, threads and the file; a second call does nothing."""
        self.runner.close()
        if self._on_close:
            self._on_close()
            self._on_close = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        backend = self.part.backend if self.part else type(self.runner).__name__
        inputs = ", ".join(f"{s.name}: {s.dtype}{list(s.shape)}" for s in self.signature.inputs)
        return f"Session({self.name or 'engine'} on {backend}; {inputs})"
