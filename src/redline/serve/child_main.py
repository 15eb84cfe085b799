"""The program of an isolated engine's process: open one model, run batches, end with the parent."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from redline.errors import RedlineError
from redline.serve.child_wire import Memory, Peer, told_tensor
from redline.serve.names import scrub
from redline.serve.opening import Opened, open_model


def main() -> None:
    """Serve the socket and memory files whose descriptors the command line names."""
    sock, inward, outward, life = (int(word) for word in sys.argv[1:5])
    threading.Thread(target=_die_with_parent, args=(life,), daemon=True).start()
    _be_first_to_go()
    peer = Peer(socket.socket(fileno=sock))
    engine = Engine(Memory(inward), Memory(outward))
    while True:
        try:
            message = peer.receive()
        except (EOFError, OSError):
            os._exit(0)  # backends may hang in their own shutdown; nobody needs it
        peer.send(engine.answer(message))


class Engine:
    """The one model of this process."""

    def __init__(self, inward: Memory, outward: Memory) -> None:
        self._inward, self._outward = inward, outward
        self._opened: Opened | None = None

    def answer(self, message: dict[str, Any]) -> dict[str, Any]:
        """{"result": ...}, or {"error": what}."""
        try:
            if "open" in message:
                return {"result": self._open(message["open"])}
            return {"result": self._run(message)}
        except RedlineError as error:
            return {"error": scrub(error.what)}
        except Exception as error:
            return {"error": scrub(f"{type(error).__name__}: {error}")}

    def _open(self, order: dict[str, Any]) -> dict[str, Any]:
        opened = self._opened = open_model(
            Path(order["path"]),
            trust=order["trust"],
            threads=order["threads"],
            max_batch=order["max_batch"],
        )
        return {
            "inputs": [told_tensor(tensor) for tensor in opened.inputs],
            "outputs": [told_tensor(tensor) for tensor in opened.outputs],
            "platform": opened.platform,
            "backend": opened.backend,
            "min_batch": opened.min_batch,
            "max_batch": opened.max_batch,
            "notices": opened.notices,
        }

    def _run(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._opened is not None  # the parent opens first
        self._inward.grow_to(message["size"])
        outputs = self._opened.run(self._inward.read(message["run"], copy=False))
        return {"outputs": self._outward.write(outputs), "size": self._outward.size}


def _die_with_parent(life: int) -> None:
    """The parent holds the other end and never writes: reading returns when the parent is gone."""
    with suppress(OSError):
        os.read(life, 1)
    os.killpg(0, signal.SIGKILL)


def _be_first_to_go() -> None:
    """If the machine runs out of memory, the kernel should take this process, not the server."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
