"""The machine card: what this machine is, and what it can do at best; measured once, then kept."""

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
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import psutil

from redline import knobs

COMPILERS = ("g++", "clang++", "c++")

_LOG = logging.getLogger("redline")
_ROOT = Path("/")
_PROBE = Path(__file__).with_name("machine_probe.cpp")
_TIMEOUT = 60  # seconds for the compiler, and for the probe
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}
_SMALLEST_BUFFER, _LARGEST_BUFFER = 256 << 20, 1 << 30  # bytes read to measure bandwidth


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


def card(*, refresh: bool = False) -> Machine:
    """This machine's card, measured in under three seconds the first time and then read back.

    Args:
        refresh: measure again.

    Example:
        >>> card().peak_flops > 0
        True
    """
    file = knobs.cache_dir() / f"machine-{fingerprint()}.json"
    if refresh:
        _known.cache_clear()
    rates = _known(file, refresh)
    l1d, l2, l3 = caches()
    return Machine(
        cpu=cpu_name(),
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


@functools.cache
def fingerprint() -> str:
    """A short name for everything about this machine that decides speed; measures nothing."""
    facts = [cpu_name(), platform.machine(), platform.system(), *sorted(isa_flags())]
    facts += [str(size) for size in (usable_cores(), *caches())]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def usable_cores(root: Path = _ROOT) -> int:
    """Cores this process may use: the least of affinity, cgroup quota and REDLINE_THREADS.

    A quota counts to the nearest core: with fewer threads it is wasted, with more they are stopped
    in the middle of a call. A cpuset needs no reading, the kernel counts it into the affinity.

    Example:
        >>> usable_cores() >= 1
        True
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux only
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    for quota in _cgroup_quotas(root):
        cores = min(cores, int(quota + 0.5))
    limit = knobs.number("REDLINE_THREADS")
    return max(1, min(cores, limit) if limit > 0 else cores)


def memory_total(root: Path = _ROOT) -> int:
    """Bytes of memory, or of the tightest cgroup limit where that is less."""
    limits = (limit for limit, _ in _cgroup_memory(root))
    return min([int(psutil.virtual_memory().total), *limits])


def memory_available(root: Path = _ROOT) -> int:
    """Bytes that can be used now without swapping, within the cgroup's limits."""
    left = (max(0, limit - used) for limit, used in _cgroup_memory(root))
    return min([int(psutil.virtual_memory().available), *left])


@functools.cache
def isa_flags(root: Path = _ROOT) -> frozenset[str]:
    """CPU flags as Linux spells them; empty where the system does not tell.

    Example:
        >>> isinstance(isa_flags(), frozenset)
        True
    """
    if sys.platform == "darwin":
        words = _output("sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features")
        flags = words.lower().replace(".", "_").split() or ["asimd"]  # Apple's own cores say none
        return frozenset(flags)
    return frozenset((_cpuinfo(root, "flags") or _cpuinfo(root, "Features")).split())


@functools.cache
def cpu_name(root: Path = _ROOT) -> str:
    """The processor in words; the architecture where the system does not tell."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string").strip()
    return _cpuinfo(root, "model name") or platform.processor() or platform.machine()


def caches(root: Path = _ROOT) -> tuple[int, int, int]:
    """Bytes of one L1 data, L2 and L3 cache; 0 where unknown."""
    if sys.platform == "darwin":
        texts = (_output("sysctl", "-n", f"hw.{name}cachesize") for name in ("l1d", "l2", "l3"))
        first, second, third = map(_size, texts)
        return first, second, third
    sizes = {}
    for index in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if _text(index / "type") != "Instruction":
            sizes[_text(index / "level")] = _size(_text(index / "size"))
    return sizes.get("1", 0), sizes.get("2", 0), sizes.get("3", 0)


# --- measuring ---------------------------------------------------------------------------------


@functools.cache
def _known(file: Path, refresh: bool) -> _Rates:
    """The rates from a file, or measured and kept there; once in a process, whatever the disk."""
    rates = None if refresh else _read_rates(file)
    if rates is None:
        rates = _measure()
        _write_rates(file, rates)
    return rates


def _measure() -> _Rates:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    cores, nbytes = usable_cores(), _buffer_bytes()
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    reason = "no C++ compiler"
    if compiler:
        try:
            found, isa = _run_probe(compiler, cores, nbytes)
        except (OSError, subprocess.SubprocessError, msgspec.MsgspecError, KeyError) as error:
            words = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            reason = f"the C++ probe failed: {words[0] if words else type(error).__name__}"
        else:
            method = f"C++ loops ({isa}, {Path(compiler).name})"
            return _rates(found, f"{method}, reading {nbytes >> 20} MiB", now)
    method = f"NumPy sgemm and max, a lower bound ({reason})"
    return _rates(_measure_with_numpy(cores, nbytes), method, now)


def _rates(found: dict[str, float], method: str, measured_at: str) -> _Rates:
    return msgspec.convert({**found, "method": method, "measured_at": measured_at}, _Rates)


def _buffer_bytes(root: Path = _ROOT) -> int:
    """Enough to read past all last caches, as far as memory allows."""
    instances = {}
    for index in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index3"):
        instances[_text(index / "shared_cpu_list")] = _size(_text(index / "size"))
    wanted = max(_SMALLEST_BUFFER, 4 * sum(instances.values()))
    return min(wanted, _LARGEST_BUFFER, memory_available(root) // 4)


def _run_probe(compiler: str, cores: int, nbytes: int) -> tuple[dict[str, float], str]:
    """Compiled each time (0.7 s): a program kept in a shared folder could be another's program."""
    with tempfile.TemporaryDirectory(prefix="redline-") as folder:
        program = str(Path(folder) / "machine_probe")
        flags = ("-O3", "-std=c++17", "-pthread", str(_PROBE), "-o", program)
        for command in ((compiler, *flags), (program, str(cores), str(nbytes), *isa_flags())):
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT, check=True
            )
    found = msgspec.json.decode(done.stdout, type=dict[str, float | str])
    isa = str(found.pop("isa"))
    return {key: float(value) for key, value in found.items()}, isa


def _measure_with_numpy(cores: int, nbytes: int) -> dict[str, float]:
    """NumPy's BLAS decides its own threads, so one core did at least its share of them."""
    matrix = np.ones((1024, 1024), np.float32)
    flops = 2 * 1024**3 / min(_seconds(lambda: matrix @ matrix) for _ in range(8))
    data = np.ones(nbytes // 4, np.float32)
    shares = np.array_split(data, cores)
    with ThreadPoolExecutor(cores) as pool:  # a reduction of NumPy lets other threads run
        every = min(_seconds(lambda: list(pool.map(np.max, shares))) for _ in range(4))
    one = min(_seconds(data.max) for _ in range(4))
    return {
        "peak_flops_one": flops / cores,
        "peak_flops": flops,
        "bandwidth_one": data.nbytes / one,
        "bandwidth": data.nbytes / min(one, every),
        "wake_seconds": _wake_in_python(),
    }


def _wake_in_python() -> float:
    """Seconds from Event.set() to the thread that waits for it, median of 51."""
    bell, ready = threading.Event(), threading.Event()
    waits: list[float] = []
    rung = 0.0

    def sleep() -> None:
        for _ in range(51):
            bell.wait()
            waits.append(time.perf_counter() - rung)
            bell.clear()
            ready.set()

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    for _ in range(51):
        time.sleep(0.001)  # so that it sleeps, too
        rung = time.perf_counter()
        bell.set()
        ready.wait()
        ready.clear()
    sleeper.join()
    return float(np.median(waits))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _read_rates(file: Path) -> _Rates | None:
    """What an earlier process measured; None for a file that is not there or not whole."""
    try:
        rates = msgspec.json.decode(file.read_bytes(), type=_Rates)
    except (OSError, msgspec.MsgspecError):
        return None
    numbers = [value for value in asdict(rates).values() if isinstance(value, float)]
    return rates if min(numbers) > 0 else None


def _write_rates(file: Path, rates: _Rates) -> None:
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(asdict(rates), indent=1))
        beside.replace(file)
    except OSError as error:
        _LOG.info("the machine card is not kept: %s", error)


# --- what Linux tells --------------------------------------------------------------------------


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups and of those around them: each may set a limit.

    Source: cgroups(7) and proc_pid_mountinfo(5). A container may see only its own group, mounted
    as if it were the whole tree; the mount then says which group that is.
    """
    own = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))  # version 2 has the name ""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        words, _, tail = line.partition(" - ")
        kind, _, options = tail.partition(" ")
        name = "" if kind == "cgroup2" else controller
        held = kind == "cgroup" and controller in options.split()[-1].split(",")
        if name not in own or not (kind == "cgroup2" or held):
            continue
        group, mount = words.split()[3:5]
        top = root / mount.lstrip("/")
        inside = own[name].removeprefix(group).strip("/")
        folder = top / inside if ".." not in inside and own[name].startswith(group) else top
        yield from (place for place in (folder, *folder.parents) if place.is_relative_to(top))


def _cgroup_quotas(root: Path) -> Iterator[float]:
    """Cores that each group grants, where it sets a limit."""
    for folder in _cgroups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        quota = quota or _text(folder / "cpu.cfs_quota_us")
        period = period or _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):  # else "max", or -1
            yield int(quota) / int(period)


def _cgroup_memory(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of each group that sets a limit; cached files do not count."""
    for folder in _cgroups(root, "memory"):
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
        if limit.isdigit() and int(limit) < 1 << 60:  # else "max", or version 1's way to say so
            lines = (line.split() for line in _text(folder / "memory.stat").splitlines())
            stat = {line[0]: int(line[1]) for line in lines if len(line) == 2}
            cached = stat.get("total_inactive_file", stat.get("inactive_file", 0))
            yield int(limit), max(0, int(used or 0) - cached)


def _cpuinfo(root: Path, wanted: str) -> str:
    """The first value of that name in /proc/cpuinfo."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == wanted:
            return value.strip()
    return ""


def _size(text: str) -> int:
    """Bytes from "48K", "32M" or "1024"."""
    digits = text.strip().rstrip("KMG")
    return int(digits) * _UNITS.get(text.strip()[-1:], 1) if digits.isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
