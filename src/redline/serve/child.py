"""Engines in child processes: one that crashes or hangs ends its own process, not the server's.

Tensors lie in anonymous memory files that only parent and child have; a socket pair says where. No
name that another process could open, no pickle.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from redline import knobs
from redline.errors import CrashedError, RedlineError, RunError, TimedOutError
from redline.serve.child_wire import Memory, Peer, tensor_of
from redline.serve.messages import ServeError, Status
from redline.serve.opening import Opened, Run

_LOAD_SECONDS = 600.0


def open_isolated(
    path: Path, *, trust: bool, threads: int, max_batch: int, count: int, run_timeout: float
) -> tuple[Opened, tuple[Run, ...], Callable[[], None], Callable[[], None]]:
    """Open a model file in `count` child processes; this process never opens it.

    Args:
        run_timeout: seconds after which a run's process is killed and started again, 0 never.

    Returns:
        What the model takes, one run for each process, what ends them, and what lets run_timeout
        begin to count: the first runs of a model may take longer.

    Raises:
        RedlineError: the child's own error, or that it crashed or hung while loading.
    """
    order = {"path": str(path), "trust": trust, "threads": threads, "max_batch": max_batch}
    children: list[ChildRun] = []

    def close() -> None:
        for child in children:
            child.close()

    def arm() -> None:
        for child in children:
            child.timeout = run_timeout or None

    try:
        for _ in range(count):
            children.append(ChildRun(order))
            told = children[-1].start()
    except BaseException:
        close()
        raise
    opened = Opened(
        inputs=tuple(map(tensor_of, told["inputs"])),
        outputs=tuple(map(tensor_of, told["outputs"])),
        run=children[0],
        close=close,
        platform=told["platform"],
        backend=told["backend"],
        min_batch=told["min_batch"],
        max_batch=told["max_batch"],
        notices=tuple(told["notices"]),
    )
    return opened, tuple(children), close, arm


class ChildRun:
    """Runs in a child process; after a death the next one is started in the background.

    Attributes:
        timeout: seconds that a run may take, None for any.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self.timeout: float | None = _LOAD_SECONDS
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def start(self) -> dict[str, Any]:
        """Start the process and have it open the model; returns what the model takes."""
        self._inward, self._outward = Memory.make(), Memory.make()
        ours, theirs = socket.socketpair()
        alive, self._life = os.pipe()
        fds = (theirs.fileno(), self._inward.fd, self._outward.fd, alive)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "redline.serve.child_main", *map(str, fds)],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # signals of the terminal are for the server, which drains
            env=knobs.child_environment() | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        theirs.close()
        os.close(alive)
        self._peer = Peer(ours)
        try:
            told: dict[str, Any] = self._ask({"open": self._order}, _LOAD_SECONDS)
        except ServeError as error:
            raise (TimedOutError if error.status is Status.DEADLINE else CrashedError)(
                error.what
            ) from None
        except BaseException:
            self._end()
            raise
        return told

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run one batch.

        Raises:
            RunError: the engine refused it.
            ServeError: INTERNAL, the process died; DEADLINE, it hung. A new one is on its way.
        """
        with self._lock:
            if self._process is None:
                self._restart()
            rows = self._inward.write(arrays)
            answer = self._ask({"run": rows, "size": self._inward.size}, self.timeout)
            self._outward.grow_to(answer["size"])
            return self._outward.read(answer["outputs"])

    def close(self) -> None:
        """End the process; a run that waits for it fails."""
        self._closed = True
        process = self._process
        if process is not None:
            _kill(process)
        with self._lock:
            self._end()

    def _restart(self) -> None:
        if self._closed:
            raise ServeError(Status.UNAVAILABLE, "the model was closed")
        try:
            self.start()
        except RedlineError as error:
            raise ServeError(
                Status.UNAVAILABLE, f"the model's process cannot be started: {error.what}"
            ) from error

    def _ask(self, message: dict[str, Any], seconds: float | None) -> Any:
        try:
            self._peer.send(message, seconds)
            answer = self._peer.receive(seconds)
        except TimeoutError:
            self._end()
            self._later()
            raise ServeError(
                Status.DEADLINE, f"the model did not answer within {seconds:g} s"
            ) from None
        except (EOFError, OSError):
            status = self._end()
            self._later()
            raise ServeError(
                Status.INTERNAL, f"the model's process died with {_spell(status)}"
            ) from None
        if "error" in answer:
            raise RunError(answer["error"])
        return answer["result"]

    def _later(self) -> None:
        """Start the next process now, so that the next request need not wait for all of it."""

        def again() -> None:
            with self._lock:
                if self._process is None and not self._closed:
                    with contextlib.suppress(RedlineError):
                        self.start()  # if it fails, the next run tries again and says why

        if not self._closed and self._lock.locked():  # not while it is first opened
            threading.Thread(target=again, name="redline-restart", daemon=True).start()

    def _end(self) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        _kill(process)
        status = process.wait()
        self._peer.close()
        os.close(self._life)
        self._inward.close()
        self._outward.close()
        return status


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _spell(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
