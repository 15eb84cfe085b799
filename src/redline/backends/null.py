"""The null backend: builds nothing, or misbehaves on purpose. For tests of everything around it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from redline.backends.base import Candidate, Missing, Source, Traits
from redline.engine.manifest import Part
from redline.errors import BuildError


class NullBackend:
    """Behaviours of the build: "build-crash", "build-hang", "build-memory", "build-error"; all
    others are the runner's (see runtime/run_null.py).
    """

    name = "null"
    wants: Literal["graph", "program", "module"] = "graph"
    local = False

    def missing(self) -> Missing | None:
        return None

    def lacks(self, precision: str) -> str:
        return "it computes nothing"

    def version(self) -> str:
        return "1"

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        return [Candidate("null", {"behaviour": "right", "seconds": 0.0, "error": 0.0}, rank=90)]

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        behaviour = str(candidate.setting.get("behaviour", "right"))
        match behaviour:
            case "build-crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "build-hang":
                time.sleep(10**6)
            case "build-memory":
                _allocate_without_end()
            case "build-error":
                raise BuildError("the null backend was told to fail", hint="ask for another one")
        return Part("null", candidate.setting, uses_graph=source.graph is not None)


def _allocate_without_end() -> None:
    kept = []
    while True:
        kept.append(np.ones(4 << 20))
        time.sleep(0.002)
