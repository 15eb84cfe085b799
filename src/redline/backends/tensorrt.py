"""TensorRT on an NVIDIA GPU: the seam is ready, and refuses with a reason where there is no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from redline.backends.base import Candidate, Missing, Source, Traits
from redline.engine.manifest import Part
from redline.errors import BuildError, RefusedError


class TensorRtBackend:
    """Builds a strongly typed network: precision is what the graph says (TensorRT 11 has no flags
    for it). Not run on any machine of ours yet; docs/backends.md says so.
    """

    name = "tensorrt"
    wants: Literal["graph", "program", "module"] = "graph"
    local = False

    def missing(self) -> Missing | None:
        if not _has_gpu():
            return Missing("there is no NVIDIA GPU that PyTorch can use on this machine")
        if find_spec("tensorrt") is None:
            return Missing("tensorrt is not installed", "pip install 'redline[gpu]'")
        return None

    def lacks(self, precision: str) -> str:
        return "compressed graphs have not been tried on it yet"

    def version(self) -> str:
        try:
            return version("tensorrt")
        except PackageNotFoundError:
            return ""

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        if not traits.has_graph:
            raise RefusedError("the model has no ONNX graph", hint="see the notes on its export")
        return [Candidate("tensorrt", {"level": 3}, rank=50)]

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        missing = self.missing()
        if missing:
            raise RefusedError(missing.reason, hint=missing.command)
        if source.graph is None:
            raise RefusedError("the model has no ONNX graph")
        import tensorrt

        logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        builder = tensorrt.Builder(logger)
        strongly_typed = 1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(strongly_typed)
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(source.graph)):
            raise BuildError(f"TensorRT cannot read the graph: {parser.get_error(0).desc()}")
        config = builder.create_builder_config()
        config.builder_optimization_level = int(candidate.setting["level"])
        if source.signature.dims:
            profile = builder.create_optimization_profile()
            for spec in source.signature.inputs:
                sizes = [source.signature.shape(spec, which) for which in ("min", "opt", "max")]
                profile.set_shape(spec.name, *sizes)
            config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildError("TensorRT could not build the network")
        (folder / "model.plan").write_bytes(plan)
        return Part(
            "tensorrt",
            candidate.setting,
            files=("model.plan",),
            code=True,
            needs={"tensorrt": self.version()},
        )


def _has_gpu() -> bool:
    try:
        import torch
    except (ImportError, OSError):
        return False
    return bool(torch.cuda.is_available())
