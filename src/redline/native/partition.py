"""Cuts a graph where the compiler lacks an operator: only that operator is left to others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import onnx_ir
from onnx import helper, numpy_helper

from redline.errors import RefusedError
from redline.native.ir import No, Value
from redline.native.read import Reader, constant, given
from redline.native.registry import NEVER, OPERATORS

_MOST = 9  # segments; between each two the data leave one runtime for the other
_WORK = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum"}


@dataclass
class Segment:
    """Nodes that run together.

    Attributes:
        foreign: they are left to another runtime.
        inputs, outputs: names of the arrays that come from outside, and that others read.
    """

    foreign: bool
    nodes: list[onnx_ir.Node] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


def lacking(operators: Sequence[str]) -> list[str]:
    """The operator types that the compiler certainly has no way to take.

    Example:
        >>> lacking(["Conv", "Gelu", "NonMaxSuppression"])
        ['NonMaxSuppression']
    """
    from redline.native import operators as _  # noqa: F401  (fills OPERATORS)

    def has_function(name: str) -> bool:
        if not onnx.defs.has(name):
            return False
        schema: Any = onnx.defs.get_schema(name)  # its stubs lack the functions
        return bool(schema.has_function or schema.has_context_dependent_function)

    return [
        name
        for name in operators
        if name in NEVER or (name not in OPERATORS and not has_function(name))
    ]


class Cut:
    """A graph in segments.

    Attributes:
        segments: in the order they run; left: operator -> why it is left to another runtime.

    Raises:
        RefusedError: nothing needs to be cut, nothing worth compiling is left, or the cuts would
            be too many.
    """

    def __init__(self, model: onnx_ir.Model) -> None:
        from redline.native import operators as _  # noqa: F401  (fills OPERATORS)

        if model.functions:
            onnx_ir.passes.common.InlinePass()(model)
        self._graph, self._opset = model.graph, model.opset_imports.get("", 1)
        self._imports = dict(model.opset_imports)
        self._scope: dict[str, Value] = {value.name: value for value in given(self._graph)}
        self._names = set(self._scope)
        self.left: dict[str, str] = {}
        foreign = self._survey()
        if not foreign:
            raise RefusedError("the compiler takes every operator: there is nothing to cut")
        self.segments = self._segments(foreign)
        mine = [node for part in self.segments if not part.foreign for node in part.nodes]
        if not any(node.op_type in _WORK for node in mine):
            raise RefusedError("what the compiler could take of it is not worth a cut")
        if len(self.segments) > _MOST:
            raise RefusedError(f"it would fall into {len(self.segments)} parts, {_MOST} at most")
        self._connect()

    def _survey(self) -> set[str]:
        """The first outputs of the nodes that are left to others; `_scope` knows every shape."""
        reader = Reader()
        for name, value in self._graph.initializers.items():
            assert value.const_value is not None
            self._scope[name] = constant(value.const_value.numpy())
        foreign = set()
        for node in self._graph:
            try:
                if any(v is not None and v.name and v.name not in self._scope for v in node.inputs):
                    raise No("the shapes of its inputs depend on values")
                reader.node(node, self._scope, self._opset)
            except No as reason:
                self.left.setdefault(node.op_type, str(reason))
                foreign.add(node.outputs[0].name or "")
                for value in node.outputs:
                    known = _declared(value)
                    if known is not None:
                        self._scope[value.name or ""] = known
        return foreign

    def _segments(self, foreign: set[str]) -> list[Segment]:
        """As few segments as come of taking, in turns, all that is ready of one kind."""
        waiting = list(self._graph)
        ready = self._names | {name for name, v in self._scope.items() if v.const is not None}
        found: list[Segment] = []
        kind = False
        while waiting:
            part = Segment(kind)
            later = []
            for node in waiting:
                mine = (node.outputs[0].name in foreign) == kind
                if mine and all(v is None or not v.name or v.name in ready for v in node.inputs):
                    part.nodes.append(node)
                    ready |= {value.name or "" for value in node.outputs}
                else:
                    later.append(node)
            if part.nodes:
                found.append(part)
            waiting, kind = later, not kind
        return found

    def _connect(self) -> None:
        """Which arrays cross from one segment to another."""
        wanted = {value.name or "" for value in self._graph.outputs}
        for part in reversed(self.segments):
            made = {value.name or "" for node in part.nodes for value in node.outputs}
            reads = {v.name for node in part.nodes for v in node.inputs if v is not None and v.name}
            part.outputs = sorted(made & wanted)
            part.inputs = sorted(name for name in reads - made if not self._known(name))
            wanted = (wanted - made) | set(part.inputs)
        self.segments = [part for part in self.segments if part.outputs]

    def _known(self, name: str) -> bool:
        value = self._scope.get(name)
        return value is not None and value.const is not None

    def model(self, part: Segment) -> onnx.ModelProto:
        """A segment as a model of its own."""
        nodes = [onnx_ir.serde.serialize_node(node) for node in part.nodes]
        constants = sorted({name for node in nodes for name in node.input if self._known(name)})
        initializers = []
        for name in constants:
            array = self._scope[name].const
            assert array is not None
            initializers.append(numpy_helper.from_array(array, name))
        graph = helper.make_graph(
            nodes,
            "segment",
            [self._info(name) for name in part.inputs],
            [self._info(name) for name in part.outputs],
            initializers,
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in self._imports.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _info(self, name: str) -> onnx.ValueInfoProto:
        value = self._scope.get(name)
        if value is None:
            return helper.make_empty_tensor_value_info(name)
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        return helper.make_tensor_value_info(name, kind, value.shape)


def _declared(value: onnx_ir.Value) -> Value | None:
    """What the graph itself says of an array, where that is all there is to know."""
    shape = None if value.shape is None else tuple(value.shape)
    if shape is None or value.dtype is None or not all(isinstance(n, int) for n in shape):
        return None
    return Value(tuple(int(n) for n in shape), value.dtype.numpy(), value.name or "")  # type: ignore[arg-type]
