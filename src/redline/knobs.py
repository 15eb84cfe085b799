"""Every environment variable that Redline reads, and nothing else reads the environment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from redline.errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Knob:
    """One variable: its name, its default as text, and one line of help."""

    name: str
    default: str
    help: str


KNOBS = {
    knob.name: knob
    for knob in (
        Knob("REDLINE_CACHE_DIR", "", "folder of timings, built parts and the machine card"),
        Knob(
            "REDLINE_CONFIG_DIR", "", "folder of this machine's signing key and the keys it trusts"
        ),
        Knob("REDLINE_BUDGET", "60s", "time that optimize() may take when none is given"),
        Knob("REDLINE_THREADS", "0", "threads an engine may use; 0 means every usable core"),
        Knob(
            "REDLINE_MEMORY_LIMIT", "0", "bytes a candidate may use; 0 means 80 % of what is free"
        ),
        Knob("REDLINE_CACHE", "1", "0 turns the timing cache off"),
        Knob("REDLINE_QUIET", "1", "0 races at once, even while other processes use the cores"),
        Knob("REDLINE_PROGRESS", "auto", "progress on stderr: auto (on a terminal), 1 or 0"),
        Knob("REDLINE_TUNE", "1", "0 leaves out native candidates with tuned schedules"),
        Knob("REDLINE_API_KEY", "", "the key that clients of `redline serve` must send"),
        Knob("REDLINE_ADMIN_KEY", "", "the key that opens its control plane"),
        Knob("REDLINE_DUMP", "", "folder that gets the C++ of every native build"),
        Knob("REDLINE_DEBUG", "0", "1 shows tracebacks; 2 to 5 what the native compiler does"),
    )
}


def text(name: str) -> str:
    """The value of a knob, or its default.

    Example:
        >>> text("REDLINE_THREADS").isdigit()
        True

    Raises:
        UnknownNameError: the name is not in KNOBS.
    """
    if name not in KNOBS:
        raise UnknownNameError("knob", name, KNOBS)
    return os.environ.get(name) or KNOBS[name].default


def number(name: str) -> int:
    """The value of a knob that is a whole number.

    Raises:
        InputError: the variable is set to something else.
    """
    value = text(name)
    try:
        return int(value)
    except ValueError:
        raise InputError(
            f"{name} is {value!r}, expected a whole number", hint=KNOBS[name].help
        ) from None


def cache_dir() -> Path:
    """The folder of timings and built parts; made on first use by whoever writes there."""
    return Path(text("REDLINE_CACHE_DIR") or platformdirs.user_cache_dir("redline"))


def config_dir() -> Path:
    """The folder of this machine's signing key and the keys it trusts."""
    return Path(text("REDLINE_CONFIG_DIR") or platformdirs.user_config_dir("redline"))


def child_environment() -> dict[str, str]:
    """The whole environment, to be handed to a process that we start."""
    return dict(os.environ)


@contextlib.contextmanager
def quiet_profiler() -> Iterator[None]:
    """Within it torch's profiler, when it is first used, does not log its start and end to stderr.

    A level that the user has set stays.
    """
    name = "KINETO_LOG_LEVEL"
    if name in os.environ:
        yield
        return
    os.environ[name] = "99"
    try:
        yield
    finally:
        os.environ.pop(name, None)
