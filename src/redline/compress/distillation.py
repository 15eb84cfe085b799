"""Distillation: a student learns what a teacher thinks of every class.

Hinton et al., arXiv 1503.02531; features as in FitNets (Romero et al., arXiv 1412.6550).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from redline.compress.finetune import (
    Loss,
    MakeOptimizer,
    Metric,
    Training,
    batch_fits,
    call,
    finetune,
    place_of,
    some,
)
from redline.compress.modules import CompressedModule, copied, hooked, tensors, with_record
from redline.compress.scheme import Scheme
from redline.errors import InputError, ModelError

_SETTINGS = ("temperature", "alpha", "features", "beta")


def distill(
    student: nn.Module, teacher: nn.Module, loader: Any, epochs: int = 1, *,
    loss: Loss = functional.cross_entropy, scheme: Scheme | None = None, lr: float = 1e-3,
    optimizer: MakeOptimizer | None = None, evaluate: Metric | None = None,
) -> nn.Module:  # fmt: skip
    """A copy of the student, trained on the teacher's outputs and on the targets.

    The loss is alpha T² KL(teacher / T, student / T) + (1 - alpha) loss(student, target), with the
    outputs as logits (batch, classes, ...), and beta times the mean squared error of features.

    Args:
        student, teacher: both are left as they are; the teacher runs in eval mode.
        loader: batches (x, target); where alpha is 1, batches of x alone are enough.
        scheme: Scheme("distill", setting): "temperature" T (4), "alpha" (0.9), "features" pairs
            of layer names (student's, teacher's), "beta" (1).
        lr, optimizer, evaluate: see Training.

    Returns:
        The student in eval mode; what_was_done() says more.

    Raises:
        InputError: the loader, a setting, or two outputs that differ in shape.
        RunError: the loss is not finite.

    Example:
        >>> small = distill(network("resnet", data, width=8), big, loader, epochs=10)
        >>> engine = redline.optimize(small, x)
    """
    scheme = scheme or Scheme("distill")
    temperature, alpha, pairs, beta = _settings(scheme)
    how = Training(epochs, lr, optimizer, evaluate)
    own = copied(student)
    if not isinstance(teacher, nn.Module):
        raise ModelError(f"the teacher is a {type(teacher).__name__}, expected a torch module")
    inputs = some(loader, 1, place_of(own))[0]
    watched = [list(names) for names in zip(*pairs, strict=True)] or [[], []]
    with (
        _watching(own, watched[0]) as mine,
        _watching(teacher, watched[1]) as theirs,
        _asleep(teacher),
    ):
        _fit(own, teacher, inputs)
        bridges = nn.ModuleList(_bridge(mine[a], theirs[b], (a, b)) for a, b in pairs)
        both = _Both(own, bridges.to(place_of(own)))

        def step(model: nn.Module, inputs: tuple[Any, ...], target: Any) -> torch.Tensor:
            got = _logits(call(own, inputs))
            total = got.new_zeros(())
            if alpha > 0 or pairs:  # else the teacher is not asked
                with torch.no_grad():
                    wanted = _logits(call(teacher, inputs))
                total = alpha * soft_loss(got, wanted, temperature)
            if alpha < 1:
                if target is None:
                    raise InputError("alpha is below 1, and a batch has no target")
                total = total + (1 - alpha) * loss(got, target)
            for bridge, (a, b) in zip(bridges, pairs, strict=True):
                total = total + beta * functional.mse_loss(bridge(mine[a]), theirs[b])
            return total

        trained = finetune(both, loader, step, how)
    return with_record(own, CompressedModule(scheme, (), trained))


def soft_loss(got: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² KL(softmax(wanted / T), softmax(got / T)), the mean over the batch; classes on axis 1.

    T² keeps the gradient's size as T grows (Hinton et al., section 2).
    """
    log_got = functional.log_softmax(got / temperature, 1).movedim(1, -1).flatten(0, -2)
    log_wanted = functional.log_softmax(wanted / temperature, 1).movedim(1, -1).flatten(0, -2)
    kl = functional.kl_div(log_got, log_wanted, reduction="batchmean", log_target=True)
    return kl * temperature**2


class _Both(nn.Module):
    """The student, and the bridges from its features to the teacher's, trained with it."""

    def __init__(self, student: nn.Module, bridges: nn.Module) -> None:
        super().__init__()
        self.student, self.bridges = student, bridges

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.student(*args, **kwargs)


def _settings(scheme: Scheme) -> tuple[float, float, Sequence[tuple[str, str]], float]:
    for name in scheme.setting:
        if name not in _SETTINGS:
            raise InputError(
                f"distill has no setting {name!r}", hint=f"known: {', '.join(_SETTINGS)}"
            )
    temperature = float(scheme.setting.get("temperature", 4.0))
    alpha = float(scheme.setting.get("alpha", 0.9))
    beta = float(scheme.setting.get("beta", 1.0))
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature is {temperature}, expected more than 0")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}, expected 0 to 1")
    if not 0 <= beta < float("inf"):
        raise InputError(f"beta is {beta}, expected 0 or more")
    return temperature, alpha, tuple(scheme.setting.get("features", ())), beta


def _logits(output: Any) -> torch.Tensor:
    """The first tensor of an output: logits in most models, also in dicts with .logits."""
    found = next(tensors(output), None)
    if found is None:
        raise InputError(f"the model gives a {type(output).__name__}, expected a tensor of logits")
    return found


def _fit(student: nn.Module, teacher: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Run both once: their outputs must have one shape."""
    with torch.no_grad(), batch_fits("batch 0", inputs):
        student.eval()
        got, wanted = _logits(call(student, inputs)), _logits(call(teacher, inputs))
    if got.shape != wanted.shape or got.ndim < 2:
        raise InputError(
            f"the student gives {list(got.shape)}, the teacher {list(wanted.shape)}; expected "
            "logits (batch, classes, ...) of one shape"
        )


def _bridge(mine: torch.Tensor, theirs: torch.Tensor, names: tuple[str, str]) -> nn.Module:
    """From the student's features to as many channels as the teacher's: axis 1, or the last."""
    places = [y.shape[2:] if y.ndim == 4 else y.shape[:-1] for y in (mine, theirs)]
    if mine.ndim != theirs.ndim or places[0] != places[1]:
        raise InputError(
            f"features {names[0]!r} {list(mine.shape)} and {names[1]!r} {list(theirs.shape)} "
            "differ in more than their channels"
        )
    if mine.shape == theirs.shape:
        return nn.Identity()
    if mine.ndim == 4:
        return nn.Conv2d(mine.shape[1], theirs.shape[1], 1)
    return nn.Linear(mine.shape[-1], theirs.shape[-1])


@contextmanager
def _watching(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """What the named layers made in the last call."""
    known = dict(model.named_modules())
    missing = [name for name in names if name not in known]
    if missing:
        raise InputError(f"there is no layer {missing[0]!r}", hint="see model.named_modules()")
    made: dict[str, torch.Tensor] = {}

    def keep(name: str, value: torch.Tensor) -> None:
        made[name] = value

    handles = [
        known[name].register_forward_hook(lambda _, i, y, name=name: keep(name, y))
        for name in names
    ]
    with hooked(handles):
        yield made


@contextmanager
def _asleep(model: nn.Module) -> Iterator[None]:
    """In eval mode for a while; every part gets its own mode back."""
    awake = [part for part in model.modules() if part.training]
    for part in awake:
        part.training = False
    try:
        yield
    finally:
        for part in awake:
            part.training = True
