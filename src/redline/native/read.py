"""ONNX graph -> nodes of ours, one operator after the other, shapes and constants known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir

from redline.errors import RefusedError
from redline.native.ir import Apply, Expr, Load, No, Node, Program, Value, contiguous, reshaped

Lowering = Callable[["Reader", "Op"], list[Value]]
OPERATORS: dict[str, Lowering] = {}


def operator(*names: str) -> Callable[[Lowering], Lowering]:
    """Registers how an ONNX operator becomes nodes."""

    def register(lowering: Lowering) -> Lowering:
        OPERATORS.update(dict.fromkeys(names, lowering))
        return lowering

    return register


class Op:
    """An ONNX node whose inputs are values of ours."""

    def __init__(self, node: onnx_ir.Node, ins: list[Value | None], opset: int) -> None:
        self.type, self.name, self.opset = node.op_type, node.name or node.op_type, opset
        self.ins = ins
        self.count = len(node.outputs)
        self._attributes = node.attributes

    def attr(self, name: str, default: Any = None) -> Any:
        found = self._attributes.get(name)
        if found is None:
            return default
        value = found.value
        if isinstance(value, onnx_ir.TensorProtocol):
            return value.numpy()
        return tuple(value) if isinstance(value, list | tuple) else value

    def has(self, index: int) -> bool:
        return index < len(self.ins) and self.ins[index] is not None

    def value(self, index: int) -> Value:
        found = self.ins[index] if index < len(self.ins) else None
        if found is None:
            raise No(f"{self.type} without its input {index}")
        return found

    def const(self, index: int, default: Any = None) -> Any:
        """An input that must be known at build."""
        if not self.has(index):
            return default
        found = self.value(index)
        if found.const is None:
            raise No(f"{self.type}'s input {index} is not known at build")
        return found.const

    def ints(self, index: int, attribute: str = "", default: Any = None) -> Any:
        """Whole numbers from an input, or in old opsets from an attribute."""
        if self.has(index):
            return tuple(int(n) for n in np.atleast_1d(self.const(index)))
        return self.attr(attribute, default) if attribute else default


class Reader:
    """Collects the nodes of one graph."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._op = ""

    def new(self, shape: tuple[int, ...], dtype: Any) -> Value:
        return Value(tuple(int(n) for n in shape), np.dtype(dtype), self._op)

    def add(self, kind: str, out: Value, *ins: Value, **attrs: Any) -> Value:
        """One more node; returns `out`."""
        self.nodes.append(Node(kind, out, list(ins), None, attrs, [self._op]))
        return out

    def loop(self, expr: Expr, shape: tuple[int, ...], dtype: Any) -> Value:
        """A value computed element by element."""
        out = self.new(shape, dtype)
        self.nodes.append(Node("loop", out, [], expr, {}, [self._op]))
        return out

    def pointwise(self, form: str, *args: Value, dtype: Any = None, vector: bool = True) -> Value:
        """The C++ `form` over the broadcast arguments: "{0} + {1}" over a and b."""
        kind = np.dtype(dtype or args[0].dtype)
        shape = np.broadcast_shapes(*(arg.shape for arg in args))
        fits = vector and all(arg.dtype == np.float32 for arg in args) and kind == np.float32
        expr = Apply(form, tuple(Load(arg) for arg in args), kind, fits)
        return self.loop(expr, shape, kind)

    def copy(self, value: Value) -> Value:
        """The same elements in row-major memory of their own."""
        return self.loop(Load(value), value.shape, value.dtype)

    def dense(self, value: Value) -> Value:
        """The value itself where it is row-major, else a copy that is."""
        if value.base is None or (value.strides == contiguous(value.shape)):
            return value
        return self.copy(value)

    def reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        if value.const is not None:
            return constant(value.const.reshape(shape))
        seen = reshaped(value, shape)
        if seen is None:
            seen = reshaped(self.copy(value), shape)
            assert seen is not None, "a row-major value has every shape"
        return seen

    def read(self, node: onnx_ir.Node, ins: list[Value | None], opset: int) -> list[Value]:
        op = Op(node, ins, opset)
        self._op = op.name
        if node.op_type != "Constant" and all(v is None or v.const is not None for v in ins):
            folded = _fold(node, ins, opset)
            if folded is not None:
                return folded
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise No(f"{node.domain or 'ONNX'} operator {node.op_type} is not supported")
        return OPERATORS[node.op_type](self, op)


def constant(array: np.ndarray) -> Value:
    """A value that is known at build."""
    array = np.ascontiguousarray(array).reshape(np.shape(array))
    return Value(array.shape, array.dtype, const=array)


def read(model: onnx_ir.Model) -> Program:
    """The whole graph.

    Raises:
        RefusedError: an operator or a shape that the compiler has no kernel for, by name.
    """
    from redline.native import operators  # noqa: F401  (fills OPERATORS)

    graph, opset = model.graph, model.opset_imports.get("", 1)
    values: dict[onnx_ir.Value, Value] = {}
    reader = Reader()
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    for value in inputs:
        values[value] = Value(_shape(value), _dtype(value), value.name or "")
    for value in graph.initializers.values():
        assert value.const_value is not None
        values[value] = constant(value.const_value.numpy())
    for node in graph:
        try:
            ins = [None if value is None else values[value] for value in node.inputs]
            outs = reader.read(node, ins, opset)
        except No as reason:
            raise RefusedError(str(reason), where=f"node {node.name or node.op_type}") from None
        values.update(zip(node.outputs, outs, strict=False))
    given = [values[value] for value in inputs]
    outputs: list[Value] = []
    for value in graph.outputs:
        found = values[value]
        taken = found in given or found in outputs
        own = found.base is None and found.const is None and not taken
        outputs.append(found if own else reader.copy(found))
    return Program(given, outputs, reader.nodes)


def _shape(value: onnx_ir.Value) -> tuple[int, ...]:
    dims = None if value.shape is None else tuple(value.shape)
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        raise RefusedError(
            f"input {value.name!r} has the shape {dims}; the compiler needs whole numbers",
            hint="leave out dynamic=, or let another backend run it",
        )
    return tuple(int(dim) for dim in dims)  # type: ignore[arg-type]


def _dtype(value: onnx_ir.Value) -> np.dtype:
    if value.dtype is None:
        raise RefusedError(f"input {value.name!r} has no dtype")
    return np.dtype(value.dtype.numpy())


def _fold(node: onnx_ir.Node, ins: list[Value | None], opset: int) -> list[Value] | None:
    """The results of an operator on constants, by ONNX's own reference."""
    from onnx.reference import ReferenceEvaluator

    proto = onnx_ir.serde.serialize_node(node)
    names = [name for name in proto.input if name]
    arrays = {name: v.const for name, v in zip(proto.input, ins, strict=True) if v is not None}
    inputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names]
    outputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "fold", inputs, outputs)
    opsets = [onnx.helper.make_opsetid("", opset)]
    try:
        model = onnx.helper.make_model(graph, opset_imports=opsets)
        results = ReferenceEvaluator(model).run(None, arrays)
    except Exception:  # the reference lacks it: the operator's own lowering is asked
        return None
    if not all(isinstance(result, np.ndarray | np.generic) for result in results):
        return None
    return [constant(np.asarray(result)) for result in results]
