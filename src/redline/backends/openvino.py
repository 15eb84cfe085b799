"""OpenVINO on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from redline.backends.base import Candidate, Missing, Source, Traits
from redline.engine.manifest import Part
from redline.errors import BuildError, RefusedError


class OpenVinoBackend:
    """Settings: threads, and the hint that decides its streams: latency or throughput."""

    name = "openvino"
    wants: Literal["graph", "program", "module"] = "graph"
    local = False

    def missing(self) -> Missing | None:
        try:
            version("openvino")
        except PackageNotFoundError:
            return Missing("openvino is not installed", "pip install 'redline[openvino]'")
        return None

    def lacks(self, precision: str) -> str:
        return ""

    def version(self) -> str:
        return version("openvino")

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        if not traits.has_graph:
            raise RefusedError("the model has no ONNX graph", hint="see the notes on its export")
        many = traits.threads
        found = [Candidate("openvino", {"threads": many, "hint": "LATENCY"}, rank=20)]
        if many > 1:
            found.append(Candidate("openvino", {"threads": 1, "hint": "LATENCY"}, rank=21))
            found.append(Candidate("openvino", {"threads": many, "hint": "THROUGHPUT"}, rank=22))
        return found

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        """The part is a setting: its runner reads the engine's graph, as quickly as OpenVINO's own
        IR, which would hold the weights a second time.
        """
        if source.graph is None:
            raise RefusedError("the model has no ONNX graph")
        return Part(
            "openvino",
            candidate.setting,
            uses_graph=True,
            needs={"openvino": self.version()},
            operators=_compiled_operators(source.graph, candidate),
        )


@cache
def _core() -> Any:
    """One that is never let go; runtime/run_openvino.py says why."""
    import openvino

    return openvino.Core()


def _compiled_operators(graph: Path, candidate: Candidate) -> dict[str, int]:
    """Layer types of the model that OpenVINO will run; constants are not work."""
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": str(candidate.setting["hint"]),
        "INFERENCE_NUM_THREADS": int(candidate.setting["threads"]),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    try:
        core = _core()
        compiled = core.compile_model(core.read_model(str(graph)), "CPU", settings)
        layers = compiled.get_runtime_model().get_ops()
    except Exception as error:
        raise BuildError(f"openvino cannot compile the graph: {str(error)[:500]}") from error
    kinds = Counter(str(layer.get_rt_info()["layerType"].astype(str)) for layer in layers)
    return {
        kind: count for kind, count in kinds.items() if kind not in ("Const", "Input", "Output")
    }
