"""What this installation can do, what is missing, and the command that mends it."""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import numpy as np
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from redline import backends, machine

_NEEDED = ("torch", "onnx", "onnxruntime")  # without these nothing can be optimized
_FLAVOURS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
_TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")
_COMPANIONS = ("torchvision", "torchaudio")  # built against the C++ of one release of torch
_BACKEND_MODULES = {"openvino": "openvino", "ncnn": "ncnn", "tensorrt": "tensorrt"}
_VERSION_LENGTH = 60  # letters; a backend may say much
_TIMEOUT = 30  # seconds for a compiler to answer


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        kind: "core" is what every use of Redline needs.
        reason: why it is not usable; empty otherwise.
        command: what mends it; empty where no command can.
    """

    name: str
    kind: Literal["core", "backend", "extra", "tool", "mismatch"]
    usable: bool
    version: str = ""
    reason: str = ""
    command: str = ""


@dataclass(frozen=True)
class Package:
    """What the metadata of one installed distribution says."""

    version: str
    requires: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()


Packages = Mapping[str, Package]


def examine(packages: Packages | None = None) -> list[Finding]:
    """Look at everything, the most needed first: core, backends, extras, tools, mismatches.

    Args:
        packages: what is installed, by normalized name; read from the metadata unless given.

    Example:
        >>> healthy(examine())
        True
    """
    found = installed() if packages is None else packages
    checks = (_core, _backends, _extras, _tools, *_MISMATCHES)
    return [finding for check in checks for finding in check(found)]


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether torch, onnx and onnxruntime work; all else is optional.

    Example:
        >>> healthy([Finding(name, "core", usable=True) for name in ("torch", "onnx")])
        False
    """
    usable = {finding.name for finding in findings if finding.kind == "core" and finding.usable}
    return usable.issuperset(_NEEDED)


def installed() -> dict[str, Package]:
    """Every installed distribution by its normalized name; the first on the path counts."""
    found: dict[str, Package] = {}
    for distribution in metadata.distributions():
        facts = distribution.metadata
        name, version = ((facts.get_all(key) or [""])[0] for key in ("Name", "Version"))
        if name and version:  # an interrupted uninstall leaves folders without them
            extras = tuple(facts.get_all("Provides-Extra") or ())
            package = Package(version, tuple(distribution.requires or ()), extras)
            found.setdefault(canonicalize_name(name), package)
    return found


def _core(packages: Packages) -> Iterator[Finding]:
    for name in _NEEDED:
        package = packages.get(name)
        version = package.version if package else ""
        reason = _import_failure(name)
        command = _reinstall(name, package) if package else f"pip install {name}"
        yield Finding(name, "core", not reason, version, reason, command if reason else "")
    ours = packages.get("redline")
    if ours is None:
        reason = "redline runs from a folder and is not installed, so its extras are not known"
        yield Finding("redline", "core", False, "", reason, "pip install .")
        return
    reason = "; ".join(_lacking(_wanted(ours, ""), packages))
    command = "pip install --upgrade redline" if reason else ""
    yield Finding("redline", "core", not reason, ours.version, reason, command)


def _backends(_: Packages) -> Iterator[Finding]:
    for name in backends.names():
        try:
            yield _backend(name)
        except Exception as error:  # see _import_failure; the row of its library has the command
            yield Finding(name, "backend", False, reason=f"it fails to load: {_in_short(error)}")


def _backend(name: str) -> Finding:
    backend = backends.get(name)
    if missing := backend.missing():
        return Finding(name, "backend", False, "", missing.reason, missing.command)
    module = _BACKEND_MODULES.get(name)
    reason = _import_failure(module) if module else ""
    command = f"pip install --force-reinstall {module}" if reason else ""
    version = textwrap.shorten(backend.version(), _VERSION_LENGTH, placeholder=" …")
    return Finding(name, "backend", not reason, version, reason, command)


def _extras(packages: Packages) -> Iterator[Finding]:
    ours = packages.get("redline")
    for extra in ours.extras if ours else ():
        wanted = list(_wanted(ours, extra)) if ours else []
        reason = "; ".join(_lacking(wanted, packages))
        there = [(one.name, packages.get(canonicalize_name(one.name))) for one in wanted]
        versions = ", ".join(f"{name} {package.version}" for name, package in there if package)
        command = f"pip install 'redline[{extra}]'" if reason else ""
        yield Finding(extra, "extra", not reason, versions, reason, command)


def _tools(packages: Packages) -> Iterator[Finding]:
    reason, version = "there is no C++ compiler", ""
    if compiler := next(filter(None, map(shutil.which, machine.COMPILERS)), None):
        version, reason = _try_compiler(compiler)
    if reason:
        reason += ", which Inductor and the native compiler need"
    mend = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
    yield Finding("C++ compiler", "tool", not reason, version, reason, mend if reason else "")

    pnnx, package = "pnnx" in packages, packages.get("pnnx")
    program = Path(sys.executable).with_name("pnnx").is_file() or shutil.which("pnnx") is not None
    reason = "" if program else "the program pnnx is not there, which the ncnn backend needs"
    mend = "pip install --force-reinstall pnnx" if pnnx else "pip install 'redline[ncnn]'"
    version = package.version if package else ""
    yield Finding("pnnx", "tool", program, version, reason, mend if reason else "")


def _try_compiler(compiler: str) -> tuple[str, str]:
    """Version and what is wrong: a compiler without its headers answers, but cannot compile."""
    check = [compiler, "-x", "c++", "-fsyntax-only", "-"]
    try:
        told = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
        done = subprocess.run(
            check,
            input="#include <vector>\n",
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return "", f"{compiler} cannot be run ({error})"
    version = (told.stdout.splitlines() or [""])[0]
    said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[0]
    return version, f"{compiler} cannot compile ({said})" if done.returncode else ""


def _torch_of_other_device(packages: Packages) -> Iterator[Finding]:
    torch = packages.get("torch")
    for name in _COMPANIONS:
        package = packages.get(name)
        if not torch or not package:
            continue
        one, other = _device(torch.version), _device(package.version)
        if "cpu" not in (one, other) or one == other:
            continue
        reason = (
            f"torch {torch.version} is built for {one} and {name} {package.version} for {other}, "
            f"so {name} cannot be imported"
        )
        yield _mismatch(f"torch and {name}", reason, _reinstall(name, torch))


def _torch_of_other_release(packages: Packages) -> Iterator[Finding]:
    torch = packages.get("torch")
    for name in _COMPANIONS:
        package = packages.get(name)
        if not torch or not package:
            continue
        for wanted in map(_requirement, package.requires):
            if wanted and wanted.name == "torch" and not _in_range(wanted, torch):
                reason = (
                    f"{name} {package.version} is built for torch {wanted.specifier}, "
                    f"but torch {torch.version} is installed"
                )
                yield _mismatch(f"{name} and torch", reason, _reinstall(name, torch))


def _two_onnxruntimes(packages: Packages) -> Iterator[Finding]:
    found = [name for name in _FLAVOURS if name in packages]
    if len(found) > 1:
        names = " and ".join(found)
        reason = f"{names} install into the same folder, so which one runs is left to chance"
        command = f"pip uninstall -y {' '.join(found)} && pip install onnxruntime"
        yield _mismatch("two onnxruntimes", reason, command)


def _unsafe_torch(packages: Packages) -> Iterator[Finding]:
    torch = packages.get("torch")
    if torch and _version(torch) < Version("2.10"):
        reason = (
            f"torch {torch.version} has known holes in weights_only loading (CVE-2026-24747), "
            "so a weights file can run code"
        )
        yield _mismatch("torch before 2.10", reason, "pip install --upgrade 'torch>=2.10'")


def _onnxruntime_before_tensorrt(packages: Packages) -> Iterator[Finding]:
    tensorrt = next((packages[name] for name in _TENSORRT if name in packages), None)
    for name in _FLAVOURS:
        package = packages.get(name)
        if not tensorrt or not package:
            continue
        if _version(tensorrt) >= Version("11") and _version(package) < Version("1.27"):
            reason = (
                f"{name} {package.version} is older than TensorRT {tensorrt.version}, "
                "which it can use from 1.27 on"
            )
            yield _mismatch(f"{name} and TensorRT", reason, f"pip install --upgrade '{name}>=1.27'")


def _numpy_of_other_age(packages: Packages) -> Iterator[Finding]:
    if _import_failure("torch"):
        return
    import torch

    try:
        torch.from_numpy(np.zeros(1, np.float32))
    except RuntimeError as error:
        reason = (
            f"numpy {np.__version__} is not the one that torch {torch.__version__} was built for, "
            f"so they cannot exchange arrays ({error})"
        )
        yield _mismatch("torch and numpy", reason, "pip install --upgrade torch numpy")


_MISMATCHES: tuple[Callable[[Packages], Iterator[Finding]], ...] = (
    _torch_of_other_device,
    _torch_of_other_release,
    _two_onnxruntimes,
    _unsafe_torch,
    _onnxruntime_before_tensorrt,
    _numpy_of_other_age,
)


def _mismatch(name: str, reason: str, command: str) -> Finding:
    return Finding(name, "mismatch", False, reason=reason, command=command)


def _import_failure(module: str) -> str:
    """Why a library cannot be loaded; empty when it can.

    A broken one raises anything: RuntimeError where an operator is not registered, TypeError where
    protobuf does not fit. To survive that and to say so is what a doctor is for.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is found by a check of ours
            importlib.import_module(module)
    except Exception as error:
        return f"{module} cannot be imported: {_in_short(error)}"
    return ""


def _in_short(error: Exception) -> str:
    """The first line: some libraries write a page."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _wanted(package: Package, extra: str) -> Iterator[Requirement]:
    """What an extra adds on this machine, other extras of ours within it included; "" is core."""
    for one in filter(None, map(_requirement, package.requires)):
        always = one.marker is None or one.marker.evaluate({"extra": ""})
        if always == bool(extra) or (one.marker and not one.marker.evaluate({"extra": extra})):
            continue
        if canonicalize_name(one.name) == "redline":
            for inner in sorted(one.extras):
                yield from _wanted(package, inner)
        else:
            yield one


def _lacking(wanted: Iterable[Requirement], packages: Packages) -> Iterator[str]:
    for one in wanted:
        package = packages.get(canonicalize_name(one.name))
        if package is None:
            yield f"{one.name} is not installed"
        elif not _in_range(one, package):
            yield f"{one.name} is {package.version}, expected {one.specifier}"


def _requirement(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:  # another package's metadata is not ours to mend
        return None


def _in_range(wanted: Requirement, package: Package) -> bool:
    return wanted.specifier.contains(_version(package), prereleases=True)


def _version(package: Package) -> Version:
    try:
        return Version(package.version)
    except InvalidVersion:
        return Version("0")


def _device(version: str) -> str:
    """What a wheel of PyTorch's makers is built for; on PyPI they have no tag, and are for CUDA.

    Example:
        >>> _device("2.13.0+cpu"), _device("0.28.0+cu130")
        ('cpu', 'cu130')
    """
    _, _, tag = version.partition("+")
    if tag:
        return tag
    linux = sys.platform == "linux" and platform.machine() == "x86_64"
    return "CUDA" if linux else "cpu"


def _reinstall(name: str, like: Package) -> str:
    """A wheel with a tag comes from an index of PyTorch's makers, with what fits it."""
    _, _, tag = like.version.partition("+")
    index = f" --index-url https://download.pytorch.org/whl/{tag}" if tag else ""
    return f"pip install --force-reinstall --no-deps {name}{index}"
