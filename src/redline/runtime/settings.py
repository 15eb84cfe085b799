"""What every runner reads from a part: its setting, within the limits of machine and user."""

from __future__ import annotations

import os

from redline import knobs
from redline.engine.manifest import Part
from redline.errors import RunError
from redline.signature import Signature


def threads(part: Part) -> int:
    """Threads the part may use: its setting, capped by REDLINE_THREADS and the usable cores.

    Example:
        >>> threads(Part("onnxruntime", {"threads": 1}))
        1
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = knobs.number("REDLINE_THREADS") or usable or 1
    asked = int(part.setting.get("threads", 0)) or limit
    return max(1, min(asked, limit, usable or 1))


def input_order(part: Part, names: list[str], signature: Signature) -> list[str]:
    """The backend's input names in the order of signature.inputs: by name, else by position.

    Raises:
        RunError: the part takes another number of inputs.
    """
    expected = [spec.name for spec in signature.inputs]
    if len(names) != len(expected):
        raise RunError(
            f"the {part.backend} part takes {len(names)} inputs, the signature has {len(expected)}",
            where=f"inputs {', '.join(names)}",
        )
    return expected if set(names) == set(expected) else names


def failed(part: Part, error: Exception) -> RunError:
    """A library's exception as a RunError, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines)[:500] or type(error).__name__
    return RunError(f"{part.backend} failed while running: {text}")


def closed(part: Part) -> RunError:
    """What running a closed part raises."""
    return RunError(f"the {part.backend} part is closed", hint="load the engine again")
