"""What this machine cannot run must still compile: every template for every instruction set."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys

import onnx_ir
import pytest
from native_models import needs_compiler
from test_threads import convolutions, encoder, recurrent

from redline.native import isa, toolchain
from redline.native.compile import lower

HEADERS = sorted(path.name for path in toolchain.KERNELS.glob("*.hpp"))


def compiler(name: str) -> list[str]:
    """A C++ compiler for the instruction set; skips where there is none."""
    if isa.get(name).machine != "aarch64":
        return [toolchain.compiler() or pytest.skip("needs a C++ compiler")]
    if found := shutil.which("aarch64-linux-gnu-g++"):
        return [found]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu"]
    return pytest.skip("needs a compiler for arm64: apt-get install g++-aarch64-linux-gnu")


def compiled(command: list[str], target: isa.Isa, source, out) -> None:
    words = [*toolchain.FLAGS, *target.flags, f"-DRL_VECTOR_BYTES={target.vector_bytes}"]
    words += [f"-I{toolchain.KERNELS}", "-O1", "-c", str(source), "-o", str(out)]
    told = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr[:3000]
    assert out.stat().st_size


@pytest.mark.parametrize("name", isa.ISAS)
def test_every_header_compiles(name, tmp_path):
    target = isa.get(name)
    source = tmp_path / "headers.cpp"
    lines = ["#define RL_SPIN_NS 1", *(f'#include "{header}"' for header in HEADERS)]
    source.write_text("\n".join([*lines, "int main() { return rl::W == 0; }\n"]))
    compiled(compiler(name), target, source, tmp_path / "headers.o")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("make", [convolutions, encoder, recurrent])
@pytest.mark.parametrize("name", isa.ISAS)
def test_whole_models_compile(name, make, tmp_path):
    target, command = isa.get(name), compiler(name)
    model = onnx_ir.serde.deserialize_model(make()[0])
    _, sources = lower(model, target, 2, winograd=True)
    for file, text in sources.files.items():
        (tmp_path / file).write_text(text)
        compiled(command, target, tmp_path / file, tmp_path / "out.o")


def test_the_widest_that_the_processor_has_is_chosen():
    x86 = ["avx2", "fma", "f16c", "bmi2"]
    more = ["avx512f", "avx512bw", "avx512vl", "avx512dq"]
    asked = [
        (x86 + more, "x86_64"), (x86, "x86_64"), (x86[:1] + more, "x86_64"),
        (["asimd"], "aarch64"), (x86, "aarch64"),
    ]  # fmt: skip
    assert [isa.usable(flags, machine)[0].name for flags, machine in asked] == [
        "avx512", "avx2", "portable", "neon", "portable",
    ]  # fmt: skip
    vnni = [*x86, *more, "avx512_vnni"]
    assert [isa.usable(vnni, "x86_64", whole=w)[0].name for w in (False, True)] == [
        "avx512", "avx512_vnni",
    ]  # fmt: skip
    assert all(re.search("march=native", " ".join(i.flags)) is None for i in isa.ISAS.values())
