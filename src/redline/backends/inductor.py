"""PyTorch's own compiler: packaged by AOTInductor, or torch.compile where export fails."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from redline.backends.base import Candidate, Missing, Source, Traits
from redline.engine.manifest import Part
from redline.errors import BuildError, RefusedError
from redline.signature import Signature

if TYPE_CHECKING:
    import torch

    from redline.backends.in_framework import ModuleRunner


class InductorBackend:
    """Mode "aot" writes a package that loads without the model's code; "jit" is torch.compile."""

    name = "inductor"
    wants: Literal["graph", "program", "module"] = "program"
    local = False

    def missing(self) -> Missing | None:
        try:
            compiler = _compiler()
        except (ImportError, OSError) as error:
            return Missing(f"torch cannot be imported: {error}", "pip install torch")
        if compiler is None:
            return Missing("there is no C++ compiler, which Inductor needs", "apt-get install g++")
        return None

    def version(self) -> str:
        import torch

        return f"{torch.__version__}+{_compiler() or 'no compiler'}"

    def candidates(self, traits: Traits) -> Sequence[Candidate]:
        if traits.has_program:
            return [Candidate("inductor", {"mode": "aot", "threads": traits.threads}, rank=40)]
        if not traits.has_module:
            raise RefusedError("there is no PyTorch module: the model is an ONNX file")
        return [Candidate("inductor", {"mode": "jit", "threads": traits.threads}, rank=41)]

    def build(self, source: Source, candidate: Candidate, folder: Path) -> Part:
        import torch
        from torch._inductor.cpu_vec_isa import pick_vec_isa

        if candidate.setting.get("device", "cpu") != "cpu":
            raise RefusedError("Inductor for CUDA needs an NVIDIA GPU, which this machine lacks")
        if source.program is None:
            raise RefusedError("torch.export could not capture this model")
        torch.set_num_threads(int(candidate.setting.get("threads", 1)))
        # No worker processes: a child of a child would outlive the limits on this one.
        settings = {"freezing": True, "compile_threads": 1}
        try:
            with torch.no_grad():
                torch._inductor.aoti_compile_and_package(
                    source.program(),
                    package_path=str(folder / "model.pt2"),
                    inductor_configs=settings,
                )
        except Exception as error:
            raise BuildError(f"AOTInductor failed: {_first_line(error)}") from error
        return Part(
            "inductor",
            candidate.setting,
            files=("model.pt2",),
            code=True,
            isa=_flags(str(pick_vec_isa())),
            needs={"torch": str(torch.__version__)},
            operators=_kernels(folder / "model.pt2"),
        )

    def open_module(
        self, module: torch.nn.Module, candidate: Candidate, signature: Signature
    ) -> ModuleRunner:
        """torch.compile with constants folded; compiling happens at the first call."""
        import torch
        from torch._inductor import config

        from redline.backends.in_framework import ModuleRunner

        config.freezing = True
        config.compile_threads = 1
        compiled = torch.compile(module, dynamic=bool(signature.dims) or None)
        return ModuleRunner(compiled, signature, threads=int(candidate.setting["threads"]))


def _compiler() -> str | None:
    """The C++ compiler that Inductor would use, with its version."""
    from torch._inductor import cpp_builder, exc

    try:
        name = cpp_builder.get_cpp_compiler()
        told = re.search(r"version (\d\S*)", cpp_builder.get_compiler_version_info(name))
        return f"{Path(name).name} {told[1] if told else ''}".strip()
    except (exc.InvalidCxxCompiler, OSError, RuntimeError):
        return None


def _flags(isa: str) -> tuple[str, ...]:
    """Inductor's name of an instruction set -> the CPU flags that its code needs.

    Example:
        >>> _flags("avx2")
        ('avx2', 'fma', 'f16c')
    """
    avx2 = ("avx2", "fma", "f16c")
    if "avx512" in isa:
        return (*avx2, "avx512f", "avx512dq", "avx512vl", "avx512bw")
    return avx2 if "avx2" in isa else ()


def _kernels(package: Path) -> dict[str, int]:
    """Generated kernels and library calls, counted in the C++ source inside the package."""
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            if name.endswith(".cpp"):
                text = archive.read(name).decode(errors="replace")
                called = re.findall(r"\b(aoti_torch_cpu_\w+|cpp_fused_\w+?_\d+)\(", text)
                for call in called:
                    counts["fused kernel" if call.startswith("cpp") else call[15:]] += 1
    return dict(counts)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
