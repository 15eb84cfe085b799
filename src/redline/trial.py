"""One candidate's way through its child processes: build, open, verify, hold for the race."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from redline import backends, errors, knobs, machine
from redline.backends.base import Backend, Candidate
from redline.backends.worker import pack_module, pack_program
from redline.capture.cases import Case
from redline.capture.reference import Reference
from redline.engine.manifest import Part
from redline.graph.model import Model
from redline.lowering import Variant
from redline.measure import accuracy
from redline.measure.child import Child
from redline.measure.record import Outcome, Record
from redline.search.cache import Cache, make_key
from redline.variants import Variants

_HOLD = 0.5  # of the free memory: what candidates may hold together while they wait for the race
_PATIENCE = 20.0  # a run may take this many times eager's time, and at least so many seconds
_STOPPED = "stopped before it was ready"


class SkippedError(errors.BackendError):
    """There was no time left for a candidate."""


_OUTCOMES: tuple[tuple[type[errors.RedlineError], Outcome], ...] = (
    (SkippedError, "skipped"),
    (errors.MissingError, "missing"),
    (errors.RefusedError, "refused"),
    (errors.CrashedError, "crashed"),
    (errors.TimedOutError, "timed out"),
    (errors.OutOfMemoryError, "out of memory"),
)


def outcome_of(error: errors.RedlineError) -> Outcome:
    """The row's outcome for an error.

    Example:
        >>> outcome_of(errors.TimedOutError("no answer within 3 s"))
        'timed out'
    """
    return next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), "failed")


@dataclass
class Bench:
    """What every trial of one optimize() shares.

    Attributes:
        cases, reference: the inputs to verify on and what must come out.
        yardstick: eager float32's own error against the reference.
        eager_seconds: one eager call, for the patience with a run.
        cancelled: Ctrl-C was pressed; held: bytes that waiting candidates hold together.
        busy: cores that other processes used when the race began; 0.0 on a quiet machine.
        variants: the graphs of lower precision by name.
        folder: a private temporary folder, removed by whoever made it.
    """

    model: Model
    cases: Sequence[Case]
    reference: Reference
    yardstick: float
    eager_seconds: float
    folder: Path
    cache: Cache | None
    lock: threading.Lock = field(default_factory=threading.Lock)
    cancelled: bool = False
    held: int = 0
    busy: float = 0.0
    variants: dict[str, Variant] = field(default_factory=dict)

    def take(self, made: Variants) -> None:
        """Let the graphs of lower precision that are ready take part."""
        self.cancelled = made.cancelled
        self.variants = {variant.name: variant for variant in made.ready}

    @cached_property
    def memory(self) -> int:
        """Bytes one candidate may use."""
        return knobs.number("REDLINE_MEMORY_LIMIT") or int(0.8 * machine.memory_available())

    @cached_property
    def quantised(self) -> bool:
        """The model as it was given rounds to few levels, and a level is no rounding error."""
        graph = self.model.graph
        return graph is not None and any(n.op_type == "QuantizeLinear" for n in graph.graph)

    @cached_property
    def signature(self) -> dict[str, Any]:
        """The signature as plain data, for the children."""
        return msgspec.to_builtins(self.model.signature)  # type: ignore[no-any-return]

    def graph(self, precision: str = "fp32") -> Path | None:
        """The ONNX file that the children read, written by whoever made this bench."""
        if precision in self.variants:
            return self.variants[precision].path
        return self.folder / "graph.onnx" if self.model.graph is not None else None

    def graph_hash(self, precision: str = "fp32") -> str:
        """The hash of that graph."""
        known = self.variants.get(precision)
        return known.graph_hash if known else self.model.graph_hash

    @cached_property
    def _packed_program(self) -> bytes:
        return pack_program(self.model.program)

    @cached_property
    def _packed_module(self) -> bytes:
        return pack_module(self.model.module)

    def ingredients(self, backend: Backend, precision: str = "fp32") -> dict[str, Any]:
        """What a build child must be given: the graph's path, or the packed program or module."""
        with self.lock:  # cached_property alone would pack twice in two threads
            program = module = None
            if backend.wants == "program" and self.model.program is not None:
                program = self._packed_program
            elif backend.wants != "graph":
                module = self._packed_module
        return {
            "graph": str(self.graph(precision) or "") or None,
            "program": program,
            "module": module,
        }

    def part_key(self, candidate: Candidate) -> str:
        """The key of a built part: graph, machine, backend version and setting."""
        return make_key(
            graph=self.graph_hash(candidate.precision),
            signature=self.signature,
            machine=machine.fingerprint(),
            version=backends.get(candidate.backend).version(),
            candidate=candidate.id,
        )


class Trial:
    """One candidate: its record so far, its part, and the child that holds it ready."""

    def __init__(self, bench: Bench, candidate: Candidate) -> None:
        self.bench = bench
        self.candidate = candidate
        self.backend = backends.get(candidate.backend)
        self.record = Record(
            id=candidate.id,
            backend=candidate.backend,
            outcome="skipped",
            setting=candidate.setting,
            precision=candidate.precision,
            packaged=not self.local,
        )
        self.part: Part | None = None
        self.folder: Path | None = None
        self.child: Child | None = None
        self.hold = True
        self._ready = False
        self._killed = False

    @property
    def local(self) -> bool:
        """It runs the module itself and cannot be packaged."""
        return self.backend.local or self.candidate.setting.get("mode") == "jit"

    @property
    def graph(self) -> Path | None:
        """The graph of its precision."""
        return self.bench.graph(self.candidate.precision)

    def prepare(self, deadline: float) -> None:
        """Build, open and verify; whatever happens ends up in the record, never as an exception."""
        try:
            self._check_time(deadline)
            if not self.local:
                self._build(deadline)
            self._open(deadline)
            self._verify(deadline)
        except errors.RedlineError as error:
            self.fail(error)
        finally:
            self._let_go_if_large()

    def turn(self, seconds: float) -> list[float]:
        """One turn in the race: seconds a call."""
        if self.child is None:
            self._open(time.monotonic() + 60)
        child = self._held()
        patience = self._patience()
        if not self._ready:
            inputs = list(self.bench.cases[0].inputs)
            child.call("redline.measure.work:prepare", inputs=inputs, timeout=4 * patience)
            self._ready = True
        samples: list[float] = child.call(
            "redline.measure.work:time_block",
            seconds=seconds,
            timeout=patience + seconds,
            watch=False,
        )
        if not self.hold:
            self.close()
        return samples

    def fail(self, error: errors.RedlineError) -> None:
        """Turn the record into a failure and let go of the child."""
        if self.bench.cancelled and isinstance(error, errors.ChildError):
            error = SkippedError(_STOPPED)
        reason = f"{error.what} ({error.where})" if error.where else error.what
        self.record = replace(
            self.record, outcome=outcome_of(error), reason=reason, hint=error.hint
        )
        self.close()

    def close(self) -> None:
        """End the child, if one is held."""
        child, self.child, self._ready = self.child, None, False
        if child:
            child.close()

    def kill(self) -> None:
        """End a prepare() in another thread: its process, or the one it is about to start."""
        self._killed = True
        if child := self.child:
            child.kill()

    def _start(self) -> Child:
        """A new child; a kill() either finds it in self.child, or is found here."""
        self.child = child = Child(memory=self.bench.memory)
        if self._killed:
            raise SkippedError(_STOPPED)
        return child

    def _check_time(self, deadline: float) -> None:
        if self.bench.cancelled or time.monotonic() > deadline:
            raise SkippedError("no time was left to try it", hint="give a larger budget")

    def _build(self, deadline: float) -> None:
        key = self.bench.part_key(self.candidate)
        cached = self.bench.cache.part(key) if self.bench.cache else None
        if cached:
            self.folder, self.part = cached, read_part(cached)
        else:
            self.folder, self.part = self._build_fresh(deadline, key)
        size = sum((self.folder / name).stat().st_size for name in self.part.files)
        if self.part.uses_graph and self.graph:
            size += self.graph.stat().st_size
        self.record = replace(
            self.record,
            size=size,
            operators=self.part.operators,
            tolerance_class=self.part.tolerance_class,
        )

    def _build_fresh(self, deadline: float, key: str) -> tuple[Path, Part]:
        folder = Path(tempfile.mkdtemp(dir=self.bench.folder))
        start = time.monotonic()
        with self._start() as child:
            described = child.call(
                "redline.backends.worker:build",
                timeout=max(1.0, deadline - start),
                entry=backends.BACKENDS[self.candidate.backend],
                candidate=msgspec.to_builtins(self.candidate),
                signature=self.bench.signature,
                example=list(self.bench.model.example),
                folder=str(folder),
                fresh=self.bench.cache is None,
                **self.bench.ingredients(self.backend, self.candidate.precision),
            )
        self.child = None
        self.record = replace(self.record, build_seconds=time.monotonic() - start)
        part = replace(msgspec.convert(described, Part), precision=self.candidate.precision)
        (folder / "part.json").write_bytes(msgspec.json.encode(part))
        return (self.bench.cache.keep_part(key, folder) if self.bench.cache else folder), part

    def _open(self, deadline: float) -> None:
        child = self._start()
        timeout = max(5.0, deadline - time.monotonic())
        if self.local:
            child.call(
                "redline.backends.worker:open_module",
                timeout=timeout,
                entry=backends.BACKENDS[self.candidate.backend],
                candidate=msgspec.to_builtins(self.candidate),
                signature=self.bench.signature,
                module=self.bench.ingredients(self.backend)["module"],
            )
            return
        child.call(
            "redline.measure.work:open_runner",
            timeout=timeout,
            part=msgspec.to_builtins(self.part),
            folder=str(self.folder),
            graph=str(self.graph) if self.graph else None,
            signature=self.bench.signature,
        )

    def _verify(self, deadline: float) -> None:
        """Run every case in the child and hold the outputs against the reference."""
        child, worst = self._held(), 0.0
        kind = "quantised" if self.bench.quantised else self.record.tolerance_class
        self.record = replace(self.record, tolerance_class=kind)
        allowed = accuracy.tolerance(self.bench.yardstick, kind)
        for case, expected in zip(self.bench.cases, self.bench.reference.expected, strict=True):
            timeout = self._patience()
            if self.local:  # compiling in the framework happens at the first call
                timeout = max(timeout, deadline - time.monotonic())
            outputs = child.call(
                "redline.measure.work:run", inputs=list(case.inputs), timeout=timeout
            )
            if accuracy.not_a_number(outputs, expected):
                self._reject("not a number", None, allowed, f"NaN or Inf on case {case.name!r}")
                return
            if self.candidate.precision != "fp32":  # by its accuracy, when it is about to win
                continue
            worst = max(worst, accuracy.error(outputs, expected))
            if worst > allowed:
                self._reject(
                    "wrong result", worst, allowed, _wrong(outputs, expected, worst, allowed, case)
                )
                return
        if self.candidate.precision != "fp32":
            outputs = child.call(
                "redline.measure.work:run",
                inputs=list(self.bench.cases[0].inputs),
                timeout=self._patience(),
            )
            worst = accuracy.error(outputs, self.bench.reference.expected[0])
            allowed = 2 * worst + 0.01  # what another machine's rounding may make of it
        peak = child.call("redline.measure.work:peak_memory")
        self.record = replace(
            self.record, outcome="ok", error=worst, tolerance=allowed, peak_memory=peak
        )

    def _reject(self, outcome: Outcome, error: float | None, allowed: float, reason: str) -> None:
        self.record = replace(
            self.record, outcome=outcome, error=error, tolerance=allowed, reason=reason
        )
        self.close()

    def _patience(self) -> float:
        return max(_PATIENCE, _PATIENCE * self.bench.eager_seconds)

    def _held(self) -> Child:
        if self.child is None:
            raise errors.RunError("the candidate's process is gone")
        return self.child

    def _let_go_if_large(self) -> None:
        """With many large models waiting, memory would run out: reopen for each turn instead."""
        if self.child is None:
            return
        with self.bench.lock:
            self.bench.held += self.record.peak_memory or 0
            self.hold = self.bench.held <= _HOLD * self.bench.memory
        if not self.hold:
            self.close()


def read_part(folder: Path) -> Part:
    """The part that lies in a folder of the cache."""
    return msgspec.json.decode((folder / "part.json").read_bytes(), type=Part)


def discard(folder: Path) -> None:
    """Remove a folder of ours; a file that will not go is left to the system."""
    shutil.rmtree(folder, ignore_errors=True)


def _wrong(
    outputs: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    worst: float,
    allowed: float,
    case: Case,
) -> str:
    shapes = [(y.shape, ref.shape) for y, ref in zip(outputs, expected, strict=False)]
    for got, wanted in shapes:
        if got != wanted:
            return f"shape {got} where the reference has {wanted}, on case {case.name!r}"
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs where the reference has {len(expected)}"
    return f"error {worst:.2g} is above the allowed {allowed:.2g}, on case {case.name!r}"
