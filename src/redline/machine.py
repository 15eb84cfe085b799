"""The machine card: what this machine is, and what it can do at best. Measured once, cached."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from redline import knobs

_LOG = logging.getLogger("redline")
_ROOT = Path("/")
_PROBE = Path(__file__).with_name("machine_probe.cpp")
_TIMEOUT = 60  # seconds for the compiler or the probe


@dataclass(frozen=True)
class Machine:
    """One machine: sizes in bytes, rates a second, times in seconds.

    Attributes:
        isa: CPU flags as the system spells them ("avx2", "fma", "asimd").
        cores: usable by this process: affinity, cgroup and REDLINE_THREADS count.
        l1d, l2, l3: one instance of each cache; 0 where unknown.
        peak_flops_one, peak_flops: fp32 FLOP/s on one core and on all usable ones.
        bandwidth_one, bandwidth: bytes/s read from memory by one core and by all.
        wake_seconds: until a sleeping thread runs, median.
        method: how the rates were measured.
    """

    cpu: str
    arch: str
    isa: tuple[str, ...]
    cores: int
    cores_total: int
    l1d: int
    l2: int
    l3: int
    memory: int
    memory_available: int
    peak_flops_one: float
    peak_flops: float
    bandwidth_one: float
    bandwidth: float
    wake_seconds: float
    method: str
    measured_at: str
    fingerprint: str
    system: str
    python: str


def usable_cores(root: Path = _ROOT) -> int:
    """Cores this process may use: the least of affinity, cgroup quota and REDLINE_THREADS.

    Example:
        >>> usable_cores() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(root)
    if quota:
        cores = min(cores, max(1, round(quota)))
    limit = knobs.number("REDLINE_THREADS")
    return max(1, min(cores, limit) if limit > 0 else cores)


def memory_total(root: Path = _ROOT) -> int:
    """Bytes of memory, or of the cgroup's limit where that is less."""
    limit = _cgroup_number(root, "memory.max", "memory/memory.limit_in_bytes")
    total = int(psutil.virtual_memory().total)
    return min(total, limit) if limit else total


def memory_available(root: Path = _ROOT) -> int:
    """Bytes that can be used now without swapping, within the cgroup's limit."""
    free = int(psutil.virtual_memory().available)
    limit = _cgroup_number(root, "memory.max", "memory/memory.limit_in_bytes")
    used = _cgroup_number(root, "memory.current", "memory/memory.usage_in_bytes")
    return min(free, max(0, limit - used)) if limit else free


@functools.cache
def isa_flags() -> frozenset[str]:
    """CPU flags as Linux spells them; empty where the system does not tell.

    Example:
        >>> "avx2" in isa_flags() or True
        True
    """
    if sys.platform == "darwin":
        words = _output(["sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"])
        found = {word.lower().replace(".", "_") for word in words.split()}
        return frozenset(found | ({"asimd"} if platform.machine() == "arm64" else set()))
    return flags_of(_text(_ROOT / "proc/cpuinfo"))


def flags_of(cpuinfo: str) -> frozenset[str]:
    """The flags in the text of /proc/cpuinfo.

    Example:
        >>> sorted(flags_of("flags : fpu avx2"))
        ['avx2', 'fpu']
    """
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@functools.cache
def fingerprint() -> str:
    """A short name for everything about this machine that decides speed; measures nothing."""
    facts = [_cpu_name(), platform.machine(), platform.system(), *sorted(isa_flags())]
    facts += [str(size) for size in (usable_cores(), *caches())]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def caches(root: Path = _ROOT) -> tuple[int, int, int]:
    """Bytes of one L1 data, L2 and L3 cache; 0 where unknown."""
    sizes = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _text(index / "type").strip() != "Instruction":
            sizes[_text(index / "level").strip()] = _cache_size(_text(index / "size").strip())
    return sizes.get("1", 0), sizes.get("2", 0), sizes.get("3", 0)


def cpp_compiler() -> str | None:
    """The path of this machine's C++ compiler; None where there is none.

    Example:
        >>> cpp_compiler() == cpp_compiler()
        True
    """
    return next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)


def card(*, refresh: bool = False) -> Machine:
    """This machine's card, measured in under three seconds the first time and then read back.

    Args:
        refresh: measure again.

    Example:
        >>> card().peak_flops > 0
        True
    """
    file = knobs.cache_dir() / f"machine-{fingerprint()}.json"
    rates = None if refresh else _read_rates(file)
    if rates is None:
        rates = _measure()
        _write_rates(file, rates)
    l1d, l2, l3 = caches()
    return Machine(
        cpu=_cpu_name(),
        arch=platform.machine(),
        isa=tuple(sorted(isa_flags())),
        cores=usable_cores(),
        cores_total=os.cpu_count() or 1,
        l1d=l1d,
        l2=l2,
        l3=l3,
        memory=memory_total(),
        memory_available=memory_available(),
        fingerprint=fingerprint(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        **asdict(rates),
    )


@dataclass(frozen=True)
class _Rates:
    """What is measured and cached."""

    peak_flops_one: float
    peak_flops: float
    bandwidth_one: float
    bandwidth: float
    wake_seconds: float
    method: str
    measured_at: str


def _measure() -> _Rates:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    compiler = cpp_compiler()
    if compiler:
        try:
            found, isa = _run_probe(compiler)
            return _Rates(
                **found, method=f"C++ loops, {isa}, {Path(compiler).name}", measured_at=now
            )
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("the machine probe failed, NumPy measures instead: %s", error)
    return _Rates(
        **_measure_with_numpy(),
        method="NumPy sgemm and sum: a lower bound, there is no C++ compiler",
        measured_at=now,
    )


def _run_probe(compiler: str) -> tuple[dict[str, float], str]:
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "machine_probe"
        flags = ["-O3", "-std=c++17", "-pthread", str(_PROBE), "-o", str(program)]
        for command in ([compiler, *flags], [str(program), str(usable_cores())]):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT, check=True
            )
    rates = json.loads(done.stdout)
    return rates, rates.pop("isa")


def _measure_with_numpy() -> dict[str, float]:
    """NumPy decides its own threads, so one rate stands for one core and for all."""
    matrix = np.ones((1024, 1024), np.float32)
    flops = 2 * 1024**3 / min(_seconds(lambda: matrix @ matrix) for _ in range(6))
    data = np.ones(64 << 20, np.float32)
    rate = data.nbytes / min(_seconds(data.sum) for _ in range(4))
    return {
        "peak_flops_one": flops,
        "peak_flops": flops,
        "bandwidth_one": rate,
        "bandwidth": rate,
        "wake_seconds": _wake_in_python(),
    }


def _wake_in_python() -> float:
    from threading import Event, Thread

    bell, waits, rung = Event(), [], [0.0]

    def sleep() -> None:
        for _ in range(51):
            bell.wait()
            bell.clear()
            waits.append(time.perf_counter() - rung[0])

    sleeper = Thread(target=sleep, daemon=True)
    sleeper.start()
    for _ in range(51):
        time.sleep(0.001)
        rung[0] = time.perf_counter()
        bell.set()
    sleeper.join(timeout=1)
    return float(np.median(waits)) if waits else 0.0


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _read_rates(file: Path) -> _Rates | None:
    try:
        return _Rates(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_rates(file: Path, rates: _Rates) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(asdict(rates)))
        beside.replace(file)
    except OSError as error:
        _LOG.warning("the machine card could not be kept: %s", error)


def _cgroup_quota(root: Path) -> float | None:
    """Cores that the cgroup grants, in version 2 or 1; None without a limit."""
    words = _text(root / "sys/fs/cgroup/cpu.max").split()
    if len(words) == 2 and words[0] != "max":
        return float(words[0]) / float(words[1])
    quota = _text(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
    period = _text(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def _cgroup_number(root: Path, version2: str, version1: str) -> int:
    """A number of the cgroup's, 0 where there is no limit."""
    for name in (version2, version1):
        value = _text(root / "sys/fs/cgroup" / name).strip()
        if value.isdigit() and int(value) < 1 << 60:
            return int(value)
    return 0


@functools.cache
def _cpu_name() -> str:
    for line in _text(_ROOT / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]).strip()
    return platform.processor() or platform.machine()


def _cache_size(text: str) -> int:
    """Bytes from "48K" or "32M"."""
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
    digits = text.rstrip("KMG")
    return int(digits) * unit if digits.isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
