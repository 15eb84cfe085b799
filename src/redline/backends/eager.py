"""PyTorch as it is: the baseline, and the simplest answer when nothing beats it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from redline.backends.base import Candidate, Missing, Source, Traits
from redline.engine.manifest import Part
from redline.errors import RefusedError
from redline.signature import Signature

if TYPE_CHECKING:
    import torch

    from redline.backends.in_framework import ModuleRunner


class EagerBackend:
    """Runs the module itself, with another thread count or memory format at most."""

    name = "eager"
    wants: Literal["graph", "program", "module"] = "module"
    local = True

    def missing(self) -> Missing | None:
        try:
            import torch  # noqa: F401
        except (ImportError, OSError) as error:
            return Missing(f"torch cannot be imported: {error}", "pip install torch")
        return None

    def lacks(self, precision: str) -> str:
        return "it runs the PyTorch module, and only the ONNX graph is compressed"

    def version(self) -> str:
        import torch

        return str(torch.__version__)

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        if not traits.has_module:
            raise RefusedError("there is no PyTorch module: the model is an ONNX file")
        found = [Candidate("eager", {}, rank=0)]
        if any(len(spec.shape) == 4 for spec in traits.signature.inputs):
            found.append(Candidate("eager", {"memory_format": "channels_last"}, rank=1))
        if traits.threads > 1:
            found.append(Candidate("eager", {"threads": 1}, rank=2))
        return found

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        raise RefusedError("eager runs the module itself; there is nothing to package")

    def open_module(
        self, module: torch.nn.Module, candidate: Candidate, signature: Signature
    ) -> ModuleRunner:
        """The module behind the runner's seam; a channels_last candidate runs on a copy."""
        import torch

        from redline import machine
        from redline.backends.in_framework import ModuleRunner

        threads = int(candidate.setting.get("threads", machine.usable_cores()))
        last = candidate.setting.get("memory_format") == "channels_last"
        if last:
            module = copy.deepcopy(module)
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return ModuleRunner(module, signature, threads=threads, channels_last=last)
