"""What a training hands over."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from redline.train.recipe import Recipe


@dataclass(frozen=True)
class Result:
    """A trained network, what it takes, and how it came to be.

    Attributes:
        model: the network in eval mode on the cpu; goes straight into redline.optimize().
        example: one prepared input for it: redline.optimize(result.model, result.example).
        metrics: of the weights in `model`, on the test set; "loss" is always there.
        history: one record for each epoch: epoch, step, train_loss, lr, seconds, metrics.
        best_epoch: the epoch, from 1, with the best monitor; 0 without a test set.
        stopped: why it ended: "epochs", "max_steps", "max_time", "early_stop" or "interrupted".
        steps: optimizer steps, earlier runs that were resumed counted.
        seconds: of this run.
        out: the folder with log.jsonl and checkpoints/.
        notes: what is odd about the data, such as a class that is not tested.
        score: score(callable) -> the monitor of any callable on the test set, higher is better;
            the `evaluate` of redline.optimize(). None without a test set.
    """

    model: torch.nn.Module
    example: Any
    metrics: Mapping[str, float]
    history: Sequence[Mapping[str, Any]]
    best_epoch: int
    stopped: str
    steps: int
    seconds: float
    out: Path
    recipe: Recipe
    score: Callable[[Callable[..., Any]], float] | None = field(default=None, repr=False)
    notes: Sequence[str] = ()

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended it; `fit(..., out=result.out, resume=True)` goes on."""
        return self.stopped == "interrupted"

    def json(self) -> str:
        """The numbers as one JSON object."""
        names = ("metrics", "history", "best_epoch", "stopped", "steps", "seconds", "notes")
        held = {name: getattr(self, name) for name in names}
        return json.dumps({**held, "out": str(self.out)})

    def text(self) -> str:
        """For a person: one line of metrics, one of how it ended."""
        told = "  ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        rest = f"{self.steps} steps in {self.seconds:.1f} s, ended by {self.stopped}: {self.out}"
        return "\n".join([told, rest, *(f"note: {note}" for note in self.notes)])
