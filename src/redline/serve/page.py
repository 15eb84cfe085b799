"""The page at `/`: models, health, latency and throughput as they are, and a form to try a model.

Three files and one JSON route; the content policy lets the page ask this server and nobody else.
"""

from __future__ import annotations

from importlib import resources
from typing import Any, Protocol

from redline.serve.metrics import Metrics

HEADERS = (
    (
        b"content-security-policy",
        (
            b"default-src 'none'; img-src data:; script-src 'self'; style-src 'self'; "
            b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def _file(name: str) -> bytes:
    return resources.files("redline.serve").joinpath("page_files", name).read_bytes()


# Path -> (content type, bytes).
FILES = {
    "/": (b"text/html; charset=utf-8", _file("page.html")),
    "/page/page.css": (b"text/css; charset=utf-8", _file("page.css")),
    "/page/page.js": (b"text/javascript; charset=utf-8", _file("page.js")),
    "/page/tensor.js": (b"text/javascript; charset=utf-8", _file("tensor.js")),
}


class Shown(Protocol):
    """The part of the data plane that the page shows."""

    def live(self) -> bool: ...
    def ready(self) -> bool: ...
    def server_metadata(self) -> dict[str, Any]: ...
    def index(self, ready_only: bool = False) -> list[dict[str, str]]: ...
    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]: ...
    def waiting(self) -> dict[tuple[str, str], int]: ...


def state(plane: Shown, metrics: Metrics) -> dict[str, Any]:
    """What the page asks for every second; it takes differences of the counts."""
    counted = metrics.state()
    server = plane.server_metadata()
    return {
        "server": {"name": server.get("name", ""), "version": server.get("version", "")},
        "live": plane.live(),
        "ready": plane.ready(),
        "memory": metrics.memory(),
        "models": plane.index(),
        "counted": counted["models"],
        "bounds": counted["bounds"],
    }
