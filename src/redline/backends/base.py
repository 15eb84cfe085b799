"""The build half of a backend: what it needs, which settings it would try, and how it builds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from redline.engine.manifest import Part, Setting
from redline.signature import Signature

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Missing:
    """Why a backend cannot be used on this machine, and the command that mends it."""

    reason: str
    command: str = ""


@dataclass(frozen=True)
class Traits:
    """What candidates() may know about the model without opening it."""

    signature: Signature
    threads: int
    has_graph: bool
    has_program: bool
    has_module: bool
    operators: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One backend with one setting. The first of a backend's candidates is its plain default.

    `rank` orders simplicity: on a tie the lower rank wins (eager 0, ONNX Runtime 10, ...).
    """

    backend: str
    setting: Setting = field(default_factory=dict)
    precision: str = "fp32"
    rank: int = 50

    @property
    def id(self) -> str:
        """One line that names it, e.g. "onnxruntime threads=2 level=all"."""
        words = [f"{key}={value}" for key, value in self.setting.items()]
        tail = [] if self.precision == "fp32" else [self.precision]
        return " ".join([self.backend, *tail, *words])


@dataclass(frozen=True)
class Source:
    """What a build may read, inside the child process that builds.

    `fresh`: nothing that an earlier build measured may be taken over.
    """

    signature: Signature
    example: tuple[np.ndarray, ...]
    graph: Path | None = None
    program: Callable[[], torch.export.ExportedProgram] | None = None
    module: Callable[[], torch.nn.Module] | None = None
    fresh: bool = False


class Backend(Protocol):
    """The seam. A new backend is one of these, a runner in runtime/, and a row in the docs.

    `wants` says what the build child must be given: "graph", "program" or "module".
    `local` backends (eager) have no part to package: they run the module (see LocalBackend).
    """

    name: str
    wants: Literal["graph", "program", "module"]
    local: bool

    def missing(self) -> Missing | None:
        """None when usable here; cheap, and never raises."""
        ...

    def lacks(self, precision: str) -> str:
        """Why it is not offered a graph of lower precision, by its method ("int8", "int8-dynamic",
        "int4-weights", ...); "" where it has kernels for it.
        """
        ...

    def version(self) -> str:
        """What decides its speed and numbers, for the key of the timing cache."""
        ...

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        """Settings worth trying, the plain default first; raises RefusedError with the reason."""
        ...

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        """Write the part into `folder` and describe it. Raises RefusedError, BuildError."""
        ...


class LocalBackend(Backend, Protocol):
    """A backend that can also run the module where it is, without a part."""

    def open_module(
        self, module: torch.nn.Module, candidate: Candidate, signature: Signature
    ) -> Runner:
        """The module behind the runner's seam."""
        ...


class Runner(Protocol):
    """What runs: the same shape as redline.runtime.runner.Runner, which lies above us."""

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Arrays in the order of signature.inputs -> arrays in the order of .outputs."""
        ...

    def close(self) -> None:
        """Let go of memory and threads."""
        ...
