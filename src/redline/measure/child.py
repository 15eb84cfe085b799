"""Child processes with limits on memory and time: a crash becomes an exception here, not an end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import Any

import psutil

from redline import errors, knobs
from redline.measure.wire import read_frame, readable, write_frame

_WATCH = 0.05  # seconds between two looks at the child's memory
_LAST_LINES = 4


class Child:
    """A fresh Python process that does one call at a time.

    Functions are named "module:function" and called as `function(state, **arguments)`, where
    `state` is a dict that lives as long as the child. Arguments and results are plain data.

    Example:
        >>> with Child(memory=2 << 30) as child:
        ...     child.call("redline.measure.work:peak_memory") > 1 << 20
        True
    """

    def __init__(self, *, memory: int | None = None) -> None:
        self.memory = memory
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        theirs_life, self._life = os.pipe()
        fds = (theirs_in, theirs_out, theirs_life)
        command = [sys.executable, "-P", "-m", "redline.measure.child_main", *map(str, fds)]
        self._process = subprocess.Popen(
            command,
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is for the parent; it decides what to do with us
            env=knobs.child_environment(),
        )
        for fd in fds:
            os.close(fd)
        self._closed = False
        self._send([entry or os.getcwd() for entry in sys.path])

    def call(
        self, function: str, *, timeout: float = 600.0, watch: bool = True, **arguments: Any
    ) -> Any:
        """Run a function in the child and wait for its result.

        Args:
            function: "module:function".
            timeout: seconds.
            watch: look at the child's memory while waiting; off while timing on few cores.

        Raises:
            CrashedError, TimedOutError, OutOfMemoryError: the child is closed.
            RedlineError: what the function raised, as the same class; RunError for anything else.
        """
        self._send({"function": function, "arguments": arguments})
        deadline = time.monotonic() + timeout
        while not readable(self._in, _WATCH if watch else min(1.0, timeout)):
            if time.monotonic() > deadline:
                self.close()
                raise errors.TimedOutError(f"no answer within {timeout:.0f} s", where=function)
            self._check_memory()
        try:
            answer = read_frame(self._in)
        except EOFError:
            raise self._death(function) from None
        if "error" in answer:
            raise self._revive(answer["error"])
        return answer["result"]

    def kill(self) -> None:
        """End the process and everything it started; a call that waits in another thread raises."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the child and let go of it. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self.kill()
        self._process.wait()
        for fd in (self._in, self._out, self._life):
            os.close(fd)
        self._log.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()

    def _send(self, value: Any) -> None:
        try:
            write_frame(self._out, value)
        except BrokenPipeError:
            raise self._death("start") from None

    def _check_memory(self) -> None:
        if self.memory is None:
            return
        used = 0
        with suppress(psutil.Error):
            process = psutil.Process(self._process.pid)
            for one in (process, *process.children(recursive=True)):
                used += one.memory_info().rss
        if used > self.memory:
            self.close()
            raise errors.OutOfMemoryError(
                f"used {used / 2**20:.0f} MiB, its limit is {self.memory / 2**20:.0f} MiB",
                hint="free memory, or raise REDLINE_MEMORY_LIMIT (bytes)",
            )

    def _death(self, function: str) -> errors.ChildError:
        """Why the pipe closed, from the exit status and the last words on stderr."""
        status = self._process.wait()
        words = self._last_words()
        self.close()
        if status == -signal.SIGKILL:
            what = "killed by the system, most likely because memory ran out"
            return errors.OutOfMemoryError(what, where=function)
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        said = f"; its last words: {words}" if words else ""
        return errors.CrashedError(f"the process died with {name}{said}", where=function)

    def _last_words(self) -> str:
        self._log.seek(max(0, self._log.seek(0, os.SEEK_END) - 4096))
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " | ".join(line.strip() for line in lines[-_LAST_LINES:])

    @staticmethod
    def _revive(error: dict[str, str]) -> errors.RedlineError:
        kind = getattr(errors, error["type"], None) if error["type"] else None
        if kind is errors.UnknownNameError or not (
            isinstance(kind, type) and issubclass(kind, errors.RedlineError)
        ):
            kind = errors.RunError
        revived = kind(error["what"], where=error.get("where", ""), hint=error.get("hint", ""))
        if error.get("trace"):
            revived.add_note(error["trace"])
        return revived
