"""`watch()`: follow one forward, so that the views of its gradients are exact."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from redline.errors import InputError
from redline.views import autograd_nodes
from redline.views.calls import Call, Calls, user_line
from redline.views.storage import key, spell, tensors

_DETACH = {"detach", "detach_", "data"}
_RELUS = {"relu", "relu_", "relu6"}


@dataclass(frozen=True)
class Cut:
    """Where gradients stop: kind is "detach" or "no_grad".

    tensor: the first tensor that came out, as "2x8 float32". parameters: ids of the parameters
    whose gradients would have passed here. times: how often the line was met.
    """

    kind: str
    path: str
    where: str
    tensor: str
    parameters: frozenset[int]
    times: int = 1


@dataclass(frozen=True)
class Use:
    """Where a parameter went into an operator; grad is whether gradients were recorded there."""

    where: str
    grad: bool


@dataclass(frozen=True)
class Relu:
    """The units of a ReLU: dead has the numbers of those that gave zero for every sample."""

    path: str
    units: int
    dead: tuple[int, ...]


class Watch:
    """What happened to a model's tensors inside a `with` block; give it to the views.

    Operators run a little slower inside: this is to look, not to train with. It may be entered
    again; what it saw before is then forgotten.

    Example:
        >>> with redline.watch(model) as watch:
        ...     loss = criterion(model(x), y)
        >>> print(redline.autograd_view(loss, watch))
        >>> loss.backward()
        >>> print(redline.grad_report(watch))
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.modules = _Modules(model)
        self.names = {id(one): name for name, one in model.named_parameters()}
        self.uses: dict[int, list[Use]] = {}
        self._cuts: dict[tuple[str, str, str], Cut] = {}
        self._alive: dict[tuple[str, int], torch.Tensor] = {}
        self._mode = _Functions(self)

    def __enter__(self) -> Watch:
        self.modules.__enter__()
        self.modules.calls.clear()
        self.modules.inputs.clear()
        self.uses.clear()
        self._cuts.clear()
        self._alive.clear()
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)  # type: ignore[no-untyped-call]
        self.modules.__exit__(*error)

    @property
    def calls(self) -> tuple[Call, ...]:
        """Every call of a module, in the order of their beginnings."""
        return tuple(self.modules.calls)

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Where gradients stop, in the order in which they were met."""
        return tuple(self._cuts.values())

    @property
    def relus(self) -> tuple[Relu, ...]:
        """The ReLUs that had at least two units, modules and functions alike."""
        return tuple(
            Relu(path, units, tuple((~alive).nonzero().flatten().tolist()))
            for (path, units), alive in self._alive.items()
        )

    def saw(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """A function of torch was called; the mode below tells."""
        taken = tensors((args, kwargs))
        made = tensors(result)
        if not made:
            return
        recorded = torch.is_grad_enabled()
        if name in _DETACH:
            if taken and taken[0].requires_grad:
                self._cut("detach", taken[:1], taken[0])
            return
        for one in taken:
            if id(one) in self.names:
                self._used(id(one), recorded)
        if not recorded and any(one.requires_grad for one in taken):
            stopped = [one for one in made if one.is_floating_point() and not one.requires_grad]
            if stopped:
                self._cut("no_grad", taken, stopped[0])
        if name in _RELUS:
            self._count_dead(made[0])

    def _used(self, identity: int, recorded: bool) -> None:
        """The first use with gradients and the first without say where to look."""
        uses = self.uses.setdefault(identity, [])
        if all(use.grad != recorded for use in uses):
            uses.append(Use(user_line(), recorded))

    def _cut(self, kind: str, taken: Iterable[torch.Tensor], shown: torch.Tensor) -> None:
        """One line that is met again, or a whole module run under no_grad, is one cut."""
        call = self.modules.now
        path, where = call.path if call else "", user_line()
        while kind == "no_grad" and call is not None and not call.grad:
            path, where, call = call.path, call.where, call.parent
        reached = frozenset(_parameters(taken))
        before = self._cuts.get((kind, path, where))
        tensor, times = (before.tensor, before.times + 1) if before else (spell(shown), 1)
        known = before.parameters if before else frozenset()
        self._cuts[kind, path, where] = Cut(kind, path, where, tensor, known | reached, times)

    def _count_dead(self, tensor: torch.Tensor) -> None:
        """Units are channels for images and their like, else the last axis."""
        if tensor.dim() < 2:
            return
        axis = 1 if tensor.dim() > 3 else tensor.dim() - 1
        path = self.modules.now.path if self.modules.now else ""
        rest = [other for other in range(tensor.dim()) if other != axis]
        alive = (tensor.detach() != 0).any(dim=rest) if rest else tensor.detach() != 0
        known = self._alive.get((path, tensor.shape[axis]))
        self._alive[path, tensor.shape[axis]] = alive if known is None else known | alive


def watch(model: torch.nn.Module) -> Watch:
    """Follow a model inside a `with` block: its calls, detached and no_grad parts, dead ReLUs.

    Raises:
        ModelError: not an nn.Module, or one that takes no hooks (TorchScript).

    Example:
        >>> with redline.watch(model) as watch:
        ...     loss = criterion(model(x), y)
    """
    return Watch(model)


def as_watch(of: object) -> tuple[torch.nn.Module | None, Watch | None]:
    """(model, watch) from what a view was given.

    Raises:
        InputError: neither a model, a Watch nor None.
    """
    if isinstance(of, Watch):
        return of.model, of
    if of is None or isinstance(of, torch.nn.Module):
        return of, None
    raise InputError(
        f"got a {type(of).__qualname__}, expected a torch.nn.Module or what watch() gave",
        hint="with redline.watch(model) as watch: loss = ...",
    )


class _Modules(Calls):
    """Also remembers the memory of the model's own inputs, so that they are told apart."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(model)
        self.inputs: dict[int, torch.Tensor] = {}

    def took(self, call: Call, given: Sequence[torch.Tensor]) -> None:
        if call.path == "":
            self.inputs.update({key(one)[0]: one for one in given})


class _Functions(TorchFunctionMode):
    """Tells a watch of every function of torch."""

    def __init__(self, told: Watch) -> None:
        super().__init__()
        self.told = told

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "__get__":  # of a property, such as .data, .grad or .T
            name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name != "data":
                return result
        self.told.saw(name, args, kwargs or {}, result)
        return result


def _parameters(given: Iterable[torch.Tensor]) -> set[int]:
    """The ids of the leaves that tensors were computed from."""
    needed = [one for one in given if one.requires_grad]
    nodes = autograd_nodes.walk(one.grad_fn for one in needed if one.grad_fn is not None)
    reached = {id(node.variable) for node in nodes if autograd_nodes.is_leaf(node)}
    return reached | {id(one) for one in needed if one.grad_fn is None}
