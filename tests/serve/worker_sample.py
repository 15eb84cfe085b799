"""A worker process: the operations around an echo, with ways to crash and to be slow.

python worker_sample.py LISTENER CHANNEL
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import Any

import uvicorn
from ops_samples import QuietPlane, echo, statistics  # type: ignore[import-not-found]

from redline.serve.ops import Operations, answer
from redline.serve.security import Access
from redline.serve.workers import Channel


class Inner:
    """Counts what it answers; /v2/models/{crash,slow}/infer do what they say."""

    def __init__(self) -> None:
        self.plane = QuietPlane([statistics("net")])

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await echo(scope, receive, send)
            return
        if "/crash/" in scope["path"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if "/slow/" in scope["path"]:  # the headers say that it was accepted
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(1.0)
            await send({"type": "http.response.body", "body": b"done"})
            return
        self.plane.rows[0]["inference_stats"]["success"]["count"] += 1
        await answer(send, 200, b'{"pid":%d}' % os.getpid())


async def main(listener: int, channel: int) -> None:
    inner = Inner()
    app = Operations(inner, inner.plane, Access())
    config = uvicorn.Config(app, loop="asyncio", ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)

    def orphaned() -> None:
        server.should_exit = True

    line = Channel(channel, app.metrics.text, orphaned)
    app.scrape = line.scrape
    await line.start()
    await server.serve(sockets=[socket.socket(fileno=listener)])
    await line.close()


if __name__ == "__main__":
    if os.environ.get("SAMPLE_BROKEN"):
        sys.exit(3)
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
