"""`graph_view()`: the model runs on tensors without values, under torch's own counters."""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from redline.capture.bind import bind
from redline.capture.failures import explain
from redline.errors import ModelError
from redline.tree import as_call
from redline.views import autograd_nodes, flops
from redline.views.calls import Call, Calls, check_module
from redline.views.model_graph import GraphView, order, table
from redline.views.storage import Allocations, key, keys, spell, tensors

_NO_WEIGHTS = "the model is on the meta device: it has no weights to run with"
_META = (
    "on the meta device attention and recurrent layers are counted as their parts, which make and "
    "save more than the fused kernels of a CPU or GPU: an upper bound"
)
_VALUES = ("DataDependentOutputException", "DynamicOutputShapeException", "GuardOnDataDependent")


def graph_view(model: torch.nn.Module, inputs: Any, *, real: bool = False) -> GraphView:
    """A module's tree with shapes, parameters, FLOPs and memory, before it runs.

    The forward and the backward run on fake tensors: operators tell the shapes of their results
    and compute nothing, so a model on the meta device will do, and the model's parameters, buffers,
    gradients and mode stay as they are. docs/networks.md says which figures are exact.

    Args:
        model: the module, in the mode (train or eval) that is asked about.
        inputs: a tensor, a tuple of positionals, a dict of keywords, or (tuple, dict); arrays
            will do. Only shapes and types count.
        real: compute on the real values, and so measure. For a forward that looks at values.

    Raises:
        InputError: forward does not take these inputs.
        ModelError: not an nn.Module, or its forward fails, or it looks at values.

    Example:
        >>> view = graph_view(torch.nn.Linear(4, 2), torch.zeros(1, 4))
        >>> view.modules[0].flops, view.modules[0].outputs
        (16, ('1x2 float32',))
    """
    check_module(model)
    given = _with_gradients(bind(model, inputs), inputs)
    virtual = any(one.is_meta for one in [*model.parameters(), *model.buffers()])
    if virtual:
        if real:
            raise ModelError(_NO_WEIGHTS, hint="leave out real=True, or build it on a device")
        given = tree_map_only(torch.Tensor, lambda one: one.to("meta"), given)
    stage = _Stage(model, given, real)
    run = _Run(stage)
    run.train()
    peak = _peak_inference(stage)
    notes = (*run.notes, *_notes(run), *([_META] if virtual else []))
    first = next(iter([*model.parameters(), *tensors(given)]), None)
    return GraphView(
        model=type(model).__name__,
        device=str(first.device) if first is not None else "cpu",
        mode=_mode(model),
        inputs=tuple(f"{name} {spell(t)}" for name, v in given.items() for t in tensors(v)),
        modules=table(model, run.calls, run.backward),
        saved_inputs=run.saved_inputs,
        peak_inference=peak,
        peak_training=run.peak,
        order=order(run.calls),
        measured=real,
        notes=notes,
    )


def _with_gradients(given: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """bind() gives detached inputs; those that required a gradient require it again."""
    wanted = keys(one for one in tensors(inputs) if one.requires_grad)
    for one in tensors(given):
        if key(one)[0] in wanted:
            one.requires_grad_()
    return given


def _mode(model: torch.nn.Module) -> str:
    training = sum(part.training for part in model.modules())
    parts = sum(1 for _ in model.modules())
    names = {0: "eval mode", parts: "training mode"}
    return names.get(training, f"{training} of {parts} modules in training mode")


class _Stage:
    """Where the model runs: its parameters, buffers and inputs, or fakes of them."""

    def __init__(self, model: torch.nn.Module, given: Mapping[str, Any], real: bool) -> None:
        self.model = model
        self.fake = None if real else FakeTensorMode(allow_non_fake_inputs=True)
        self.state = {name: self._stand_in(one) for name, one in model.named_parameters()}
        self.state |= {name: self._stand_in(one) for name, one in model.named_buffers()}
        self.args, self.kwargs = tree_map_only(torch.Tensor, self._stand_in, as_call(given))
        self.inputs = tensors((self.args, self.kwargs))

    def _stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """A leaf of the same kind that takes no gradient into the user's own tensor.

        A buffer or input is copied, since a forward may write to it; a parameter shares its memory.
        """
        if self.fake is not None:
            return self.fake.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)
        copied = tensor.detach() if isinstance(tensor, torch.nn.Parameter) else tensor.clone()
        return copied.detach().requires_grad_(tensor.requires_grad)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Callable[[], Any]]:
        """The call to make; random numbers drawn meanwhile are given back."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices=[], enabled=self.fake is None))
            stack.enter_context(self.fake or contextlib.nullcontext())
            if self.fake is not None:
                stack.enter_context(_quiet())
            yield lambda: functional_call(self.model, self.state, self.args, self.kwargs)

    def failed(self, error: Exception) -> ModelError:
        """What to tell of an exception from the model's own forward."""
        if isinstance(error, ModelError):
            return error
        where = explain(error, "forward").where
        if type(error).__name__.startswith(_VALUES):
            return ModelError(
                "the model looks at values, and here there are only shapes",
                where=where,
                hint="graph_view(model, inputs, real=True), or --real, runs it on the real values",
            )
        return ModelError(
            f"the model fails on these inputs: {type(error).__name__}: {error}",
            where=where,
            hint="check their shapes and dtypes against what forward expects",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch logs the traceback of an operator that refuses its shapes; we raise it anyway."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class _Run(Calls):
    """One forward and backward, with everything counted."""

    def __init__(self, stage: _Stage) -> None:
        super().__init__(stage.model)
        self.stage = stage
        self.counter = flops.counter()
        self.notes: list[str] = []
        self.backward: dict[str, int] = defaultdict(int)
        self.saved_inputs = self.peak = self._seen = 0
        self._outside = Call("", None, 0, 0, True, ())
        self._weights = keys(stage.state.values())
        self._inputs = keys(stage.inputs)
        self._packed: set[int] = set()

    def train(self) -> None:
        """Run, and fill in the figures."""
        known = [*self.stage.state.values(), *self.stage.inputs]
        memory = Allocations(known, self._made)
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda packed: packed)
        with self.stage() as call, self.counter, memory:
            try:
                with torch.enable_grad(), hooks, self:
                    output = call()
            except Exception as error:
                raise self.stage.failed(error) from error
            self._count_flops()
            self._backward(output)
        self.peak = memory.peak

    def entered(self, call: Call) -> None:
        self._count_flops(call.parent)

    def left(self, call: Call) -> None:
        self._count_flops(call)

    def _count_flops(self, call: Call | None = None) -> None:
        """What was counted since the last time was the work of this call itself."""
        counted = int(self.counter.get_total_flops())
        (call or self._outside).flops += counted - self._seen
        self._seen = counted

    def _made(self, size: int) -> None:
        if self.now is not None:
            self.now.made += size

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        identity, size = key(tensor)
        if identity not in self._packed and identity not in self._weights:
            self._packed.add(identity)
            if identity in self._inputs:
                self.saved_inputs += size
            else:
                (self.now or self._outside).saved += size
        return tensor

    def _backward(self, output: Any) -> None:
        """Every output that can have a gradient gets one; each node's FLOPs go to its module."""
        roots = [one for one in tensors(output) if one.requires_grad]
        if not roots:
            self.notes.append("no output requires a gradient: nothing is saved, no backward")
            return
        for node in autograd_nodes.walk([one.grad_fn for one in roots if one.grad_fn]):
            path = self.path_of(node._sequence_nr()) or ""
            node.register_prehook(lambda _: self._count_flops())
            node.register_hook(lambda *_, path=path: self._count_backward(path))
        try:
            torch.autograd.backward(roots, [torch.ones_like(one) for one in roots])
        except Exception as error:
            raise ModelError(
                f"the backward fails: {type(error).__name__}: {error}",
                hint="look with torch.no_grad() around this call for the forward alone"
                if self.stage.fake is None
                else "a custom backward may need values: try real=True",
            ) from error

    def _count_backward(self, path: str) -> None:
        counted = int(self.counter.get_total_flops())
        self.backward[path] += counted - self._seen
        self._seen = counted


def _peak_inference(stage: _Stage) -> int:
    memory = Allocations([*stage.state.values(), *stage.inputs], lambda _: None)
    with stage() as call, torch.no_grad(), memory:
        call()
    return memory.peak


def _notes(run: _Run) -> list[str]:
    said = []
    counted = run.counter.get_flop_counts().get("Global", {})
    if run.stage.fake is not None and torch.ops.aten.mkldnn_rnn_layer in counted:
        said.append(
            "the recurrent layers run in oneDNN on this CPU; the workspace that each leaves to the "
            "backward is known only when it runs, and is missing here (real=True measures it)"
        )
    return said
