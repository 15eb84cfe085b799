"""The machine card, read from the plain dict of redline.machine.Machine that a study carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from redline.report import units

# The widest first; what a reader looks for among a hundred flags.
_VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sve": "SVE", "asimd": "NEON"}
_TELLING = ("amx", "avx", "fma", "f16c", "sve", "asimd", "sse4_2", "bf16", "i8mm", "neon")

_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("fp32 peak, all cores", "peak_flops", lambda value: units.flops(value, per_second=True)),
    ("fp32 peak, one core", "peak_flops_one", lambda value: units.flops(value, per_second=True)),
    ("memory read, all cores", "bandwidth", units.bandwidth),
    ("memory read, one core", "bandwidth_one", units.bandwidth),
    ("waking a thread", "wake_seconds", units.seconds),
    ("L1 data cache", "l1d", units.binary),
    ("L2 cache", "l2", units.binary),
    ("L3 cache", "l3", units.binary),
    ("memory", "memory", units.size),
)
_WORDS = (("measured by", "method"), ("system", "system"), ("Python", "python"))


@dataclass(frozen=True)
class Card:
    """What a report needs of the machine; None or empty for what the study does not say.

    Attributes:
        peak: floating-point operations a second, fp32, all usable cores, as measured.
        bandwidth: bytes a second read from memory, as measured.
        last_cache: bytes of the largest cache.
        wake: seconds until a sleeping thread runs.
        rows: the entries worth reading as (label, text).
    """

    name: str
    cores: int | None
    peak: float | None
    bandwidth: float | None
    last_cache: float | None
    wake: float | None
    vectors: str
    rows: tuple[tuple[str, str], ...]

    @property
    def line(self) -> str:
        """The machine in one line.

        Example:
            >>> read({"cpu": "EPYC", "cores": 2, "peak_flops": 4e11}).line
            'EPYC · 2 cores · 400 GFLOP/s'
        """
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}" if self.cores else ""
        peak = units.flops(self.peak, per_second=True) if self.peak else ""
        bandwidth = units.bandwidth(self.bandwidth) if self.bandwidth else ""
        words = (self.name, cores, self.vectors, peak, bandwidth)
        return " · ".join(word for word in words if word)


def read(machine: Mapping[str, object]) -> Card:
    """The card of a study; whatever is absent stays None, so a partial card still reads.

    Example:
        >>> read({}).name
        'unknown machine'
    """
    cores = _number(machine, "cores")
    caches = (_number(machine, name) for name in ("l3", "l2", "l1d"))
    flags = _flags(machine)
    return Card(
        name=str(machine.get("cpu") or "unknown machine"),
        cores=int(cores) if cores else None,
        peak=_number(machine, "peak_flops"),
        bandwidth=_number(machine, "bandwidth"),
        last_cache=next((size for size in caches if size), None),
        wake=_number(machine, "wake_seconds"),
        vectors=next((name for flag, name in _VECTORS.items() if flag in flags), ""),
        rows=tuple(_rows(machine, flags)),
    )


def _rows(machine: Mapping[str, object], flags: list[str]) -> list[tuple[str, str]]:
    cores, total = _number(machine, "cores"), _number(machine, "cores_total")
    of_total = f" of {total:.0f}" if cores and total and total != cores else ""
    told = [flag for flag in flags if flag.startswith(_TELLING)]
    rows = [
        ("processor", str(machine.get("cpu") or "")),
        ("usable cores", f"{cores:.0f}{of_total}" if cores else ""),
        ("instruction sets", ", ".join(told)),
    ]
    for label, key, words in _ROWS:
        value = _number(machine, key)
        rows.append((label, words(value) if value else ""))
    return rows + [(label, str(machine.get(key) or "")) for label, key in _WORDS]


def _number(machine: Mapping[str, object], key: str) -> float | None:
    value = machine.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    return float(value)


def _flags(machine: Mapping[str, object]) -> list[str]:
    flags = machine.get("isa")
    return [str(flag) for flag in flags] if isinstance(flags, list | tuple) else []
