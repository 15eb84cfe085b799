"""Which module is running, and which nodes of the autograd graph were made while it ran."""

from __future__ import annotations

import bisect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from redline.errors import InputError, ModelError
from redline.views.storage import spell, tensors

_OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


@dataclass
class Call:
    """One call of a module's forward.

    `first` and `last` bound the sequence numbers of the autograd nodes made meanwhile, `last` not
    included; `grad` is whether gradients were recorded when it began.
    """

    path: str
    parent: Call | None
    first: int
    last: int
    grad: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    where: str = ""
    flops: int = 0
    made: int = 0
    saved: int = 0


class Calls:
    """Follows a model's modules by hooks, for as long as it is entered.

    A module that stands in the model under two names is known by its first.

    Raises:
        ModelError: not an nn.Module, or one that takes no hooks (TorchScript).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        check_module(model)
        self.model = model
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Calls:
        if self._hooks:
            raise InputError("it is watching already", hint="enter it once at a time")
        for path, module in self.model.named_modules():
            self._hooks.append(
                module.register_forward_pre_hook(
                    self._entering(path), prepend=True, with_kwargs=True
                )
            )
            self._hooks.append(
                module.register_forward_hook(self._leave, with_kwargs=True, always_call=True)
            )
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()
        self.stack.clear()

    @property
    def now(self) -> Call | None:
        """The innermost call that is running."""
        return self.stack[-1] if self.stack else None

    def entered(self, call: Call) -> None:
        """For those who derive: a call begins."""

    def took(self, call: Call, given: Sequence[torch.Tensor]) -> None:
        """For those who derive: the tensors that a call was given."""

    def left(self, call: Call) -> None:
        """For those who derive: a call ends, by returning or by an exception."""

    def path_of(self, sequence: int) -> str | None:
        """The path of the innermost module that was running when a node was made, if any was."""
        index = bisect.bisect_right(self.calls, sequence, key=lambda call: call.first) - 1
        call = self.calls[index] if index >= 0 else None
        while call is not None and call.last <= sequence:
            call = call.parent
        return None if call is None else call.path

    def _entering(self, path: str) -> Any:
        def enter(_: torch.nn.Module, args: Any, kwargs: Any) -> None:
            given = tensors((args, kwargs))
            shapes = tuple(map(spell, given))
            number = sequence_number()
            grad = torch.is_grad_enabled()
            call = Call(path, self.now, number, sys.maxsize, grad, shapes, where=user_line())
            self.calls.append(call)
            self.stack.append(call)
            self.took(call, given)
            self.entered(call)

        return enter

    def _leave(self, _module: torch.nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        call = self.stack.pop()
        call.last = sequence_number()
        call.outputs = tuple(spell(tensor) for tensor in tensors(output))
        self.left(call)


def check_module(model: object) -> None:
    """Refuse what has no modules to look at.

    Raises:
        ModelError: not an nn.Module, or a TorchScript or exported one.
    """
    if not isinstance(model, torch.nn.Module):
        raise ModelError(
            f"got a {type(model).__qualname__}, expected a torch.nn.Module",
            hint="give the module itself, not its path, its state_dict or an engine",
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "a TorchScript module takes no hooks, so nothing can be seen inside it",
            hint="give the nn.Module that it was scripted or traced from",
        )


def sequence_number() -> int:
    """The number that the next autograd node of this thread gets."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number


def user_line() -> str:
    """file:line of the innermost frame that is neither torch's nor ours; relative where it can."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith((*_OURS, "<")):
        frame = frame.f_back
    return f"{_short(frame.f_code.co_filename)}:{frame.f_lineno}"


def _short(name: str) -> str:
    path = Path(name)
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    parts = path.parts
    if "site-packages" in parts:
        return "/".join(parts[parts.index("site-packages") + 1 :])
    return path.name


def common(paths: Sequence[str]) -> str:
    """The deepest module that holds all of some paths.

    Example:
        >>> common(["layer1.0.conv1", "layer1.0.bn1"]), common(["a.b", "c"])
        ('layer1.0', '')
    """
    split = [path.split(".") if path else [] for path in paths]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
