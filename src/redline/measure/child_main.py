"""The program of a child process: wait for a call, do it, answer, until the parent is gone."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from redline.errors import RedlineError
from redline.measure.wire import read_frame, write_frame


def main() -> None:
    """Serve calls from the file descriptors named on the command line: requests, answers, life."""
    requests, answers, life = (int(word) for word in sys.argv[1:4])
    threading.Thread(target=_die_with_parent, args=(life,), daemon=True).start()
    _be_first_to_go()
    sys.path[:] = read_frame(requests)
    state: dict[str, Any] = {}
    while True:
        try:
            call = read_frame(requests)
        except EOFError:
            break
        write_frame(answers, _answer(state, call))
    os._exit(0)  # backends may hang in their own shutdown; nobody needs it


def _answer(state: dict[str, Any], call: dict[str, Any]) -> dict[str, Any]:
    try:
        module, _, name = call["function"].partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return {"result": function(state, **call["arguments"])}
    except RedlineError as error:
        words = {"what": error.what, "where": error.where, "hint": error.hint}
        return {"error": {"type": type(error).__name__, **words}}
    except MemoryError:
        gc.collect()
        return {"error": {"type": "OutOfMemoryError", "what": "Python could not allocate memory"}}
    except Exception as error:  # whatever a backend raises is a row in the table
        text = "".join(traceback.format_exception(error)).strip()
        what = f"{type(error).__name__}: {error}".strip(": \n")
        return {"error": {"type": "", "what": what, "trace": text}}


def _die_with_parent(life: int) -> None:
    """The parent holds the other end and never writes: reading returns when the parent is gone."""
    with suppress(OSError):
        os.read(life, 1)
    os.killpg(0, signal.SIGKILL)  # we lead our own group: compilers we started go with us


def _be_first_to_go() -> None:
    """If the machine runs out of memory, the kernel should take this process, not the user's."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
