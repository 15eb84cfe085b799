"""What goes into a model and what comes out: tensors, dynamic dims, and the nest they sit in.

Known to every layer and free of torch, so an engine file can describe `forward(batch: dict, *,
mask)` and a `ModelOutput` on a machine that has neither.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: its name, NumPy dtype name, and shape; a str in the shape names a Dim.

    Example:
        >>> TensorSpec("x", "float32", ("batch", 3, 224, 224))
        TensorSpec(name='x', dtype='float32', shape=('batch', 3, 224, 224))
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Dim:
    """A dynamic axis: every size from min to max is legal, opt is the one that is timed."""

    name: str
    min: int
    opt: int
    max: int


@dataclass(frozen=True)
class Tree:
    """A nest of containers whose leaves are tensors, in the order of Signature.inputs or .outputs.

    kind "leaf"      one tensor
         "constant"  a value that is not a tensor (None, a flag); `value` holds it
         "tuple", "list"    children in order
         "dict"      children under `keys`
         "object"    a dataclass, NamedTuple or ModelOutput: `type` is "module:qualname", `keys` its
                     fields. Rebuilt as that class only where its module is already imported.
    """

    kind: Literal["leaf", "constant", "tuple", "list", "dict", "object"] = "leaf"
    keys: tuple[str, ...] = ()
    children: tuple[Tree, ...] = ()
    type: str = ""
    value: Scalar = None


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of an engine.

    `input_tree` is a "dict" whose keys are forward's parameters in order: `engine(a, b=c)` binds as
    `forward(a, b=c)` does. Leaves flatten in order into `inputs`; their names join the path by ".".
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_tree: Tree
    output_tree: Tree
    dims: tuple[Dim, ...] = field(default=())

    def dim(self, name: str) -> Dim | None:
        """The dynamic dim of that name, or None for an expression such as "batch*2"."""
        return next((dim for dim in self.dims if dim.name == name), None)

    def shape(self, spec: TensorSpec, which: Literal["min", "opt", "max"]) -> tuple[int, ...]:
        """The shape of an input with every dynamic dim at its min, opt or max.

        Example:
            >>> x = TensorSpec("x", "float32", ("batch", 4))
            >>> tree = Tree("dict", ("x",), (Tree(),))
            >>> Signature((x,), (), tree, Tree("tuple"), (Dim("batch", 1, 8, 32),)).shape(x, "max")
            (32, 4)
        """
        sizes = {dim.name: getattr(dim, which) for dim in self.dims}
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
