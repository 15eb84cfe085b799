"""tune(): measure the step, change one thing at a time, keep what gains, hand back the lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from redline.errors import InputError, RedlineError, UnknownNameError
from redline.layout.finder import copies
from redline.measure.statistics import ratio
from redline.report import units
from redline.search.goal import quantity
from redline.search.race import Lane, race
from redline.train.tuning import batch as batch_size
from redline.train.tuning import bounds, faults, feeds, rates
from redline.train.tuning.decide import decide
from redline.train.tuning.guard import Quiet, untouched
from redline.train.tuning.loop import Loop, fork, loss_of, move, setup_of, tensors
from redline.train.tuning.result import Trial, Tuning
from redline.train.tuning.rig import Rig
from redline.train.tuning.setup import Change, Setup
from redline.train.tuning.source import edits
from redline.train.tuning.stages import LATER, STAGES, Facts, Stage

_RACE = 8.0  # seconds one race may take, at most; and at most this part of what is left:
_PART = 0.25
_LAST = 0.15  # of the budget: kept for the race of everything against the loop as it was
_COMPILE = 20.0  # seconds that must be left before something is compiled
_STEPS = 8  # of the loss check
_EXACT, _ROUNDED = 1e-3, 3e-2  # relative drift that is allowed
Meter = Callable[[Loop, Setup, list[Any] | None], Rig]


def tune(
    model: nn.Module | Loop,
    optimizer: torch.optim.Optimizer | None = None,
    loss: Callable[..., torch.Tensor] | None = None,
    loader: Iterable[Any] | None = None,
    *,
    budget: float | str = "60s",
    skip: Sequence[str] = (),
    say: Callable[[str], None] = lambda what: None,
    meter: Meter = Rig,
    **habits: Any,
) -> Tuning:
    """Find what bounds a training step, and the lines that make it faster.

    Everything is tried on copies; model, optimizer, loader, random numbers, threads and flags are
    afterwards as they were. A change is kept when the whole 95 % interval of its gain, from steps
    with and without it in turns, is above 1, its median is at least 2 %, and the first losses stay
    as they were.

    Args:
        model: the module, or a Loop that holds all the parts.
        optimizer, loss, loader, habits: as in Loop; habits are its other fields.
        budget: seconds, or text such as "3m". What there was no time for is listed.
        skip: stages to leave out: input, loop, optimizer, precision, layout, threads, compile,
            batch, lr.
        say: called with what is being done.
        meter: makes the thing that is timed; for tests.

    Raises:
        InputError: parts that do not fit together, or a loop that writes to the user's own model.
        RunError: the loop's own step fails.

    Example:
        >>> print(redline.train.tune(model, optimizer, nn.CrossEntropyLoss(), loader, budget="30s"))
    """
    loop = model if isinstance(model, Loop) else _loop(model, optimizer, loss, loader, habits)
    seconds = quantity(budget, "time", "budget")
    for name in skip:
        if name not in (*STAGES, *LATER):
            raise UnknownNameError("stage", name, (*STAGES, *LATER))
    with untouched(loop), Quiet():
        tuner = _Tuner(loop, seconds, frozenset(skip), say, meter)
        return tuner.run()


def _loop(model: Any, optimizer: Any, loss: Any, loader: Any, habits: dict[str, Any]) -> Loop:
    if optimizer is None or loader is None:
        raise InputError(
            "optimizer and loader are needed", hint="tune(model, optimizer, loss, ...)"
        )
    try:
        return Loop(model, optimizer, loss, loader, **habits)
    except TypeError as error:
        raise InputError(str(error), hint="the fields of redline.train.Loop") from None


@dataclass
class _Tuner:
    """One run of tune()."""

    loop: Loop
    budget: float
    skip: frozenset[str]
    say: Callable[[str], None]
    meter: Meter
    start: float = field(default_factory=time.monotonic)
    trials: list[Trial] = field(default_factory=list)
    compile_seconds: float = 0.0
    restart: float = 0.0  # of a step: what the starts of epochs take
    _reference: tuple[list[float], float] | None = None

    @property
    def left(self) -> float:
        """Seconds for trials; the last race has its own."""
        return self.budget * (1 - _LAST) - (time.monotonic() - self.start)

    def run(self) -> Tuning:
        """The whole way."""
        loop = self.loop
        self.original = self.setup = setup_of(loop)
        fork(loop)  # says at once what cannot be copied
        self.say("first batches")
        self.batches = feeds.first_batches(loop, self.original)
        self.say("where the time goes")
        phases = self._phases(self.original)
        peaks = bounds.probe(loop.device)
        work, memory = self._count()
        self.facts = Facts(_gap(phases), self.restart, self.batches[0])
        found = self._faults(phases)
        for group, stages in STAGES.items():
            for stage in stages:
                self._stage(group, stage)
        gain, before, after, drift = self._together(phases)
        after_phases = phases if gain is None else self._phases(self.setup)
        offer, rate = self._offers()
        return Tuning(
            model=type(loop.model).__name__, device=str(loop.device),
            bound=bounds.judge(phases, work, peaks), phases=phases, phases_after=after_phases,
            work=work, peaks=peaks, memory=memory, samples=_samples(self.batches[0]),
            before=before, after=after, gain=gain, faults=tuple(found), trials=tuple(self.trials),
            edits=tuple(edits(loop.source, self.original, self.setup, loop.device.type)),
            original=self.original, setup=self.setup, drift=drift,
            compile_seconds=self.compile_seconds, batch=offer, rate=rate,
            seconds=time.monotonic() - self.start, budget=self.budget,
        )  # fmt: skip

    def _phases(self, setup: Setup) -> dict[str, float]:
        rig = self.meter(self.loop, setup, None)
        try:
            found = rig.phases(seconds=min(3.0, self.budget / 10))
            self.restart = rig.restart_share() / max(sum(found.values()), 1e-12)
            return found
        finally:
            rig.close()

    def _count(self) -> tuple[bounds.Work, bounds.Memory]:
        rig = Rig(self.loop, replace(self.original, compile=False), self.batches)
        try:
            rig.losses(self.batches, 1, 0)  # optimizers make their state in the first step
            return bounds.count(rig, self.batches[0])
        finally:
            rig.close()

    def _faults(self, phases: dict[str, float]) -> list[faults.Fault]:
        slow = None
        if self.facts.gap > faults.INPUT_GAP and feeds.is_tunable(self.loop):
            slow = feeds.slowest_function(self.loop)
        return faults.find(self.loop, self.original, phases, self.batches[0], slow)

    def _stage(self, group: str, stage: Stage) -> None:
        title = (stage.__doc__ or "").rstrip(".").split(":")[0]
        if group in self.skip:
            self._untried(title, "left out by skip")
            return
        proposal = stage(self.loop, self.setup, self.facts)
        if isinstance(proposal, str):
            self._untried(title, proposal)
            return
        needed = _COMPILE if group == "compile" else 0.5
        if self.left < needed:
            for one in proposal:
                self._untried(one.name, "no time was left; give a larger budget")
            return
        self._try(proposal)

    def _try(self, proposal: Sequence[Change]) -> None:
        self.say(" | ".join(one.name for one in proposal))
        now = "as it is now"
        rigs: dict[str, Rig] = {}
        lanes: list[Lane] = []
        batches = None if self.facts.gap > faults.INPUT_GAP else self.batches
        try:
            rivals = {now: self.setup, **{one.name: one.of(self.setup) for one in proposal}}
            for name, setup in rivals.items():
                try:
                    rigs[name] = self.meter(self.loop, setup, batches)
                    rigs[name].turn(0.0)  # lazy state and compiling stay out of the race
                    lanes.append(Lane(name, rigs[name].turn))
                except RedlineError as error:
                    if name == now:
                        raise
                    self.trials.append(Trial(name, "failed", None, error.what))
            deadline = time.monotonic() + min(_RACE, max(1.0, self.left * _PART))
            finalists = race(lanes, deadline, keep=[now])
            self._weigh(proposal, lanes, finalists, rigs)
        finally:
            for rig in rigs.values():
                rig.close()

    def _weigh(
        self, proposal: Sequence[Change], lanes: list[Lane], finalists: list[Lane],
        rigs: dict[str, Rig],
    ) -> None:  # fmt: skip
        now, *rivals = lanes
        if now.failure is not None:
            raise now.failure
        kept, verdicts = decide(now, rivals, finalists)
        changes = {one.name: one for one in proposal}
        for name, verdict in verdicts.items():
            trial = Trial(name, verdict.outcome, verdict.gain, verdict.why)
            if name == kept:
                lane = next(one for one in rivals if one.id == name)
                trial = self._confirm(changes[name], trial, now, lane, rigs[name])
            self.trials.append(trial)

    def _confirm(self, change: Change, trial: Trial, now: Lane, lane: Lane, rig: Rig) -> Trial:
        """The last hurdles of a change that is faster: its loss, and the price of compiling."""
        setup = change.of(self.setup)
        why = f"{trial.why}; {change.why}" if change.why else trial.why
        if setup.compile and not self.setup.compile:
            self.compile_seconds = rig.compile_seconds
            even = rig.compile_seconds / max(now.median - lane.median, 1e-12)
            why += f"; compiling took {rig.compile_seconds:.0f} s, paid back after {even:.0f} steps"
            if even > (total := self._steps_in_all()):
                return replace(trial, outcome="no gain", why=f"{why}, of {total} in all")
        if "layout" in dict(change.fields):
            before, after = self._copied(self.setup), self._copied(setup)
            why += (
                f"; hidden copies: {units.size(before)} a forward before, {units.size(after)} now"
            )
            if after > before:
                return replace(trial, outcome="hidden copies", why=why)
        drift = None
        if not set(dict(change.fields)) <= _NOT_ARITHMETIC:
            self.say(f"loss check of {change.name}")
            drift, allowed = self._drift(setup)
            if drift > allowed:
                why = f"the first losses differ by {drift:.1e}, {allowed:.0e} is allowed"
                return replace(trial, outcome="changes the loss", why=why, drift=drift)
        self.setup = setup
        if "workers" in dict(change.fields) or "feed" in dict(change.fields):
            self._look_again()
        return replace(trial, why=why, drift=drift)

    def _look_again(self) -> None:
        phases = self._phases(self.setup)
        self.facts = Facts(_gap(phases), self.restart, self.batches[0])

    def _copied(self, setup: Setup) -> int:
        """Bytes that one forward copies, also inside kernels."""
        rig = Rig(self.loop, replace(setup, compile=False), self.batches)
        batch = move(self.batches[0], self.loop.device, False, setup.layout)
        try:
            found = copies(lambda: loss_of(self.loop, rig.parts, rig.model, batch), ())
            return sum(one.bytes for one in found)
        finally:
            rig.close()

    def _drift(self, setup: Setup) -> tuple[float, float]:
        """(largest relative difference of the first losses, what is allowed). Where the model
        itself draws random numbers, twice what another seed makes is allowed.
        """
        if self._reference is None:
            ours, other = (self._losses(self.original, seed) for seed in (0, 1))
            self._reference = ours, _apart(other, ours)
        reference, floor = self._reference
        rounded = setup.autocast != self.original.autocast or setup.tf32 != self.original.tf32
        allowed = max(_ROUNDED if rounded else _EXACT, 2 * floor)
        return _apart(self._losses(setup, 0), reference), allowed

    def _losses(self, setup: Setup, seed: int) -> list[float]:
        rig = Rig(self.loop, setup, self.batches)
        try:
            return rig.losses(self.batches, _STEPS, seed)
        finally:
            rig.close()

    def _together(
        self, phases: dict[str, float]
    ) -> tuple[tuple[float, float, float] | None, float, float, float | None]:
        """Everything that was kept against the loop as it was: (gain, before, after, drift)."""
        step = sum(phases.values())
        if self.setup == self.original:
            return None, step, step, None
        self.say("everything together")
        rigs = [self.meter(self.loop, setup, None) for setup in (self.original, self.setup)]
        try:
            lanes = [Lane(name, rig.turn) for name, rig in zip("ab", rigs, strict=True)]
            for rig in rigs:
                rig.turn(0.0)
            deadline = time.monotonic() + max(2.0, self.budget * _LAST)
            race(lanes, deadline, keep=["a", "b"])
        finally:
            for rig in rigs:
                rig.close()
        for lane in lanes:
            if lane.failure is not None:
                raise lane.failure
        gain = ratio(lanes[0].rounds, lanes[1].rounds)
        if gain[1] <= 1:
            self.setup = self.original
            self.trials = [
                replace(one, outcome="no gain", why="gains nothing on the whole loop")
                if one.outcome == "kept" else one for one in self.trials
            ]  # fmt: skip
            return None, lanes[0].median, lanes[0].median, None
        return gain, lanes[0].median, lanes[1].median, self._drift(self.setup)[0]

    def _offers(self) -> tuple[batch_size.BatchOffer | None, rates.LearningRate | None]:
        offer, rate = None, None
        left = self.budget - (time.monotonic() - self.start)
        if "batch" in self.skip:
            self._untried("A larger batch", "left out by skip")
        elif left < 10:
            self._untried("A larger batch", "no time was left; give a larger budget")
        else:
            self.say("larger batches")
            try:
                offer = batch_size.offer(self.loop, self.setup, self.batches, left / 2)
            except RedlineError as error:
                self.trials.append(Trial("a larger batch", "failed", None, error.what))
        left = self.budget - (time.monotonic() - self.start)
        if "lr" in self.skip:
            self._untried("Learning-rate range test", "left out by skip")
        elif left < 2:
            self._untried("Learning-rate range test", "no time was left; give a larger budget")
        else:
            self.say("learning-rate range test")
            eager = replace(self.setup, compile=False)
            rate = rates.range_test(self.loop, eager, self.batches, time.monotonic() + left)
        return offer, rate

    def _untried(self, title: str, why: str) -> None:
        self.trials.append(Trial(title, "not tried", None, why))

    def _steps_in_all(self) -> int:
        try:
            return len(self.loop.loader) * self.loop.epochs  # type: ignore[arg-type]
        except TypeError:
            return sys.maxsize


_NOT_ARITHMETIC = {"feed", "workers", "persistent", "prefetch", "pin", "log_every"}


def _gap(phases: dict[str, float]) -> float:
    return phases["input"] / max(sum(phases.values()), 1e-12)


def _apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Largest difference over the largest loss; a NaN on one side alone is infinitely far."""
    scale = max((abs(one) for one in theirs if one == one), default=0.0) or 1.0
    far = 0.0
    for one, other in zip(ours, theirs, strict=True):
        apart = abs(one - other) / scale
        if apart != apart:
            apart = 0.0 if one != one and other != other else float("inf")
        far = max(far, apart)
    return far


def _samples(batch: Any) -> int:
    return next((one.shape[0] for one in tensors(batch) if one.ndim), 0)
