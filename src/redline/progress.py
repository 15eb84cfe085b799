"""Progress on stderr: what is being tried, and how much of the promised time is left."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from redline import knobs


class Progress:
    """A bar that fills with the budget. Drawn only when told to, never by a thread of its own:
    on two cores a bar that redraws itself is a contestant in the race it reports on.

    Args:
        budget: seconds promised.
        mode: "auto" (on when stderr is a terminal), True or False.

    Example:
        >>> with Progress(60.0, mode=False) as progress:
        ...     progress("capturing")
    """

    def __init__(self, budget: float, mode: str | bool = "auto") -> None:
        self.budget = budget
        self._start = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        if mode == "auto":
            knob = knobs.text("REDLINE_PROGRESS")
            mode = sys.stderr.isatty() if knob == "auto" else knob != "0"
        self._on = bool(mode)

    def __enter__(self) -> Progress:
        if self._on:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as RichProgress

            columns = (
                BarColumn(bar_width=24),
                TextColumn("{task.fields[left]:>12}"),
                TextColumn("{task.description}"),
            )
            console = Console(stderr=True)
            self._bar = RichProgress(*columns, console=console, auto_refresh=False, transient=True)
            self._task = self._bar.add_task("", total=self.budget, left="")
            self._bar.start()
        return self

    def __call__(self, what: str) -> None:
        """Say what is being done now."""
        if self._bar:
            spent = time.monotonic() - self._start
            left = f"≤ {max(0.0, self.budget - spent):.0f} s left"
            self._bar.update(
                self._task, completed=min(spent, self.budget), description=what, left=left
            )
            self._bar.refresh()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
