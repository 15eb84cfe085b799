"""PyTorch's own compiler: packaged by AOTInductor, or torch.compile where export fails."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from redline.backends.base import Candidate, Missing, Source, Traits
from redline.engine.manifest import Part
from redline.errors import BuildError, RefusedError
from redline.signature import Signature

if TYPE_CHECKING:
    import torch

    from redline.backends.in_framework import ModuleRunner


# Compilers and Linux spell these differently.
_SPELLED = {"avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "fp16fml": "asimdfhm"}


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

    def lacks(self, precision: str) -> str:
        return "it compiles the PyTorch program, and only the ONNX graph is compressed"

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
        settings = {
            "freezing": True,
            # No worker processes: a child of a child would outlive the limits on this one.
            "compile_threads": 1,
            # Not -march=native, the default: the part may use no instruction that `isa` leaves out.
            "cpp.march": "",
        }
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
            isa=_cpu_flags(pick_vec_isa().build_arch_flags()),
            needs={"torch": str(torch.__version__)},
            operators=_kernels(folder / "model.pt2"),
        )

    def open_module(
        self, module: torch.nn.Module, candidate: Candidate, signature: Signature
    ) -> ModuleRunner:
        """torch.compile with constants folded; compiling happens at the first call."""
        import torch

        from redline.backends.in_framework import ModuleRunner

        # Options are this module's own; torch._inductor.config would be the whole process's.
        options: dict[str, Any] = {"freezing": True, "compile_threads": 1}
        compiled = torch.compile(module, dynamic=bool(signature.dims) or None, options=options)
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


def _cpu_flags(compiler_flags: str) -> tuple[str, ...]:
    """What Inductor tells the compiler to use -> what the CPU must have, as Linux spells it.

    Example:
        >>> _cpu_flags("-mavx2 -mfma -mavx512vnni -mamx-tile")
        ('avx2', 'fma', 'avx512_vnni', 'amx_tile')
        >>> _cpu_flags("-march=armv8-a+sve+bf16 -msve-vector-bits=256")
        ('sve', 'bf16')
    """
    found: list[str] = []
    for word in compiler_flags.split():
        name, _, value = word.removeprefix("-m").partition("=")
        found += value.split("+")[1:] if value else [name]
    return tuple(dict.fromkeys(_SPELLED.get(name, name.replace("-", "_")) for name in found))


def _kernels(package: Path) -> dict[str, int]:
    """Calls of generated kernels and of the library, counted in the package's C++ source."""
    counts: Counter[str] = Counter()
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            if name.endswith(".cpp"):
                counts.update(_calls(archive.read(name).decode(errors="replace")))
    return dict(counts)


def _calls(source: str) -> list[str]:
    """Names in the order they are called; declarations and definitions start with `void`.

    Example:
        >>> _calls('extern "C"  void  cpp_fused_relu_0(float* p); cpp_fused_relu_0(buf0);')
        ['fused kernel']
    """
    found = re.findall(r"(void\s+)?\b(aoti_torch_cpu_\w+|cpp_fused\w*)\(", source)
    return [
        "fused kernel" if name.startswith("cpp") else name.removeprefix("aoti_torch_cpu_")
        for declared, name in found
        if not declared
    ]


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
