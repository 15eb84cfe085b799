"""ONNX Runtime on the CPU: the portable part of every engine that has a graph."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from redline.backends.base import Candidate, Missing, Source, Traits
from redline.engine.manifest import Part, Setting
from redline.errors import BuildError, RefusedError

_LEVELS = {"all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED"}


class OnnxRuntimeBackend:
    """Settings: threads, graph level ("extended" leaves out the NCHWc layout), spinning threads."""

    name = "onnxruntime"
    wants: Literal["graph", "program", "module"] = "graph"
    local = False

    def missing(self) -> Missing | None:
        try:
            version("onnxruntime")
        except PackageNotFoundError:
            return Missing("onnxruntime is not installed", "pip install onnxruntime")
        return None

    def lacks(self, precision: str) -> str:
        return ""

    def version(self) -> str:
        return version("onnxruntime")

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        if not traits.has_graph:
            raise RefusedError("the model has no ONNX graph", hint="see the notes on its export")
        many = traits.threads
        found = [Candidate("onnxruntime", {"threads": many, "level": "all"}, rank=10)]
        if "Conv" in traits.operators:
            found.append(Candidate("onnxruntime", {"threads": many, "level": "extended"}, rank=11))
        if many > 1:
            found.append(Candidate("onnxruntime", {"threads": 1, "level": "all"}, rank=12))
            setting: Setting = {"threads": many, "level": "all", "spin": False}
            found.append(Candidate("onnxruntime", setting, rank=13))
        return found

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        """The part is a setting: its runner optimizes the engine's graph when it is opened."""
        if source.graph is None:
            raise RefusedError("the model has no ONNX graph")
        return Part(
            "onnxruntime",
            candidate.setting,
            uses_graph=True,
            needs={"onnxruntime": self.version()},
            operators=_optimized_operators(source.graph, str(candidate.setting["level"])),
        )


def _optimized_operators(graph: Path, level: str) -> dict[str, int]:
    """Operators after ONNX Runtime's own passes, from the model that it writes on request."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, _LEVELS[level]
        )
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
            model = onnx.load(options.optimized_model_filepath, load_external_data=False)
        except Exception as error:
            raise BuildError(f"onnxruntime cannot prepare the graph: {str(error)[:500]}") from error
    return dict(Counter(node.op_type for node in model.graph.node))
