"""fit(): from a network and data to a trained network, one function read top to bottom."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, random_split

from redline.errors import InputError
from redline.train import checkpoint, parts
from redline.train.bar import Bar
from redline.train.data import Batches, Data
from redline.train.log import Tracker
from redline.train.log import trackers as named_trackers
from redline.train.loop import Interrupt, Loop, Place, evaluate, train_epoch
from redline.train.metrics import metrics as named_metrics
from redline.train.networks import network
from redline.train.processes import Shards, Whole, begin
from redline.train.recipe import Recipe
from redline.train.result import Result
from redline.train.sources import load_data

# What may differ between a run and its resumption without changing a single number.
_FREE = ("max_time", "workers", "checkpoint_every", "keep", "max_steps", "early_stop")


def fit(
    model: Any,
    data: Any,
    recipe: Recipe | None = None,
    *,
    test: Any = None,
    out: str | Path | None = None,
    resume: bool = False,
    trackers: Sequence[Tracker | str] = (),
    progress: str | bool = "auto",
    **choices: Any,
) -> Result:
    """Train a network.

    Args:
        model: an nn.Module, which is trained in place, or the name of a network: mlp, resnet, gpt
            or auto.
        data: a Dataset or DataLoader of (input, target) or of dicts, a Data, or what load_data()
            takes: "digits", a folder, a zip, a text.
        recipe: how to train.
        test: a Dataset or DataLoader to measure on after every epoch; without one, recipe.split of
            the data is held out.
        out: folder of log.jsonl and checkpoints/; a new runs/NAME-N by default.
        resume: go on from the last checkpoint in `out`, in the middle of an epoch where it was
            written there. On a cpu every number comes out as if there had been no interruption.
        trackers: "tensorboard", or objects with start(), log() and close().
        progress: draw a bar on stderr: "auto" (on a terminal), True or False.
        choices: fields of Recipe that are to be different.

    Returns:
        The trained network and its history. Ctrl-C saves a checkpoint and returns.

    Raises:
        InputError: data, recipe or folder cannot be used.
        RunError: the loss is not finite.
        MissingError: accelerate or safetensors is not installed.

    Example:
        >>> result = fit("auto", "digits", epochs=10)
        >>> engine = redline.optimize(result.model, result.example)
    """
    start = time.monotonic()
    recipe = (recipe or Recipe()).changed(**choices)
    accelerator, recipe = begin(recipe)
    given = _data(data, test, recipe)
    torch.manual_seed(recipe.seed)
    net: torch.nn.Module = network(model, given) if isinstance(model, str) else model
    if not isinstance(net, torch.nn.Module):
        raise InputError(f"model is a {type(net).__name__}, expected an nn.Module or a name")
    folder = _folder(out, given.name, resume, accelerator)
    loop, tests, measure, weights = _set_up(net, given, recipe, accelerator)
    run = _Run(loop, tests, measure, folder, given, weights)
    if resume:
        run.resume()
    elif accelerator.num_processes > 1:
        torch.manual_seed(recipe.seed + accelerator.process_index)  # dropout differs by process
    loop.deadline = start + recipe.max_time if recipe.max_time else math.inf
    with Bar(loop, progress if accelerator.is_main_process else False) as bar:
        followers = named_trackers(trackers) if accelerator.is_main_process else []
        loop.say = lambda record: _tell(record, [bar, *followers])
        loop.save = run.save
        begun: list[Tracker] = []
        try:
            for each in followers:
                each.start(folder, recipe.plain())
                begun.append(each)
            with loop.stop.listen():
                stopped = run.epochs()
            result = run.result(stopped, time.monotonic() - start)
            end = {"kind": "end", "step": result.steps, "stopped": stopped, "notes": given.remarks}
            loop.say(end | {"metrics": dict(result.metrics)})
        finally:
            for each in begun:
                each.close()
    return result


def _tell(record: dict[str, Any], followers: Sequence[Any]) -> None:
    for each in followers:
        each.log(record)


def _data(data: Any, test: Any, recipe: Recipe) -> Data:
    if isinstance(data, str | Path):
        data = load_data(data, split=recipe.split, seed=recipe.seed)
    if isinstance(data, Data):
        return dataclasses.replace(data, test=test) if test is not None else data
    if isinstance(data, tuple) and len(data) == 2 and test is None:
        data, test = data
    if not isinstance(data, Dataset | DataLoader) and not hasattr(data, "__getitem__"):
        raise InputError(f"data is a {type(data).__name__}, expected a Dataset, DataLoader or name")
    if test is None and recipe.split and isinstance(data, Dataset) and hasattr(data, "__len__"):
        held = round(recipe.split * len(data))
        generator = torch.Generator().manual_seed(recipe.seed)
        data, test = random_split(data, [len(data) - held, held], generator)
    return Data("data", data, test, _kind(data))


def _kind(data: Any) -> str:
    """What the first target says: integers are classes."""
    source = data.dataset if isinstance(data, DataLoader) else data
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__") or not len(source):
        return "other"
    sample = source[0]
    if not isinstance(sample, Sequence) or len(sample) != 2:
        return "other"
    target = torch.as_tensor(sample[1])
    return "values" if target.is_floating_point() else "classes" if target.ndim == 0 else "tokens"


def _folder(out: str | Path | None, name: str, resume: bool, accelerator: Any) -> Path:
    if out is None:
        if resume:
            raise InputError("resume needs the folder of the run", hint="give out=...")
        number = 1
        while (Path("runs") / f"{name}-{number}").exists():
            number += 1
        out = Path("runs") / f"{name}-{number}"
    folder = Path(out)
    if not resume and (folder / "log.jsonl").exists():
        raise InputError(f"{folder} holds a run already", hint="resume=True (--resume), or another")
    accelerator.wait_for_everyone()
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    return folder


def _set_up(net: torch.nn.Module, data: Data, recipe: Recipe, accelerator: Any) -> Any:
    net.to(accelerator.device)
    if recipe.channels_last:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rank, world = accelerator.process_index, accelerator.num_processes
    held: Whole | None = Shards(net, accelerator) if recipe.shard and world > 1 else None
    optimizer, model = parts.optimizer(recipe, net), net
    if held is None:
        model, prepared = accelerator.prepare(net, optimizer)
        # Accelerate's wrapper is needed for gradient scaling only, and costs microseconds a step.
        optimizer = prepared if accelerator.scaler is not None else optimizer
        held = Whole(net)
    held.optimizer = optimizer
    if recipe.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    shared: dict[str, Any] = {"workers": recipe.workers, "rank": rank, "world": world}
    batches = Batches(
        data.train, recipe.batch_size, seed=recipe.seed, shuffle=recipe.shuffle, pad=True, **shared
    )
    if isinstance(held, Shards):  # its forward needs every process, so all see every test
        shared |= {"rank": 0, "world": 1}
    tests = Batches(data.test, 4 * recipe.batch_size, **shared) if data.test is not None else None
    total = recipe.max_steps or recipe.epochs * -(-len(batches) // recipe.accumulate)
    schedule = parts.schedule(recipe, getattr(optimizer, "optimizer", optimizer), total)
    loop = Loop(
        recipe, accelerator, model, optimizer, schedule, _forward(recipe, data.kind),
        _preparation(recipe, data, accelerator), batches,
        lambda record: None, lambda: None, Place(), Interrupt(),
    )  # fmt: skip
    return loop, tests, named_metrics(recipe.metrics, data.kind), held


def _forward(recipe: Recipe, kind: str) -> Callable[[Any, Any], tuple[torch.Tensor, Any, Any]]:
    if recipe.step is not None:
        return recipe.step
    criterion: list[Any] = []

    def forward(model: Any, batch: Any) -> tuple[torch.Tensor, Any, Any]:
        if isinstance(batch, Mapping):
            output = model(**batch)
            return output.loss, getattr(output, "logits", None), batch.get("labels")
        if not criterion:
            criterion.append(parts.loss(recipe, kind))
        *x, y = batch
        output = model(*x)
        return criterion[0](output, y), output, y

    return forward


def _preparation(recipe: Recipe, data: Data, accelerator: Any) -> Callable[..., Any]:
    """To the device, then the transforms. Augmentation has a seed for each batch and no state."""
    features, labels = parts.features(recipe.features, data), parts.labels(recipe.labels, data)
    augment = parts.augmentations(recipe.augment)
    device, rank = accelerator.device, accelerator.process_index

    def prepare(batch: Any, epoch: int | None, number: int) -> Any:
        if isinstance(batch, Mapping):
            return {name: value.to(device) for name, value in batch.items()}
        *x, y = (each.to(device, non_blocking=True) for each in batch)
        for change in features:
            x[0] = change(x[0])
        if augment and epoch is not None:
            seed = ((recipe.seed * 1009 + epoch) * 100_003 + number) * 1009 + rank
            generator = torch.Generator().manual_seed(seed)
            for alter in augment:
                x[0] = alter(x[0], generator)
        if recipe.channels_last and x[0].ndim == 4:
            x[0] = x[0].contiguous(memory_format=torch.channels_last)
        for change in labels:
            y = change(y)
        return [*x, y]

    return prepare


class _Run:
    """One training: its epochs, its checkpoints, its result."""

    def __init__(
        self, loop: Loop, tests: Batches | None, measure: Any, folder: Path, data: Data,
        weights: Whole,
    ) -> None:  # fmt: skip
        self.loop, self.tests, self.measure, self.data = loop, tests, measure, data
        self.weights = weights
        self.folder, self.checkpoints = folder, folder / "checkpoints"
        monitor = loop.recipe.monitor or (measure[0].name if measure else "loss")
        if monitor not in {"loss", *(metric.name for metric in measure)}:
            raise InputError(f"monitor {monitor!r} is not among the metrics")
        self.monitor = monitor
        self.higher = next((m.higher for m in measure if m.name == monitor), False)

    def epochs(self) -> str:
        recipe, place = self.loop.recipe, self.loop.place
        while place.epoch < recipe.epochs:
            if recipe.max_steps and place.step >= recipe.max_steps:
                return "max_steps"
            start = time.monotonic()
            why = train_epoch(self.loop)
            if why == "interrupted" or (why and place.batch < len(self.loop.batches)):
                self.save()
                return why
            self._end_epoch(time.monotonic() - start)
            if why:
                return why
            if self.loop.stop.asked:
                return "interrupted"
            if recipe.early_stop and place.epoch - place.best_epoch >= recipe.early_stop:
                return "early_stop"
        return "epochs"

    def _end_epoch(self, seconds: float) -> None:
        loop, place, accelerator = self.loop, self.loop.place, self.loop.accelerator
        sums = torch.stack([place.loss_sum, place.loss_sum.new_tensor(place.samples)])
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums)
        found = self.test(accelerator.unwrap_model(loop.model))
        record = {
            "kind": "epoch", "epoch": place.epoch + 1, "step": place.step,
            "train_loss": (sums[0] / sums[1]).item(), "lr": loop.optimizer.param_groups[0]["lr"],
            "seconds": seconds, "samples_per_s": sums[1].item() / seconds, "metrics": found,
        }  # fmt: skip
        place.history.append(record)
        value = found.get(self.monitor, math.nan)
        better = value > place.best if self.higher else value < place.best
        best = not math.isnan(value) and (math.isnan(place.best) or better)
        if best:
            place.best, place.best_epoch = value, place.epoch + 1
        if isinstance(loop.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            loop.schedule.step(found.get("loss", record["train_loss"]))
        place.epoch, place.batch, place.samples = place.epoch + 1, 0, 0
        place.loss_sum = torch.zeros_like(place.loss_sum)
        self.save(best)
        loop.say(record)

    def test(self, model: Any) -> dict[str, float]:
        if self.tests is None:
            return {}
        loop = self.loop
        return evaluate(
            model, self.tests, loop.forward, loop.prepare, self.measure, loop.accelerator
        )

    def save(self, best: bool = False) -> None:
        loop, place = self.loop, self.loop.place
        state, (weights, moments) = random_states(loop.accelerator), self.weights.take()
        if loop.accelerator.is_main_process:
            held = {
                "place": dataclasses.asdict(place),
                "optimizer": moments,
                "schedule": {
                    k: v for k, v in loop.schedule.state_dict().items() if k != "lr_lambdas"
                },
                "scaler": loop.accelerator.scaler.state_dict() if loop.accelerator.scaler else None,
                "random": state, "recipe": loop.recipe.plain(),
                "data": {"name": self.data.name, "mean": self.data.mean, "std": self.data.std,
                         "names": self.data.names},
            }  # fmt: skip
            name = f"epoch-{place.epoch:05}-step-{place.step:09}"
            checkpoint.write(self.checkpoints, name, weights, held)
            if best:
                checkpoint.write(self.checkpoints, "best", weights, held)
            checkpoint.prune(self.checkpoints, loop.recipe.keep)
        loop.accelerator.wait_for_everyone()

    def resume(self) -> None:
        loop = self.loop
        found = checkpoint.steps(self.checkpoints)
        if not found:
            raise InputError(f"{self.folder} holds no checkpoint", hint="leave out resume")
        weights, held = checkpoint.read(found[-1])
        now, then = loop.recipe.plain(), held["recipe"]
        changed = [name for name in now if name not in _FREE and now[name] != then.get(name)]
        if changed:
            told = ", ".join(f"{name} was {then.get(name)!r}, is {now[name]!r}" for name in changed)
            raise InputError(f"the recipe changed: {told}", hint="resume with the same choices")
        if len(held["random"]) != loop.accelerator.num_processes:
            raise InputError(f"the run had {len(held['random'])} processes", hint="use as many")
        self.weights.put(weights, held["optimizer"])
        lambdas = {"lr_lambdas": [None] * len(loop.optimizer.param_groups)}  # a user's LambdaLR
        own = isinstance(loop.schedule, torch.optim.lr_scheduler.LambdaLR)
        loop.schedule.load_state_dict(held["schedule"] | (lambdas if own else {}))
        if held["scaler"] and loop.accelerator.scaler:
            loop.accelerator.scaler.load_state_dict(held["scaler"])
        for name, value in held["place"].items():
            setattr(loop.place, name, value)
        checkpoint.set_random_state(held["random"][loop.accelerator.process_index])

    def result(self, stopped: str, seconds: float) -> Result:
        loop, place = self.loop, self.loop.place
        loop.accelerator.wait_for_everyone()
        if stopped == "early_stop":
            self.weights.put(checkpoint.read(self.checkpoints / "best")[0])
        ends = stopped == "early_stop" or not place.history or place.batch
        found = self.test(self.weights.net) if ends else place.history[-1]["metrics"]
        model = self.weights.finished()
        raw = next(iter(Batches(self.data.train, 1).epoch(0)))
        batch = loop.prepare(raw, None, 0)
        if isinstance(batch, Mapping):
            example: Any = {k: v[:1].cpu() for k, v in batch.items() if k != "labels"}
        else:
            inputs = tuple(each[:1].cpu() for each in batch[:-1])
            example = inputs[0] if len(inputs) == 1 else inputs
        return Result(
            model, example, found, tuple(place.history), place.best_epoch, stopped, place.step,
            seconds, self.folder, loop.recipe, self._score if self.tests else None,
            self.data.remarks,
        )  # fmt: skip

    def _score(self, model: Callable[..., Any]) -> float:
        value = self.test(model)[self.monitor]
        return value if self.higher else -value


def random_states(accelerator: Any) -> torch.Tensor:
    """The generators of every process: (processes, bytes)."""
    own = checkpoint.random_state().unsqueeze(0)
    if accelerator.num_processes == 1:
        return own
    gathered: torch.Tensor = accelerator.gather(own.to(accelerator.device))
    return gathered.cpu()
