"""The machine card, read from the plain dict that a study carries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from redline.report import units

_WIDEST = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX"), ("asimd", "NEON"))


@dataclass(frozen=True)
class Card:
    """What a report needs of the machine; None or empty for what the study does not say.

    Attributes:
        peak: floating-point operations a second, fp32, all cores, as measured.
        bandwidth: bytes a second read from memory, as measured.
        last_cache: bytes of the largest cache.
        rows: every entry of the card as (label, text), for the reader.
    """

    name: str
    cores: int | None
    peak: float | None
    bandwidth: float | None
    last_cache: float | None
    vectors: str
    rows: tuple[tuple[str, str], ...]

    @property
    def line(self) -> str:
        """The machine in one line.

        Example:
            >>> read({"cpu": "EPYC", "cores": 2, "fp32_peak": 4e11}).line
            'EPYC · 2 cores · 400 GFLOP/s'
        """
        words = [self.name]
        if self.cores:
            words.append(f"{self.cores} core{'s' if self.cores > 1 else ''}")
        if self.vectors:
            words.append(self.vectors)
        if self.peak:
            words.append(units.flops(self.peak, per_second=True))
        if self.bandwidth:
            words.append(units.bandwidth(self.bandwidth))
        return " · ".join(word for word in words if word)


def read(machine: Mapping[str, object]) -> Card:
    """The card of a study; whatever is absent stays None, so an old or partial card still reads.

    Example:
        >>> read({}).name
        'unknown machine'
    """
    return Card(
        name=str(machine.get("cpu") or "unknown machine"),
        cores=_whole(machine.get("cores")),
        peak=_number(machine.get("fp32_peak")),
        bandwidth=_number(machine.get("bandwidth")),
        last_cache=_number(machine.get("last_cache")),
        vectors=_vectors(machine.get("isa")),
        rows=tuple((_label(key), _text(key, value)) for key, value in machine.items()),
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return None
    return float(value)


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _vectors(flags: object) -> str:
    """The widest vector instructions of a list of CPU flags."""
    names = set(map(str, flags)) if isinstance(flags, list | tuple) else set()
    return next((name for flag, name in _WIDEST if flag in names), "")


def _label(key: str) -> str:
    return key.replace("_", " ")


def _text(key: str, value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{inner} {_text(str(inner), one)}" for inner, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_text(key, one) for one in value)
    return str(value)
