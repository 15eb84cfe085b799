"""The recipe: everything about a training that may be chosen, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from redline.errors import InputError, UnknownNameError

Loss = Callable[[Any, Any], torch.Tensor]
# (model, batch) -> (loss, output, target); for models that the usual call does not fit.
Step = Callable[[Any, Any], tuple[torch.Tensor, Any, Any]]

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Recipe:
    """How to train. Every field has a default that works; names are looked up, objects are used.

    Attributes:
        epochs: passes over the training data.
        max_steps: optimizer steps after which training ends; 0 for no such limit.
        max_time: seconds after which training ends, this run only; 0 for no such limit.
        batch_size: samples of one forward, in each process.
        accumulate: forwards whose gradients are added up for one optimizer step.
        optimizer: adamw, adam, sgd (with Nesterov momentum 0.9), rmsprop, or a function that makes
            one: optimizer(parameters, lr=..., weight_decay=...).
        lr: the highest learning rate; 0 takes the default of the optimizer.
        weight_decay: decoupled for adamw; never on biases, norms and embeddings' scalars.
        schedule: onecycle, cosine, linear, step, plateau, constant, or a function that makes one:
            schedule(optimizer, total_steps), stepped after every optimizer step.
        warmup: part of all steps in which the learning rate rises.
        clip: limit of the gradient's norm; 0 for none.
        loss: auto (by the data), cross_entropy, mse, l1, huber, bce, nll, or loss(output, target).
        label_smoothing: of cross_entropy.
        metrics: names or Metric objects; () takes those that fit the data.
        monitor: the metric that early stopping, the best checkpoint and trials look at; "" takes
            the first of metrics.
        early_stop: epochs without a better monitor after which training ends with the best
            weights; 0 for never.
        features: what is done to the inputs of every batch: names such as standardize, scale,
            flatten, or functions of a tensor.
        labels: the same for targets.
        augment: what is done to the inputs of training batches only: flip, crop:4, cutout:4,
            noise:0.1, or functions (x, generator) -> x.
        step: (model, batch) -> (loss, output, target) instead of loss(model(x), y).
        device: auto (cuda, mps, cpu, in this order), or one of them.
        precision: fp32, bf16 or fp16 (with a gradient scaler; not on cpu).
        channels_last: weights and images in channels_last memory format.
        compile: run the model through torch.compile.
        shard: with several processes, each holds a part of the weights, gradients and moments
            (FSDP) instead of all (DDP); `accelerate launch --use_fsdp` asks for it, too.
        split: part of the data that is held out when there is no test set.
        shuffle: a new seeded order every epoch.
        workers: processes that load data; 0 loads in this one.
        seed: of weights made here, of the split, of every order and of every augmentation.
        deterministic: refuse operators that are not; slower on cuda.
        checkpoint_every: optimizer steps between checkpoints inside an epoch; 0 for epochs only.
        keep: how many of the last checkpoints stay, besides the best.

    Example:
        >>> Recipe(epochs=3).changed(lr=1e-3).lr
        0.001
    """

    epochs: int = 10
    max_steps: int = 0
    max_time: float = 0.0
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str | Callable[..., torch.optim.Optimizer] = "adamw"
    lr: float = 0.0
    weight_decay: float = 0.01
    schedule: str | Callable[..., Any] = "onecycle"
    warmup: float = 0.2
    clip: float = 0.0
    loss: str | Loss = "auto"
    label_smoothing: float = 0.0
    metrics: Sequence[Any] = ()
    monitor: str = ""
    early_stop: int = 0
    features: Sequence[str | Callable[..., Any]] = ()
    labels: Sequence[str | Callable[..., Any]] = ()
    augment: Sequence[str | Callable[..., Any]] = ()
    step: Step | None = field(default=None, repr=False)
    device: str = "auto"
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    shard: bool = False
    split: float = 0.2
    shuffle: bool = True
    workers: int = 0
    seed: int = 0
    deterministic: bool = False
    checkpoint_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("metrics", "features", "labels", "augment"):
            given = getattr(self, name)
            one = isinstance(given, str) or not isinstance(given, Sequence)
            object.__setattr__(self, name, (given,) if one else tuple(given))
        for name in ("epochs", "batch_size", "accumulate", "keep"):
            _at_least(name, getattr(self, name), 1)
        for name in ("max_steps", "early_stop", "workers", "checkpoint_every"):
            _at_least(name, getattr(self, name), 0)
        for name in ("max_time", "lr", "weight_decay", "clip"):
            if not 0 <= float(getattr(self, name)) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)!r}, expected 0 or more")
        for name in ("warmup", "label_smoothing", "split"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected 0 <= {name} < 1")
        _known_device(self.device)
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)

    def changed(self, **choices: Any) -> Recipe:
        """The same with other choices.

        Raises:
            UnknownNameError: there is no such choice; says "did you mean".
            InputError: a value out of its range.
        """
        known = [each.name for each in dataclasses.fields(self)]
        for name in choices:
            if name not in known:
                raise UnknownNameError("choice of a recipe", name, known)
        return dataclasses.replace(self, **choices)

    def plain(self) -> Mapping[str, Any]:
        """As JSON can hold it: functions and objects by their names."""
        return {each.name: _plain(getattr(self, each.name)) for each in dataclasses.fields(self)}


def _at_least(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}, expected a whole number of at least {least}")


def _known_device(device: str) -> None:
    if device.startswith("cuda:"):
        raise InputError(
            f"device is {device!r}: each process takes the first GPU that it sees",
            hint=f"device='cuda', and CUDA_VISIBLE_DEVICES={device[5:]}",
        )
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    name = getattr(value, "name", None) or getattr(value, "__qualname__", type(value).__qualname__)
    return f"<{name}>"
