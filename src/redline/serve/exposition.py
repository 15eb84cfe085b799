"""The Prometheus text format (0.0.4): families of samples to text, and texts of workers to one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
Labels = Mapping[str, str]
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? (\S+)")
# Gauges of workers that may not be added up: the whole server has the largest.
_MAXIMA = ("process_start_time_seconds", "nv_cpu_memory_total_bytes")


@dataclass
class Family:
    """Samples of one name: (suffix, labels, value)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)

    def add(self, value: float, suffix: str = "", /, **labels: str) -> None:
        """One more sample."""
        self.samples.append((suffix, labels, value))

    def add_histogram(
        self, bounds: Iterable[float], counts: list[int], total: float, /, **labels: str
    ) -> None:
        """A histogram: `counts` has one more element than `bounds`, for what is above them all."""
        seen = 0
        for bound, count in zip([*bounds, math.inf], counts, strict=True):
            seen += count
            self.add(seen, "_bucket", **labels, le=number(bound))
        self.add(total, "_sum", **labels)
        self.add(seen, "_count", **labels)


def number(value: float) -> str:
    """A value as the format writes it.

    Example:
        >>> number(3.0), number(0.25), number(float("inf"))
        ('3', '0.25', '+Inf')
    """
    if value == math.inf:
        return "+Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e17 else repr(value)


def text(families: Iterable[Family]) -> str:
    """Families as text; one without samples is left out."""
    lines = []
    for family in families:
        if not family.samples:
            continue
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for suffix, labels, value in family.samples:
            inside = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
            braces = f"{{{inside}}}" if inside else ""
            lines.append(f"{family.name}{suffix}{braces} {number(value)}")
    return "\n".join(lines) + "\n"


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def merge(texts: Iterable[str]) -> str:
    """The texts of several workers as one: equal samples are added up.

    Example:
        >>> one = text([Family("hits", "counter", "Hits.", [("", {"model": "a"}, 2)])])
        >>> print(merge([one, one]), end="")
        # HELP hits Hits.
        # TYPE hits counter
        hits{model="a"} 4
    """
    heads: dict[str, list[str]] = {}  # family -> its comments
    samples: dict[str, dict[str, float]] = {}  # family -> sample -> value
    for one in texts:
        family = ""
        for line in one.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                samples.setdefault(family, {})
                if line not in head:
                    head.append(line)
            elif found := _SAMPLE.fullmatch(line):
                key, value = found[1] + (found[2] or ""), float(found[3])
                into = samples.setdefault(family, {})
                if key not in into:
                    into[key] = value
                else:
                    into[key] = max(into[key], value) if family in _MAXIMA else into[key] + value
    lines: list[str] = []
    for family, head in heads.items():
        lines += head
        lines += [f"{key} {number(value)}" for key, value in samples[family].items()]
    return "\n".join(lines) + "\n"


def total(text: str, name: str) -> float:
    r"""The sum of a metric over its labels.

    Example:
        >>> total('hits{model="a"} 4\nhits{model="b"} 1\n', "hits")
        5.0
    """
    found = map(_SAMPLE.fullmatch, text.splitlines())
    return sum(float(sample[3]) for sample in found if sample and sample[1] == name)
