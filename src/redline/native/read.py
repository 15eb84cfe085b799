"""ONNX graph -> nodes of ours, one operator after the other, shapes and constants known."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir

from redline.errors import RefusedError
from redline.native import functions
from redline.native.dtypes import ctype, half, narrowed
from redline.native.ir import Apply, Expr, Load, No, Node, Program, Value, contiguous, reshaped
from redline.native.registry import NEVER, OPERATORS, operator
from redline.native.steps import Rounded, Weights, moved, weights

__all__ = ["Op", "Reader", "Unknown", "constant", "operator", "read"]
Scope = dict[str, Value]


class Unknown(No):
    """An operand that must be known at build is not.

    Attributes:
        value: the operand.
    """

    def __init__(self, reason: str, value: Value) -> None:
        super().__init__(reason)
        self.value = value


class Op:
    """An ONNX node whose inputs are values of ours."""

    def __init__(
        self, node: onnx_ir.Node, ins: list[Value | None], opset: int, scope: Scope | None = None
    ) -> None:
        self.type, self.name, self.opset = node.op_type, node.name or node.op_type, opset
        self.ins = ins
        self.outputs = [value.name or "" for value in node.outputs]
        self._used = [bool(v.uses()) or v.is_graph_output() for v in node.outputs]
        while self.outputs and not self.outputs[-1]:
            self.outputs.pop()
        self.count = len(self.outputs)
        self.scope = {} if scope is None else scope
        self._attributes = node.attributes

    def attr(self, name: str, default: Any = None) -> Any:
        found = self._attributes.get(name)
        if found is None:
            return default
        value = found.value
        if isinstance(value, onnx_ir.TensorProtocol):
            return value.numpy()
        return tuple(value) if isinstance(value, list | tuple) else value

    def wants(self, index: int) -> bool:
        """Whether anyone may read the output."""
        return index < self.count and bool(self.outputs[index]) and self._used[index]

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
            raise Unknown(f"{self.type}'s input {index} is not known at build", found)
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
        self.steps: dict[Value, Rounded | Weights] = {}  # what steps.py knows of a value
        self._op = ""

    def new(self, shape: tuple[int, ...], dtype: Any) -> Value:
        return Value(tuple(int(n) for n in shape), np.dtype(dtype), self._op)

    def add(self, kind: str, out: Value, *ins: Value, **attrs: Any) -> Value:
        """One more node; returns `out`."""
        self.nodes.append(Node(kind, out, list(ins), None, attrs, [self._op]))
        return out

    def call(self, header: str, kernel: str, out: Value, *ins: Value, **more: Any) -> Value:
        """One call of a template of kernels/`header` over contiguous arrays; returns `out`.

        The C++ is `rl::kernel(part, in0, in1, ..., out, numbers...)`: `part` is the thread's share
        of `units` (1 unless given); `numbers` are whole numbers, floats, tuples of them, or text.
        Also `scratch_bytes`: what each thread needs, at an address that comes after `out`;
        `work`: about how many operations it does.
        """
        dense = [self.dense(value) for value in ins]
        return self.add("call", out, *dense, **{"units": 1} | more, kernel=kernel, header=header)

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
        expr = Apply(narrowed(form, kind), tuple(map(_wide, args)), kind, fits)
        return self.loop(expr, shape, kind)

    def cast(self, value: Value, dtype: Any) -> Value:
        """The elements as another type; the value itself where it has that type."""
        kind = np.dtype(dtype)
        if kind == value.dtype:
            return value
        if value.const is not None and not half(kind):
            with np.errstate(all="ignore"):
                return constant(value.const.astype(kind))
        ctype(value.dtype)
        form = f"(({ctype(kind)})({{0}}))"
        return self.loop(Apply(form, (_wide(value),), kind, False), value.shape, kind)

    def copy(self, value: Value) -> Value:
        """The same elements in row-major memory of their own."""
        return self.loop(Load(value), value.shape, value.dtype)

    def dense(self, value: Value) -> Value:
        """The value itself where it is row-major, else a copy that is."""
        if value.base is None or (value.strides == contiguous(value.shape)):
            return value
        return self.copy(value)

    def reshape(self, value: Value, shape: tuple[int, ...]) -> Value:
        """The value in another shape: a view where memory order allows one."""
        if value.shape == tuple(shape):
            return value
        if value.const is not None and value.base is None:
            return constant(value.const.reshape(shape))
        seen = reshaped(value, shape)
        if seen is None:
            seen = reshaped(self.copy(value), shape)
            assert seen is not None, "a row-major value has every shape"
        return seen

    def graph(self, graph: onnx_ir.Graph, scope: Scope, opset: int) -> list[Value]:
        """The outputs of a graph whose inputs are in `scope`, which is filled up."""
        for name, value in graph.initializers.items():
            assert value.const_value is not None
            scope[name] = constant(value.const_value.numpy())
        for node in graph:
            self.node(node, scope, opset)
        return [scope[value.name or ""] for value in graph.outputs]

    def node(self, node: onnx_ir.Node, scope: Scope, opset: int) -> None:
        """Reads one node; its results are put into `scope`."""
        ins = [scope[v.name or ""] if v is not None and v.name else None for v in node.inputs]
        outs = self.read(node, ins, opset, scope)
        names = [value.name or "" for value in node.outputs]
        scope.update({name: out for name, out in zip(names, outs, strict=False) if name})

    def read(
        self, node: onnx_ir.Node, ins: list[Value | None], opset: int, scope: Scope | None = None
    ) -> list[Value]:
        """The results of one operator."""
        self._op = node.name or node.op_type
        if node.domain not in ("", "ai.onnx"):
            raise No(f"{node.domain} operator {node.op_type} is not supported")
        if node.op_type in NEVER:
            raise No(f"{node.op_type}: {NEVER[node.op_type]}")
        if all(v is None or v.const is not None for v in ins):
            folded = functions.fold(node, ins, opset)
            if folded is not None:
                return self._folded(node, ins, [constant(array) for array in folded])
        mark = len(self.nodes)
        try:
            return moved(self, node.op_type, ins, self._lower(Op(node, ins, opset, scope)))
        except No as reason:
            del self.nodes[mark:]
            return self._expand(node, ins, opset, reason)

    def _folded(
        self, node: onnx_ir.Node, ins: list[Value | None], outs: list[Value]
    ) -> list[Value]:
        """Constants made of constants; of weights in whole numbers those are kept, too."""
        if node.op_type == "DequantizeLinear":
            axis = node.attributes.get_int("axis", 1)
            parts = [v.const for v in ins if v is not None and v.const is not None]
            known = weights(parts, axis)
            if known is not None:
                self.steps[outs[0]] = known
        return outs

    def _lower(self, op: Op) -> list[Value]:
        """By our own lowering, float16 and bfloat16 through float32 where it asks for that."""
        entry = OPERATORS.get(op.type)
        if entry is None:
            raise No(f"ONNX operator {op.type} is not supported")
        small = next((v.dtype for v in op.ins if v is not None and half(v.dtype)), None)
        if small is not None and entry.widens:
            op.ins = [
                self.cast(v, "float32") if v is not None and v.dtype == small else v for v in op.ins
            ]
        elif op.has(entry.typed) and op.value(entry.typed).dtype.name not in entry.types:
            raise No(f"{op.type} of {op.value(entry.typed).dtype}")
        outs = entry.lower(self, op)
        if small is None or not entry.widens:
            return outs
        return [self.cast(v, small) if v.dtype == np.float32 else v for v in outs]

    def _expand(
        self, node: onnx_ir.Node, ins: list[Value | None], opset: int, reason: No
    ) -> list[Value]:
        """By the function that ONNX defines the operator by."""
        function = functions.body(node, ins, opset)
        if function is None:
            raise reason
        scope = {n: v for n, v in zip(function.input, ins, strict=False) if v is not None}
        inner = next((o.version for o in function.opset_import if not o.domain), opset)
        for part in functions.bound(function, node, opset):
            self.node(part, scope, inner)
        wanted = zip(function.output, node.outputs, strict=False)
        if any(value.name and name not in scope for name, value in wanted):
            raise reason
        return [scope.get(name, ins[0]) for name in function.output]  # type: ignore[misc]


def _wide(value: Value) -> Expr:
    """The element, a float16 or bfloat16 as a float."""
    if half(value.dtype):
        return Apply("((float)({0}))", (Load(value),), np.dtype("float32"), False)
    return Load(value)


def constant(array: np.ndarray) -> Value:
    """A value that is known at build."""
    array = functions.known(np.asarray(array))
    return Value(array.shape, array.dtype, const=array)


def read(model: onnx_ir.Model) -> Program:
    """The whole graph.

    Raises:
        RefusedError: an operator or a shape that the compiler has no kernel for, by name.
    """
    from redline.native import operators  # noqa: F401  (fills OPERATORS)

    if model.functions:
        onnx_ir.passes.common.InlinePass()(model)
    graph, opset = model.graph, model.opset_imports.get("", 1)
    reader = Reader()
    inputs = given(graph)
    scope: Scope = {value.name: value for value in inputs}
    for name, value in graph.initializers.items():
        assert value.const_value is not None
        scope[name] = constant(value.const_value.numpy())
    for node in graph:
        try:
            reader.node(node, scope, opset)
        except No as reason:
            refused = RefusedError(str(reason), where=f"node {node.name or node.op_type}")
            raise refused from (reason if isinstance(reason, Unknown) else None)
    outputs: list[Value] = []
    for value in graph.outputs:
        found = scope[value.name or ""]
        taken = found in inputs or found in outputs
        own = found.base is None and found.const is None and not taken
        outputs.append(found if own else reader.copy(found))
    return Program(inputs, outputs, reader.nodes)


def given(graph: onnx_ir.Graph) -> list[Value]:
    """What a caller gives: the inputs that are no initializers.

    Raises:
        RefusedError: one without a shape of whole numbers, or that is no array.
    """
    inputs = [value for value in graph.inputs if value.name not in graph.initializers]
    return [Value(_shape(value), _dtype(value), value.name or "") for value in inputs]


def _shape(value: onnx_ir.Value) -> tuple[int, ...]:
    dims = None if value.shape is None else tuple(value.shape)
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        raise RefusedError(
            f"input {value.name!r} has the shape {dims}; the compiler needs whole numbers",
            hint="leave out dynamic=, or let another backend run it",
        )
    return tuple(int(dim) for dim in dims)  # type: ignore[arg-type]


def _dtype(value: onnx_ir.Value) -> np.dtype:
    if value.dtype is None or not isinstance(value.type, onnx_ir.TensorType):
        raise RefusedError(f"input {value.name!r} is not an array")
    try:
        found = np.dtype(value.dtype.numpy())
        ctype(found)
    except (No, TypeError) as reason:
        raise RefusedError(f"input {value.name!r}: {reason}") from None
    return found
