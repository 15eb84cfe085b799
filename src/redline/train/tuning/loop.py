"""A training loop by its parts, and copies of it that may be trained without touching it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

from redline.errors import InputError, ModelError
from redline.train.tuning.setup import Setup

Compute = Callable[[Any, Any], torch.Tensor]
_PARTS = "model, optimizer, loss and loader"


@dataclass(frozen=True)
class Loop:
    """What a training loop is made of, and the habits of the loop itself.

    Args:
        model, optimizer: as they are when the loop begins; both are copied, never changed.
        loss: loss(output, target), for batches (input, ..., target). None where the model returns
            its own loss (an output with .loss) or where `compute` is given.
        loader: a DataLoader, or any other iterable of batches that can be iterated again.
        compute: compute(model, batch) -> scalar loss, for anything that is not loss(model(x), y).
            It must use the model it is given, not one from around it.
        log: log(step, loss), what the loop does with a loss: print, a writer, `.item()`.
        log_every: steps from one call of `log` to the next.
        set_to_none: what the loop passes to zero_grad().
        clip: the norm of clip_grad_norm_, if the loop clips.
        accumulate: backward passes for one step of the optimizer.
        autocast: dtype of the autocast that the loop already uses, "" for none.
        non_blocking: the loop copies batches with non_blocking=True.
        epochs: how often the data will be seen; decides whether compiling pays.
        source: the file that holds the loop; its lines are named in the advice.

    Example:
        >>> Loop(model, torch.optim.Adam(model.parameters()), nn.MSELoss(), loader)
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[..., torch.Tensor] | None
    loader: Iterable[Any]
    compute: Compute | None = None
    log: Callable[[int, torch.Tensor], object] | None = None
    log_every: int = 1
    set_to_none: bool = True
    clip: float | None = None
    accumulate: int = 1
    autocast: str = ""
    non_blocking: bool = False
    epochs: int = 10
    source: str | None = None

    def __post_init__(self) -> None:
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        if not isinstance(parts["model"], nn.Module):
            raise ModelError(f"model is a {type(self.model).__name__}, expected an nn.Module")
        if not isinstance(parts["optimizer"], torch.optim.Optimizer):
            kind = type(self.optimizer).__name__
            raise InputError(f"optimizer is a {kind}, expected a torch.optim.Optimizer")
        loader: Any = self.loader
        if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
            raise InputError(
                f"loader is a {type(self.loader).__name__}, which cannot be iterated twice",
                hint="give the DataLoader, not iter(loader)",
            )
        for name in ("log_every", "accumulate", "epochs"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected 1 or more")
        if self.autocast not in ("", "bfloat16", "float16"):
            raise InputError(
                f"autocast is {self.autocast!r}", hint='give "", "bfloat16" or "float16"'
            )
        mine = {id(one) for one in self.model.parameters()}
        theirs = [one for group in self.optimizer.param_groups for one in group["params"]]
        if not any(id(one) in mine for one in theirs):
            raise InputError(
                "the optimizer holds none of the model's parameters",
                hint="make it from model.parameters(), after the model is on its device",
            )

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def as_loop(found: Any) -> Loop:
    """A Loop from what a factory returned: a Loop, a dict of its fields, or the four parts.

    Raises:
        InputError: none of these, or a field that is missing or unknown.

    Example:
        >>> as_loop({"model": model, "optimizer": optimizer, "loss": loss, "loader": loader})
    """
    if isinstance(found, Loop):
        return found
    if isinstance(found, tuple) and len(found) == 4:
        return Loop(*found)
    if not isinstance(found, Mapping):
        raise InputError(
            f"the factory returned a {type(found).__name__}, expected the parts of a loop",
            hint=f"return redline.train.Loop(...), a dict, or a tuple of {_PARTS}",
        )
    known = {field.name for field in fields(Loop)}
    if unknown := sorted(set(found) - known):
        raise InputError(
            f"unknown: {', '.join(unknown)}", hint="known: " + ", ".join(sorted(known))
        )
    if missing := [name for name in ("model", "optimizer", "loader") if name not in found]:
        raise InputError(f"missing: {', '.join(missing)}", hint=f"a loop needs {_PARTS}")
    return Loop(**{"loss": None, **found})


def setup_of(loop: Loop) -> Setup:
    """The loop as it is.

    Example:
        >>> setup_of(loop).workers
        0
    """
    loader = loop.loader
    common = Setup(
        set_to_none=loop.set_to_none,
        log_every=loop.log_every,
        autocast=loop.autocast,
        non_blocking=loop.non_blocking,
        threads=torch.get_num_threads(),
        tf32=torch.backends.cuda.matmul.allow_tf32,
        cudnn_benchmark=torch.backends.cudnn.benchmark,
    )
    if not isinstance(loader, DataLoader):
        return common
    return replace(
        common,
        workers=loader.num_workers,
        prefetch=loader.prefetch_factor,
        persistent=loader.persistent_workers,
        pin=loader.pin_memory,
    )


@dataclass
class Fork:
    """A copy of model, optimizer and loss that may be trained and thrown away."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[..., torch.Tensor] | None


def fork(loop: Loop) -> Fork:
    """Copy what a step changes. The copies share parameters as the originals do.

    Raises:
        ModelError: a part cannot be copied.
    """
    try:
        model, optimizer, loss = copy.deepcopy((loop.model, loop.optimizer, loop.loss))
    except Exception as error:  # deepcopy runs the user's own code, which may raise anything
        raise ModelError(
            f"the model or optimizer cannot be copied: {type(error).__name__}: {error}",
            hint="tune before the first forward, and keep results of a forward off the module",
        ) from error
    for parameter in model.parameters():
        parameter.grad = None
    return Fork(model, optimizer, loss)


def loss_of(loop: Loop, parts: Fork, model: Any, batch: Any) -> torch.Tensor:
    """The scalar loss of a batch; `model` is the copy, or the copy compiled.

    Raises:
        InputError: the batch and the loss do not fit together.
    """
    if loop.compute is not None:
        loss = loop.compute(model, batch)
    elif isinstance(batch, Mapping):
        loss = _own_loss(model(**batch))
    elif parts.loss is None:
        loss = _own_loss(model(*batch) if isinstance(batch, tuple | list) else model(batch))
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        *inputs, target = batch
        loss = parts.loss(model(*inputs), target)
    else:
        raise InputError(
            f"a batch is a {type(batch).__name__}, expected (input, ..., target) or a dict",
            hint="give compute=lambda model, batch: ... that returns the loss",
        )
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise InputError("the loss is not a single number", hint="return a scalar tensor")
    return loss


def _own_loss(output: Any) -> torch.Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        raise InputError(
            "the model returned no .loss, and no loss was given", hint="give loss or compute"
        )
    return loss  # type: ignore[no-any-return]


def tensors(batch: Any) -> list[torch.Tensor]:
    """The tensors of a batch, in order."""
    return [one for one in tree_leaves(batch) if isinstance(one, torch.Tensor)]


def nbytes(batch: Any) -> int:
    """Bytes of a batch's tensors."""
    return sum(one.nbytes for one in tensors(batch))


def move(batch: Any, device: torch.device, non_blocking: bool, layout: str = "as it is") -> Any:
    """A batch on the device, its images in the given memory format."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = leaf.to(device, non_blocking=non_blocking)
        if layout != "as it is" and leaf.ndim == 4 and leaf.is_floating_point():
            return leaf.contiguous(memory_format=memory_format(layout))
        return leaf

    return tree_map(one, batch)


def memory_format(layout: str) -> torch.memory_format:
    """torch's memory format of that name."""
    return torch.channels_last if layout == "channels_last" else torch.contiguous_format
