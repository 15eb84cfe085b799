"""The loop: what happens in an epoch, plain enough to be copied into a script of one's own."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from redline.errors import RunError
from redline.train.data import Batches
from redline.train.metrics import Metric, wide
from redline.train.recipe import Recipe

_LOG_EVERY = 5.0  # seconds between two looks at the loss: each one waits for the device


@dataclass
class Place:
    """How far a training has come; all of it goes into a checkpoint."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    samples: int = 0
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    history: list[dict[str, Any]] = field(default_factory=list)
    best: float = math.nan
    best_epoch: int = 0


@dataclass
class Loop:
    """What every step needs. `say` gets step records, `save` writes a checkpoint."""

    recipe: Recipe
    accelerator: Any
    model: Any
    optimizer: Any
    schedule: Any
    forward: Callable[[Any, Any], tuple[torch.Tensor, Any, Any]]
    prepare: Callable[..., Any]
    batches: Batches
    say: Callable[[dict[str, Any]], None]
    save: Callable[[], None]
    place: Place
    stop: Interrupt
    deadline: float = math.inf


def train_epoch(loop: Loop) -> str:
    """Train from where loop.place stands to the end of its epoch.

    Returns:
        "" at the end of the epoch, or why it ended before: "max_steps", "max_time", "interrupted".

    Raises:
        RunError: the loss is not finite; names the first module whose output is not.
    """
    recipe, place, model = loop.recipe, loop.place, loop.model
    model.train()
    last, looked, seen = len(loop.batches), time.monotonic(), place.samples
    plain = loop.accelerator.scaler is None
    mixed = loop.accelerator.autocast if recipe.precision != "fp32" else contextlib.nullcontext
    place.loss_sum = place.loss_sum.to(loop.accelerator.device, widest(loop.accelerator.device))
    for raw in loop.batches.epoch(place.epoch, place.batch):
        batch = loop.prepare(raw, place.epoch, place.batch)
        place.batch += 1
        whole = place.batch % recipe.accumulate == 0 or place.batch == last
        with contextlib.nullcontext() if whole else loop.accelerator.no_sync(model):
            with mixed():
                loss, _, _ = loop.forward(model, batch)
            scaled = loss / recipe.accumulate if recipe.accumulate > 1 else loss
            # Accelerate's own is for scaled gradients, and costs microseconds a step.
            if plain:
                torch.autograd.backward(scaled)
            else:
                loop.accelerator.backward(scaled)
        size = count(batch)
        place.loss_sum += loss.detach() * size
        place.samples += size
        if whole:
            if recipe.clip:
                loop.accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
            loop.optimizer.step()
            loop.optimizer.zero_grad(set_to_none=True)
            place.step += 1
            if not isinstance(loop.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                loop.schedule.step()
        now = time.monotonic()
        if now - looked > _LOG_EVERY:
            value = float(loss.detach())
            _guard(value, loop, batch)
            rate = (place.samples - seen) * loop.accelerator.num_processes / (now - looked)
            loop.say(
                {"kind": "step", "step": place.step, "epoch": place.epoch + 1,
                 "batch": place.batch, "loss": value, "samples_per_s": rate,
                 "lr": loop.optimizer.param_groups[0]["lr"]}
            )  # fmt: skip
            looked, seen = now, place.samples
        if whole and (why := _ends(loop, now)):
            return why
        if whole and recipe.checkpoint_every and place.step % recipe.checkpoint_every == 0:
            loop.save()
    if not place.samples:
        raise RunError("the training data gave no batch", hint="check the dataset's length")
    _guard(float(place.loss_sum), loop, batch)
    return ""


def widest(device: torch.device) -> torch.dtype:
    """The floats of the sum that grows on a device, for moving every loss would wait for it.

    Apple's GPUs have no float64.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def _ends(loop: Loop, now: float) -> str:
    if loop.recipe.max_steps and loop.place.step >= loop.recipe.max_steps:
        return "max_steps"
    ends = [loop.stop.asked, now > loop.deadline]
    if loop.accelerator.num_processes > 1:  # all processes must end at the same step
        told = torch.tensor(ends, dtype=torch.int32, device=loop.accelerator.device)
        ends = [bool(each) for each in loop.accelerator.reduce(told).tolist()]
    return "interrupted" if ends[0] else "max_time" if ends[1] else ""


def count(batch: Any) -> int:
    """Samples of a batch: the length of the first tensor in it."""
    if isinstance(batch, Mapping):
        batch = next(iter(batch.values()))
    elif isinstance(batch, Sequence):
        batch = batch[0]
    return len(batch)


def _guard(value: float, loop: Loop, batch: Any) -> None:
    """Name the first module that makes NaN or Inf."""
    if math.isfinite(value):
        return
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    inner = loop.accelerator.unwrap_model(loop.model)
    handles = [module.register_forward_hook(look(name)) for name, module in inner.named_modules()]
    with torch.no_grad():
        loop.forward(inner, batch)
    for handle in handles:
        handle.remove()
    broken = [name for name, p in inner.named_parameters() if not bool(torch.isfinite(p).all())]
    where = f"weights that are not finite: {', '.join(broken[:4])}" if broken else (
        f"first in module {found[0]!r}" if found else "in the loss itself"
    )  # fmt: skip
    raise RunError(
        f"the loss is {value} at step {loop.place.step}", where=where,
        hint="lower lr, give clip=1.0, or look at the data of this batch",
    )  # fmt: skip


def evaluate(
    model: Any, batches: Batches, forward: Callable[..., Any], prepare: Callable[..., Any],
    metrics: Sequence[Metric], accelerator: Any = None,
) -> dict[str, float]:  # fmt: skip
    """Loss and metrics over every sample of a test set; summed over processes."""
    training = getattr(model, "training", False)
    if isinstance(model, torch.nn.Module):
        model.eval()
    sums: dict[str, torch.Tensor] = {}
    context = accelerator.autocast() if accelerator else contextlib.nullcontext()
    with torch.no_grad(), context:
        for raw in batches.epoch(0):
            batch = prepare(raw, None, 0)
            loss, output, target = forward(model, batch)
            size = count(batch)
            lost = wide(loss)
            counts = {"loss": torch.stack([lost * size, lost.new_tensor(size)])}
            if output is not None:
                counts |= {each.name: each.count(output, target) for each in metrics}
            for name, value in counts.items():
                sums[name] = sums[name] + value if name in sums else value
    if isinstance(model, torch.nn.Module):
        model.train(training)
    if accelerator and accelerator.num_processes > 1:
        sums = {name: accelerator.reduce(value) for name, value in sums.items()}
    found = {"loss": sums["loss"][0].item() / sums["loss"][1].item()} if sums else {}
    return found | {
        m.name: float(m.finish(sums[m.name].tolist())) for m in metrics if m.name in sums
    }


class Interrupt:
    """Ctrl-C and SIGTERM ask for an end after the step; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listen(self) -> Iterator[Interrupt]:
        """Take the signals over, in the main thread; give them back afterwards."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def handle(number: int, _: Any) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True

        before = {each: signal.signal(each, handle) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for each, old in before.items():
                signal.signal(each, old)
