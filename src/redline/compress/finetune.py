"""The loop behind every method that trains: plain torch, on a copy, and the best epoch is kept.

`train` is above this package, so its loop cannot be used here; what a method makes of a model can
be trained by it instead, see prepare_qat().
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from redline.errors import InputError, RunError

Loss = Callable[[Any, Any], torch.Tensor]
# model, inputs, target -> loss
Step = Callable[[nn.Module, tuple[Any, ...], Any], torch.Tensor]
Metric = Callable[[nn.Module], float]  # higher is better
MakeOptimizer = Callable[[Any], torch.optim.Optimizer]
# What a forward raises when a batch does not fit the model.
_UNFIT = (RuntimeError, ValueError, TypeError, IndexError)


@dataclass(frozen=True)
class Training:
    """How a method trains.

    Attributes:
        epochs: passes over the loader; 0 trains nothing.
        lr: of Adam, where no optimizer is given; it falls to zero along half a cosine.
        optimizer: makes one from parameters; its learning rates fall in the same way.
        evaluate: a metric of the model, higher is better: the best epoch is kept, the state before
            training among them. Without it the last one is.
    """

    epochs: int = 1
    lr: float = 1e-3
    optimizer: MakeOptimizer | None = None
    evaluate: Metric | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.epochs, int) or self.epochs < 0:
            raise InputError(f"epochs is {self.epochs!r}, expected a whole number, 0 or more")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr is {self.lr!r}, expected more than 0")


@dataclass(frozen=True)
class Epoch:
    """One pass: its number from 1 (0 is before training), mean loss, score by `evaluate`."""

    number: int
    loss: float
    score: float | None = None


@dataclass(frozen=True)
class Trained:
    """What became of a training; the model holds its best state."""

    history: tuple[Epoch, ...]
    kept: int  # the epoch whose weights the model has; the last one may be a part of an epoch
    interrupted: bool = False  # by Ctrl-C


def finetune(model: nn.Module, loader: Any, step: Step, how: Training) -> Trained:
    """Train a model in place; Ctrl-C ends it with the best so far.

    Args:
        loader: a DataLoader or any iterable that can be run more than once, of (x, target),
            (x1, x2, ..., target), or ({"name": x, ...}, target).
        step: (model, inputs, target) -> loss.

    Raises:
        InputError: the loader is empty, runs only once, or a batch does not fit the model.
        RunError: a loss is not finite. The model is in the middle of training then: give a copy.

    Example:
        >>> finetune(model, loader, supervised(loss), Training(epochs=2)).kept
        2
    """
    check_loader(loader, how.epochs)
    weights = [each for each in model.parameters() if each.requires_grad]
    if how.epochs and not weights:
        raise InputError("the model has no parameter that is trained")
    optimizer = how.optimizer(weights) if how.optimizer else torch.optim.Adam(weights, lr=how.lr)
    highest = [group["lr"] for group in optimizer.param_groups]
    best = _Best(model, how.evaluate)
    interrupted = False
    try:
        best.look(0, math.nan)
        for number in range(1, how.epochs + 1):

            def paced(done: float, number: int = number) -> None:
                pace = 0.5 * (1 + math.cos(math.pi * (number - 1 + done) / how.epochs))
                for group, lr in zip(optimizer.param_groups, highest, strict=True):
                    group["lr"] = lr * max(pace, 1e-3)

            best.look(number, _epoch(model, loader, step, optimizer, paced, f"epoch {number}"))
    except KeyboardInterrupt:
        interrupted = True
    return best.settle(interrupted)


class _Best:
    """The best state so far, if there is a metric that says what is better."""

    def __init__(self, model: nn.Module, evaluate: Metric | None) -> None:
        self.model, self.evaluate = model, evaluate
        self.history: list[Epoch] = []
        self.state: dict[str, torch.Tensor] | None = None
        self.top, self.kept = -math.inf, 0

    def look(self, number: int, loss: float) -> None:
        score = None
        if self.evaluate is not None:
            score = scored(self.evaluate, self.model)
            if score > self.top or self.state is None:
                self.top, self.kept = score, number
                self.state = {
                    name: value.detach().clone() for name, value in self.model.state_dict().items()
                }
        else:
            self.kept = number
        self.history.append(Epoch(number, loss, score))

    def settle(self, interrupted: bool) -> Trained:
        if self.state is not None:
            self.model.load_state_dict(self.state)
        self.model.eval()
        return Trained(tuple(self.history), self.kept, interrupted)


def scored(evaluate: Metric, model: nn.Module) -> float:
    """The caller's metric of a model in eval mode.

    Raises:
        InputError: it raises, or gives no finite number.
    """
    model.eval()
    try:
        with torch.no_grad():
            value = float(evaluate(model))
    except Exception as error:  # the caller's code
        raise InputError(f"evaluate raised {type(error).__name__}: {error}") from error
    if not math.isfinite(value):
        raise InputError(f"evaluate gave {value}, expected a finite number, higher is better")
    return value


def supervised(loss: Loss) -> Step:
    """The usual step: loss(model(x), target)."""

    def step(model: nn.Module, inputs: tuple[Any, ...], target: Any) -> torch.Tensor:
        if target is None:
            raise InputError("a batch has no target, and the loss needs one")
        return loss(call(model, inputs), target)

    return step


def call(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """model(x), model(x1, x2), or model(name=x)."""
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return model(**inputs[0])
    return model(*inputs)


def check_loader(loader: Any, epochs: int) -> None:
    """Raises InputError for what is no loader, is empty, or runs out before the last epoch."""
    if not isinstance(loader, Iterable) or isinstance(loader, str | bytes | Mapping):
        raise InputError(
            f"the loader is a {type(loader).__name__}, expected an iterable of (x, target)",
            hint="give a DataLoader, or a list of batches",
        )
    if isinstance(loader, Sized) and not len(loader):
        raise InputError("the loader gives no batch", hint="check the dataset's length")
    if isinstance(loader, Iterator):
        raise InputError(
            f"the loader is a {type(loader).__name__}, which can be run only once",
            hint="give a DataLoader or a list: it is run for the ranges and for every epoch",
        )


def some(loader: Any, count: int, device: torch.device) -> list[tuple[Any, ...]]:
    """The inputs of the first batches of a loader, on a device.

    Raises:
        InputError: it gives none.
    """
    check_loader(loader, 1)
    found = []
    for batch in loader:
        found.append(split(to_device(batch, device))[0])
        if len(found) == count:
            break
    if not found:
        raise InputError("the loader gives no batch", hint="check the dataset's length")
    return found


def split(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """(inputs, target) of a batch; what is no tuple is one input without a target."""
    if isinstance(batch, list | tuple):
        if not batch:
            raise InputError("a batch is empty, expected (x, target)")
        return (tuple(batch[:-1]), batch[-1]) if len(batch) > 1 else ((batch[0],), None)
    return (batch,), None


def to_device(value: Any, device: torch.device) -> Any:
    """The tensors of a nest of tuples, lists and dicts on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: to_device(each, device) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return tuple(to_device(each, device) for each in value)
    return value


def place_of(model: nn.Module) -> torch.device:
    """The device of a model."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def batch_fits(where: str, batch: Any) -> Iterator[None]:
    """What a model raises on a batch, as an InputError that names the batch and its shapes."""
    try:
        yield
    except (InputError, RunError):
        raise
    except _UNFIT as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"a batch does not fit: {text}",
            where=f"{where}: {_shapes(batch)}",
            hint="the loader gives (x, target), as loss(model(x), target) takes them",
        ) from error


def _shapes(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_shapes(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_shapes, value)) + ")"
    return type(value).__name__


def _epoch(
    model: nn.Module, loader: Any, step: Step, optimizer: torch.optim.Optimizer,
    paced: Callable[[float], None], where: str,
) -> float:  # fmt: skip
    """One pass over the loader; the mean loss of its batches."""
    model.train()
    device = place_of(model)
    length = len(loader) if isinstance(loader, Sized) else 0
    total, count = 0.0, 0
    for raw in loader:
        batch = to_device(raw, device)
        place = f"{where}, batch {count}"
        with batch_fits(place, batch):
            loss = step(model, *split(batch))
        value = _value(loss, place)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        paced(min(1.0, count / length) if length else 0.0)
        optimizer.step()
        total, count = total + value, count + 1
    if not count:
        raise InputError("the loader gives no batch", hint="check the dataset's length")
    return total / count


def _value(loss: Any, place: str) -> float:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        got = _shapes(loss)
        raise InputError(
            f"the loss gave {got}, expected one number that depends on the model", where=place
        )
    value = float(loss.detach())
    if not math.isfinite(value):
        raise RunError(
            f"the loss is {value}", where=place, hint="give a smaller lr, and check the targets"
        )
    return value
