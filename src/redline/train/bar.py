"""Progress on stderr: epoch, loss, samples/s, time left; drawn when a record comes, no thread."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from redline import knobs
from redline.train.loop import Loop


class Bar:
    """Draws what log() gets. The time left is from this run's own speed."""

    def __init__(self, loop: Loop, mode: str | bool) -> None:
        if mode == "auto":
            knob = knobs.text("REDLINE_PROGRESS")
            mode = sys.stderr.isatty() if knob == "auto" else knob != "0"
        self._on, self._loop = bool(mode), loop
        self._bar: Any = None
        each = -(-len(loop.batches) // loop.recipe.accumulate)
        self._total = loop.recipe.max_steps or loop.recipe.epochs * each or None

    def __enter__(self) -> Bar:
        self._start, self._first = time.monotonic(), self._loop.place.step
        if self._on:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                BarColumn(bar_width=24), TextColumn("{task.description}"),
                console=Console(stderr=True), auto_refresh=False,
            )  # fmt: skip
            self._task = self._bar.add_task("training", total=self._total)
            self._bar.start()
        return self

    def log(self, record: Mapping[str, Any]) -> None:
        """Show one record of a step or an epoch."""
        if not self._bar or "samples_per_s" not in record:
            return
        done = record["step"] - self._first
        spent = time.monotonic() - self._start
        left = (self._total - record["step"]) * spent / done if self._total and done else 0.0
        loss = record.get("loss", record.get("train_loss", 0.0))
        text = (
            f"epoch {record['epoch']}  loss {loss:.4f}  {record['samples_per_s']:.0f} samples/s  "
            f"{left // 60:.0f}:{left % 60:02.0f} left"
        )
        self._bar.update(self._task, completed=record["step"], description=text)
        if record["kind"] == "epoch":
            told = "  ".join(f"{name} {value:.4f}" for name, value in record["metrics"].items())
            self._bar.console.print(f"epoch {record['epoch']}: train loss {loss:.4f}  {told}")
        self._bar.refresh()

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
