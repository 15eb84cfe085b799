"""From C++ files to a shared object: finds the compiler, compiles in parallel, keeps objects."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from redline import knobs
from redline.errors import BuildError, MissingError
from redline.native.isa import Isa

OBJECTS_LIMIT = 1 << 30  # bytes of compiled objects that are kept
KERNELS = Path(__file__).parent / "kernels"
# No -ffast-math: it changes NaN, and in a shared object the whole process's denormals.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-Wno-psabi",
)


@cache
def compiler() -> str | None:
    """The C++ compiler's path, or None."""
    return shutil.which("g++") or shutil.which("clang++")


@cache
def compiler_version() -> str:
    """Name and version, for cache keys and people."""
    path = compiler()
    if path is None:
        return ""
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return told.stdout.splitlines()[0] if told.stdout else path


def fingerprint() -> str:
    """Compiler and kernels: what decides the speed of the same schedule."""
    return f"{compiler_version()} {' '.join(FLAGS)} {_headers().hex()}"


def build(files: dict[str, str], isa: Isa, target: Path) -> None:
    """Compile the files and link them into `target`; objects are kept by the hash of what they are.

    Raises:
        MissingError: no C++ compiler.
        BuildError: the compiler's own words.
    """
    path = compiler()
    if path is None:
        raise MissingError("there is no C++ compiler", hint="apt-get install g++")
    flags = _flags(isa)
    cores = max(1, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(cores) as pool:
        objects = list(pool.map(lambda item: _object(path, flags, *item), files.items()))
    _run([path, "-shared", "-o", str(target), *map(str, objects), "-lm", "-lpthread"])


def assemble(files: dict[str, str], isa: Isa, folder: Path) -> None:
    """Write the assembly of each file, "groups0.s", into the folder where the files lie already."""
    path = compiler()
    if path is None:
        raise MissingError("there is no C++ compiler", hint="apt-get install g++")
    for name in files:
        target = (folder / name).with_suffix(".s")
        words = [*_flags(isa), f"-I{KERNELS}", "-S", str(folder / name), "-o", str(target)]
        _run([path, *words])


def _flags(isa: Isa) -> tuple[str, ...]:
    return (*FLAGS, *isa.flags, f"-DRL_VECTOR_BYTES={isa.vector_bytes}")


@cache
def _headers() -> bytes:
    digest = hashlib.sha256()
    for header in sorted(KERNELS.glob("*.h*")):
        digest.update(header.read_bytes())
    return digest.digest()


def _object(path: str, flags: tuple[str, ...], name: str, text: str) -> Path:
    key = hashlib.sha256()
    for word in (compiler_version(), *flags, text):
        key.update(word.encode() + b"\0")
    key.update(_headers())
    folder = knobs.cache_dir() / "objects"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / f"{key.hexdigest()}.o"
    if target.exists():
        target.touch()
        return target
    _trim(folder)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        source, made = Path(work) / name, Path(work) / "made.o"
        source.write_text(text, encoding="utf-8")
        _run([path, *flags, f"-I{KERNELS}", "-c", str(source), "-o", str(made)])
        made.replace(target)
    return target


def _trim(folder: Path) -> None:
    """Remove the objects that were not used for longest, until what is kept fits the limit."""
    found = []
    for path in folder.glob("*.o"):
        with contextlib.suppress(OSError):  # another process removed it
            told = path.stat()
            found.append((told.st_mtime, told.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= OBJECTS_LIMIT:
            break
        path.unlink(missing_ok=True)
        total -= size


def _run(command: list[str]) -> None:
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        lines = [line for line in told.stderr.splitlines() if "error" in line] or [told.stderr]
        raise BuildError(f"the C++ compiler failed: {lines[0][:500]}")
