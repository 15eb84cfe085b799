"""A setup that runs: copies of model and optimizer, a feed, and the step of the user's loop."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from redline.errors import OutOfMemoryError, RedlineError, RunError
from redline.train.tuning import feeds
from redline.train.tuning.guard import set_flags
from redline.train.tuning.loop import Fork, Loop, fork, loss_of, memory_format, move
from redline.train.tuning.setup import Setup

PHASES = ("input", "copy", "forward", "backward", "optimizer", "log", "other")
_WARM = 2  # steps before anything counts
_CHUNK = 0.005  # seconds: the least that one sample covers
_BLOCK = 0.1  # seconds: the least that a turn covers


class Rig:
    """One contestant. `batches` given, it uses these; else it reads the loader as `setup` says.

    Raises:
        RunError: the setup cannot be made here, with torch's own words.
    """

    def __init__(self, loop: Loop, setup: Setup, batches: list[Any] | None = None) -> None:
        self.loop, self.setup, self.device = loop, setup, loop.device
        self.parts: Fork = fork(loop)
        with _told(), self._settings():
            if setup.layout != "as it is":
                self.parts.model.to(memory_format=memory_format(setup.layout))  # type: ignore[call-overload]
            if setup.kernel != "as it is":
                self.parts.optimizer = with_kernel(self.parts.optimizer, setup.kernel)
            self.model: Any = torch.compile(self.parts.model) if setup.compile else self.parts.model
            self.feed = feeds.Feed(feeds.Kept(batches)) if batches else feeds.make(loop, setup)
        half = setup.autocast == "float16" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda") if half else None
        self.steps, self.compile_seconds = 0, 0.0
        self._warm = False
        self._logged: deque[float] = deque(maxlen=100)

    def turn(self, seconds: float) -> list[float]:
        """Steps for that long: seconds a step, one number for a few milliseconds of steps, so that
        their median leaves out what another process did. What does not come with every step, the
        start of an epoch and a call of `log`, is shared out over the steps it is for.
        """
        with _told(), self._settings(), self._flowing():
            if not self._warm:
                self.warm_up()
            samples: list[float] = []
            total = 0.0
            while not samples or total < max(seconds, _BLOCK):
                steps, spent = 0, 0.0
                while steps < max(1, self.setup.workers) or spent < _CHUNK:
                    spent += self._clocked(None)
                    steps += 1
                total += spent
                samples.append(spent / steps)
            extra = self.restart_share() + self._log_share()
            return [sample + extra for sample in samples]

    def warm_up(self) -> None:
        """The first steps: lazy state, compiling, and the queue's head start used up."""
        start = time.perf_counter()
        self._clocked(None)
        first = time.perf_counter() - start
        again = self._clocked(None)
        self.compile_seconds = max(0.0, first - again)
        if self.setup.workers and self.setup.persistent:
            self.feed.start_over()  # only the first epoch of all waits for processes to start
        for _ in range(_WARM + self.setup.workers * (self.setup.prefetch or 2)):
            self._clocked(None)
        self._warm = True

    def phases(self, least: int = 20, seconds: float = 3.0) -> dict[str, float]:
        """Median seconds of every phase of a step, over `least` steps or that long."""
        rows: list[dict[str, float]] = []
        with _told(), self._settings(), self._flowing():
            if not self._warm:
                self.warm_up()
            start = time.perf_counter()
            while len(rows) < 3 or (len(rows) < least and time.perf_counter() - start < seconds):
                row: dict[str, float] = dict.fromkeys(PHASES, 0.0)
                total = self._clocked(row)
                row["other"] = max(0.0, total - sum(row.values()))
                rows.append(row)
        found = {phase: float(np.median([row[phase] for row in rows])) for phase in PHASES}
        return found | {"input": found["input"] + self.restart_share()}

    def losses(self, batches: list[Any], steps: int, seed: int) -> list[float]:
        """The losses of the first steps from the user's state, on given batches."""
        with _told(), self._settings():
            torch.manual_seed(seed)
            return [float(self.step(batches[n % len(batches)], None)) for n in range(steps)]

    def step(self, batch: Any, row: dict[str, float] | None) -> torch.Tensor:
        """One step of the loop; `row` is given the seconds of each phase."""
        mark, loop, setup, parts = self._marker(row), self.loop, self.setup, self.parts
        batch = move(batch, self.device, setup.non_blocking, setup.layout)
        mark("copy")
        with _cast(setup.autocast, self.device):
            loss = loss_of(loop, parts, self.model, batch)
        mark("forward")
        scaled = loss / loop.accumulate
        (self.scaler.scale(scaled) if self.scaler else scaled).backward()  # type: ignore[no-untyped-call]
        mark("backward")
        self.steps += 1
        if self.steps % loop.accumulate == 0:
            self._update()
        mark("optimizer")
        if loop.log is not None and self.steps % setup.log_every == 0:
            begin = time.perf_counter()
            loop.log(self.steps, loss.detach())
            self._logged.append(time.perf_counter() - begin)
        mark("log")
        return loss.detach()

    def close(self) -> None:
        """End the feed's workers and let go of the copies."""
        self.feed.close()
        del self.parts, self.model

    def _update(self) -> None:
        optimizer, clip = self.parts.optimizer, self.loop.clip
        if self.scaler:
            self.scaler.unscale_(optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parts.model.parameters(), clip)
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=self.setup.set_to_none)

    def _clocked(self, row: dict[str, float] | None) -> float:
        start = time.perf_counter()
        batch, first = self.feed.next()
        waited = time.perf_counter() - start
        begin = time.perf_counter()
        self.step(batch, row)
        if row is not None or self.device.type == "cpu":
            self._wait()
        if first:  # an epoch's start is counted apart, by _restart_share
            waited = 0.0
        if row is not None:
            row["input"] = waited
        spent = waited + time.perf_counter() - begin
        logged = self.loop.log is not None and self.steps % self.setup.log_every == 0
        return spent - self._logged[-1] if logged and row is None else spent

    def _log_share(self) -> float:
        return float(np.median(self._logged)) / self.setup.log_every if self._logged else 0.0

    def restart_share(self) -> float:
        """Seconds a step that the starts of epochs take."""
        try:
            length = len(self.loop.loader)  # type: ignore[arg-type]
        except TypeError:
            return 0.0
        restarts = self.feed.restarts
        return float(np.median(restarts)) / max(1, length) if restarts and length else 0.0

    def _marker(self, row: dict[str, float] | None) -> Callable[[str], None]:
        if row is None:
            return lambda phase: None
        last = time.perf_counter()

        def mark(phase: str) -> None:
            nonlocal last
            self._wait()
            now = time.perf_counter()
            row[phase], last = now - last, now

        return mark

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextlib.contextmanager
    def _flowing(self) -> Iterator[None]:
        self.feed.resume()
        try:
            yield
            self._wait()
        finally:
            self.feed.pause()

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        threads, setup = torch.get_num_threads(), self.setup
        flags = (
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cudnn.benchmark,
        )
        if threads != setup.threads:
            torch.set_num_threads(setup.threads)
        set_flags(setup.tf32, setup.tf32, setup.cudnn_benchmark)
        try:
            yield
        finally:
            set_flags(*flags)
            if threads != setup.threads:
                torch.set_num_threads(threads)


def with_kernel(optimizer: torch.optim.Optimizer, kernel: str) -> torch.optim.Optimizer:
    """The same optimizer, state and all, with its foreach or fused implementation."""
    how = {"foreach": kernel == "foreach", "fused": kernel == "fused"}
    how = {key: value for key, value in how.items() if key in optimizer.defaults}
    groups = [{**group, **how} for group in optimizer.param_groups]
    state = optimizer.state_dict()
    state["param_groups"] = [{**group, **how} for group in state["param_groups"]]
    made: torch.optim.Optimizer = type(optimizer)(groups)  # type: ignore[call-arg]
    if state["state"]:
        made.load_state_dict(state)
    return made


def _cast(autocast: str, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if not autocast:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, autocast))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What torch or the user's code raises becomes our error: a row of the table."""
    try:
        yield
    except RedlineError:
        raise
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(str(error).split("\n")[0] or "no memory left") from error
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise RunError(f"{type(error).__name__}: {first}") from error
