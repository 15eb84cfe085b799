"""Losses, optimizers, schedules and transforms by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from redline.errors import InputError, UnknownNameError
from redline.train.data import Data
from redline.train.recipe import Recipe

Transform = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def _cross_entropy(output: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
    if output.ndim > 2 and output.shape[:-1] == target.shape:  # (batch, time, classes)
        output, target = output.flatten(0, -2), target.flatten()
    return functional.cross_entropy(output, target, label_smoothing=smoothing)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "cross_entropy": _cross_entropy,
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
    "bce": functional.binary_cross_entropy_with_logits,
    "nll": functional.nll_loss,
}
OPTIMIZERS: dict[str, tuple[Any, float, dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, 3e-3, {}),
    "adam": (torch.optim.Adam, 3e-3, {}),
    "sgd": (torch.optim.SGD, 0.1, {"momentum": 0.9, "nesterov": True}),
    "rmsprop": (torch.optim.RMSprop, 1e-3, {}),
}
SCHEDULES = ("onecycle", "cosine", "linear", "step", "plateau", "constant")


def loss(recipe: Recipe, kind: str) -> Callable[[Any, Any], torch.Tensor]:
    """The loss that a recipe names.

    Raises:
        UnknownNameError: there is no such loss.
        InputError: "auto", and the data does not tell.
    """
    name = recipe.loss
    if not isinstance(name, str):
        return name
    if name == "auto":
        by_kind = {"classes": "cross_entropy", "tokens": "cross_entropy", "values": "mse"}
        if kind not in by_kind:
            raise InputError("the data does not tell which loss fits", hint="give loss=...")
        name = by_kind[kind]
    if name not in LOSSES:
        raise UnknownNameError("loss", name, LOSSES)
    if name == "cross_entropy":
        return lambda output, target: _cross_entropy(output, target, recipe.label_smoothing)
    return LOSSES[name]


def optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a recipe names; weight decay is for matrices and kernels only.

    Raises:
        UnknownNameError: there is no such optimizer.
        InputError: the model has nothing to train.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError("the model has no parameter that requires a gradient")
    if not isinstance(recipe.optimizer, str):
        options = {"lr": recipe.lr} if recipe.lr else {}
        return recipe.optimizer(trained, weight_decay=recipe.weight_decay, **options)
    if recipe.optimizer not in OPTIMIZERS:
        raise UnknownNameError("optimizer", recipe.optimizer, OPTIMIZERS)
    make, lr, options = OPTIMIZERS[recipe.optimizer]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # One kernel for a tensor in the place of ten calls; what torch takes is a loop on a cpu.
    fused = recipe.optimizer != "rmsprop" and all(map(_plain_floats, trained))
    made: torch.optim.Optimizer = make(
        [group for group in groups if group["params"]],
        lr=recipe.lr or lr, **options, **({"fused": True} if fused else {}),
    )  # fmt: skip
    return made


def _plain_floats(p: torch.Tensor) -> bool:
    """Whether the fused kernels take it; shards go the way of torch's own choice."""
    whole = type(p.data) is torch.Tensor
    return whole and p.is_floating_point() and p.device.type in ("cpu", "cuda")


class Factors:
    """base learning rate * factor(steps): what torch's LambdaLR does, without its bookkeeping.

    Example:
        >>> schedule = Factors(optimizer, lambda step: 0.9**step)
        >>> schedule.step()
    """

    def __init__(self, made: torch.optim.Optimizer, factor: Callable[[int], float]) -> None:
        self.optimizer, self.factor, self.steps = made, factor, 0
        self.base = [group["lr"] for group in made.param_groups]
        self._set()

    def step(self) -> None:
        """After every optimizer step."""
        self.steps += 1
        self._set()

    def _set(self) -> None:
        now = self.factor(self.steps)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * now

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.steps, "base_lrs": list(self.base)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Also what a LambdaLR wrote. The optimizer's own state has the learning rates."""
        self.steps, self.base = state["last_epoch"], list(state["base_lrs"])


def schedule(recipe: Recipe, made: torch.optim.Optimizer, total: int) -> Any:
    """The schedule that a recipe names, over `total` optimizer steps (0: unknown).

    Raises:
        UnknownNameError: there is no such schedule.
        InputError: it needs the number of steps, and nobody knows it.
    """
    if not isinstance(recipe.schedule, str):
        return recipe.schedule(made, total)
    if recipe.schedule not in SCHEDULES:
        raise UnknownNameError("schedule", recipe.schedule, SCHEDULES)
    if recipe.schedule == "plateau":
        return lr_scheduler.ReduceLROnPlateau(made, patience=3, factor=0.3)
    if not total and recipe.schedule != "constant":
        raise InputError(
            f"schedule {recipe.schedule!r} needs the number of steps, and the data has no length",
            hint="give max_steps, or schedule='constant'",
        )
    if recipe.schedule == "constant":
        return Factors(made, lambda step: 1.0)
    warm = round(recipe.warmup * total) if recipe.schedule != "step" else 0

    def factor(step: int) -> float:
        if step < warm:
            return 0.04 + 0.96 * step / warm
        done = min(1.0, (step - warm) / max(1, total - warm))
        if recipe.schedule == "step":
            return 0.1 ** sum(done >= mark for mark in (0.5, 0.75, 0.9))
        if recipe.schedule == "linear":
            return max(1e-3, 1 - done)
        least = 0.0 if recipe.schedule == "onecycle" else 0.1
        return max(1e-4, least + (1 - least) * 0.5 * (1 + math.cos(math.pi * done)))

    return Factors(made, factor)


def _number(text: str, least: float) -> tuple[str, float]:
    name, _, number = text.partition(":")
    try:
        return name, float(number) if number else least
    except ValueError:
        raise InputError(f"{text!r}: {number!r} is not a number") from None


def features(names: Sequence[Any], data: Data) -> list[Callable[[Any], Any]]:
    """What is done to inputs: standardize, scale, flatten, float, or functions.

    Without names, tensors that are not tokens are standardized by the training set.

    Raises:
        UnknownNameError: there is no such transform.
        InputError: standardize without known moments.
    """
    if not names and data.mean and data.kind != "tokens":
        names = ("standardize",)
    shape = (1, -1, *[1] * (len(data.shape) - 1))
    mean, std = torch.tensor(data.mean).view(shape), torch.tensor(data.std).view(shape)
    known: dict[str, Callable[[Any], Any]] = {
        "standardize": lambda x: x.float().sub_(mean.to(x.device)).div_(std.to(x.device))
        if x.dtype == torch.uint8 else (x.float() - mean.to(x.device)) / std.to(x.device),
        "scale": lambda x: x.float() / 255,
        "flatten": lambda x: x.flatten(1),
        "float": lambda x: x.float(),
    }  # fmt: skip
    if "standardize" in names and not data.mean:
        raise InputError(f"mean and deviation of {data.name!r} are not known", hint="use scale")
    return [_pick("transform", name, known) for name in names]


def labels(names: Sequence[Any], data: Data) -> list[Callable[[Any], Any]]:
    """What is done to targets: one_hot, float, long, or functions.

    Raises:
        UnknownNameError: there is no such transform.
    """
    known: dict[str, Callable[[Any], Any]] = {
        "one_hot": lambda y: functional.one_hot(y, data.classes).float(),
        "float": lambda y: y.float(),
        "long": lambda y: y.long(),
    }
    return [_pick("transform of labels", name, known) for name in names]


def _pick(kind: str, name: Any, known: dict[str, Any]) -> Any:
    if not isinstance(name, str):
        return name
    if name not in known:
        raise UnknownNameError(kind, name, known)
    return known[name]


def augmentations(names: Sequence[Any]) -> list[Transform]:
    """What is done to training inputs: flip, crop:4, cutout:8, noise:0.1, or f(x, generator).

    Raises:
        UnknownNameError: there is no such augmentation.
    """
    known: dict[str, Callable[[float], Transform]] = {
        "flip": lambda _: _flip, "crop": _crop, "cutout": _cutout, "noise": _noise,
    }  # fmt: skip
    found = []
    for name in names:
        if not isinstance(name, str):
            found.append(name)
            continue
        word, number = _number(name, 4)
        found.append(_pick("augmentation", word, known)(number))
    return found


def _flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the images left to right."""
    turned = torch.rand(len(x), generator=generator).to(x.device) < 0.5
    return torch.where(turned.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x)


def _crop(pad: float) -> Transform:
    """Each image shifted by up to `pad` pixels, zeros where it came from."""
    p = int(pad)

    def crop(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        n, _, h, w = x.shape
        wide = functional.pad(x, (p, p, p, p)).permute(0, 2, 3, 1)
        dy, dx = torch.randint(0, 2 * p + 1, (2, n, 1), generator=generator).to(x.device)
        rows = (dy + torch.arange(h, device=x.device))[:, :, None]
        columns = (dx + torch.arange(w, device=x.device))[:, None, :]
        each = torch.arange(n, device=x.device)[:, None, None]
        return wide[each, rows, columns].permute(0, 3, 1, 2)

    return crop


def _cutout(size: float) -> Transform:
    """A square of zeros in each image."""

    def cutout(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        h, w = x.shape[-2:]
        y0, x0 = (torch.randint(0, n, (len(x), 1), generator=generator) for n in (h, w))
        rows = (torch.arange(h) - y0).abs() < size / 2
        columns = (torch.arange(w) - x0).abs() < size / 2
        hole = (rows[:, :, None] & columns[:, None, :])[:, None].to(x.device)
        return x.masked_fill(hole, 0)

    return cutout


def _noise(amount: float) -> Transform:
    def noise(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return x + amount * torch.randn(x.shape, generator=generator).to(x)

    return noise
