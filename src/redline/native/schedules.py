"""Schedules that tuning found, kept beside the timing cache.

The timing cache keeps a tuned part for exactly one model. These are kept by what decides them, and
that is not the weights: the same network trained further takes its schedules over and is not timed
again. They are JSON, one file for each network, in "schedules" of the cache's folder.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from redline import knobs, machine
from redline.native import toolchain
from redline.native.debug import describe
from redline.native.ir import Program
from redline.native.isa import Isa
from redline.native.tune import Choices, Unit


def place(program: Program, units: Sequence[Unit], isa: Isa, threads: int, winograd: bool) -> Path:
    """The file for a network on this machine, with this compiler and these kernels.

    Example:
        >>> place(program, space(program, isa, False), isa, 2, False).suffix
        '.json'
    """
    facts = [machine.fingerprint(), toolchain.fingerprint(), isa.name, threads, winograd]
    facts += [describe(node) for node in program.nodes]
    facts += [[unit.key, [dict(way) for way in unit.ways]] for unit in units]
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return knobs.cache_dir() / "schedules" / f"{name}.json"


def known(path: Path, units: Sequence[Unit]) -> Choices | None:
    """What was kept there; None where there is nothing, or nothing that fits the units."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    ways = {unit.key: [json.dumps(dict(way)) for way in unit.ways] for unit in units}
    if not isinstance(found, dict):
        return None
    if not all(json.dumps(way) in ways.get(key, ()) for key, way in found.items()):
        return None
    return {key: _tuples(way) for key, way in found.items()}


def _tuples(way: dict[str, object]) -> dict[str, object]:
    return {name: tuple(v) if isinstance(v, list) else v for name, v in way.items()}


def keep(path: Path, choices: Choices) -> None:
    """Write them, to the side and then into place."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        beside = Path(folder) / path.name
        text = json.dumps({key: dict(way) for key, way in choices.items()})
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
