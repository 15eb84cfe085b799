"""One candidate's story as plain data: what was tried, what came out, and why it won or lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from redline.engine.manifest import Setting

Outcome = Literal[
    "ok",  # built, verified, timed
    "missing",  # the backend is not installed here
    "refused",  # it cannot take this model
    "failed",  # building or running raised an error
    "crashed",  # its process died by a signal
    "timed out",
    "out of memory",
    "not a number",  # NaN or Inf where the reference has none
    "wrong result",  # error above the tolerance
    "skipped",  # no budget left, or behind after the first round
]


@dataclass(frozen=True)
class Timing:
    """Seconds for one call: median over blocks, 95 % bootstrap interval, and the block medians."""

    median: float
    low: float
    high: float
    p99: float
    blocks: tuple[float, ...]


@dataclass(frozen=True)
class Group:
    """One group of operators that a compiled engine runs as one piece of code.

    Attributes:
        name: the operators' names in the graph, joined by "+".
        kernel: the code that runs it, e.g. "conv_tile<14, 2>".
        flops, bytes: its arithmetic, and the least memory it reads and writes.
        seconds: median over calls; None where it was not measured.
    """

    name: str
    kernel: str
    flops: float = 0.0
    bytes: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True)
class Record:
    """One row of the report.

    Attributes:
        id: the candidate in one line, e.g. "onnxruntime threads=2".
        reason: for anything but the winner, why not; for a failure, what happened.
        hint: the command or change that would help.
        build_seconds: wall time of the build child.
        timing: seconds a call at the opt sizes; None if it never ran.
        throughput: items a second (batch of the opt sizes / median).
        peak_memory: bytes of resident memory of the process that ran it, at its highest.
        size: bytes its part takes in the engine file, graph included where it uses it.
        error: max|y - ref| / rms(ref) over all cases against the float64 reference.
        tolerance: what `error` had to stay under.
        operators: operator -> count after the backend's graph optimisation.
        ratio: this latency over the winner's: (median, low, high) from interleaved blocks.
        winner: it was chosen.
        packaged: it can be stored in an engine file.
        from_cache: its numbers come from the timing cache.
        groups: what a compiled engine runs, in order; missed: fusions it refused, and why.
    """

    id: str
    backend: str
    outcome: Outcome
    setting: Setting = field(default_factory=dict)
    precision: str = "fp32"
    reason: str = ""
    hint: str = ""
    build_seconds: float | None = None
    timing: Timing | None = None
    throughput: float | None = None
    peak_memory: int | None = None
    size: int | None = None
    error: float | None = None
    tolerance: float | None = None
    tolerance_class: str = "fp32"
    accuracy: float | None = None
    operators: dict[str, int] = field(default_factory=dict)
    ratio: tuple[float, float, float] | None = None
    winner: bool = False
    packaged: bool = True
    from_cache: bool = False
    groups: tuple[Group, ...] = ()
    missed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kept:
    """One layer of a compressed graph: what it is computed in, why, what it costs in accuracy."""

    node: str
    operator: str
    precision: str
    reason: str = ""
    sensitivity: float | None = None


@dataclass(frozen=True)
class Tried:
    """A graph of lower precision.

    Attributes:
        name: e.g. "int8", or "int8-keep4" with four layers in float.
        size: bytes of the graph.
        drop, max_drop: what it loses against fp32, and what it may lose; how that is measured.
        seconds, fp32_seconds: a few calls in ONNX Runtime, side by side with the graph in fp32; for
            comparing graphs of which not all are in the race.
    """

    name: str
    size: int
    drop: float
    max_drop: float
    how: str
    layers: tuple[Kept, ...] = ()
    seconds: float | None = None
    fp32_seconds: float | None = None


@dataclass(frozen=True)
class Study:
    """Everything one optimize() learned; a report is made from this and nothing else.

    Attributes:
        model: its name; `origin`: where it came from (module, onnx, ...).
        machine: the machine card as a dict (redline.machine.Machine via msgspec.to_builtins).
        goal: in words, e.g. "minimize latency"; `verdict`: met, or missed by how much.
        operators: type -> count before optimisation; flops, bytes (least memory traffic) and
            parameters of the graph at its opt sizes.
        yardstick: eager float32's own error against the float64 reference, and how it was made.
        notes: (what, where, hint) from capture.
        compressed: the graphs of lower precision, those that lost too much among them.
        seconds: wall time of the whole optimize; budget: what was promised.
    """

    model: str
    origin: str
    machine: dict[str, object]
    goal: str
    verdict: str
    records: tuple[Record, ...]
    operators: dict[str, int] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    parameters: int = 0
    yardstick: float | None = None
    reference: str = ""
    notes: tuple[tuple[str, str, str], ...] = ()
    seconds: float = 0.0
    budget: float = 0.0
    inputs: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    compressed: tuple[Tried, ...] = ()
