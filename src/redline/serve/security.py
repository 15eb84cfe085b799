"""Who may pass: keys on two planes of routes, and browsers of other sites never.

Every front asks `Access.check` before it looks for a handler, so no route can be forgotten.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

from redline.serve.keys import Keys
from redline.serve.messages import ServeError, Status
from redline.serve.routes import Gate

_PATH = re.compile(r"(?<![\w./:])(?:/[^\s/'\"`:,;()\[\]<>]+){2,}/?")


class Access:
    """Decides every request of every front, before routing.

    Args:
        api: keys of the data plane; None leaves it open.
        admin: keys of the control plane; they open the data plane too. None: see `control`.
        control: the control plane is open without a key. Only for loopback.
        admin_port: control routes exist on this port alone; 0 for any.
    """

    def __init__(
        self,
        api: Keys | None = None,
        admin: Keys | None = None,
        *,
        control: bool = False,
        admin_port: int = 0,
    ) -> None:
        self.api = api
        self.admin = admin
        self.control = control
        self.admin_port = admin_port

    def check(self, gate: Gate, presented: Iterable[bytes], port: int = 0) -> None:
        """Return when the request may go on.

        Args:
            presented: keys that came with it, see `keys_in`.
            port: the local port that it came in by.

        Raises:
            ServeError: UNAUTHENTICATED or FORBIDDEN, or NOT_FOUND on a port without the route.
        """
        if gate is Gate.OPEN or (gate is Gate.DATA and self.api is None):
            return
        if gate is Gate.CONTROL:
            self._check_control(port)
            if self.admin is None:
                return
        given = list(presented)[:4]
        user = _opens(self.api, given)
        if _opens(self.admin, given) or (user and gate is Gate.DATA):
            return
        if user:
            raise ServeError(Status.FORBIDDEN, "this key does not open the control plane")
        raise ServeError(
            Status.UNAUTHENTICATED,
            "the key is not known" if given
            else "a key is needed: send 'Authorization: Bearer KEY' or 'X-API-Key: KEY'",
        )  # fmt: skip

    def _check_control(self, port: int) -> None:
        if self.admin is None and not self.control:
            raise ServeError(
                Status.FORBIDDEN,
                "the control plane is off; the operator turns it on with --admin-key-file, or on "
                "loopback with --allow-control",
            )
        if self.admin_port and port != self.admin_port:
            raise ServeError(Status.NOT_FOUND, "the control plane is not on this port")


def _opens(keys: Keys | None, given: list[bytes]) -> bool:
    found = False
    for key in given if keys is not None else ():
        found |= keys.hold(key)  # type: ignore[union-attr]
    return found


def keys_in(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """The keys among ASGI headers (lower-case names); the same names as gRPC metadata.

    Example:
        >>> keys_in([(b"authorization", b"Bearer abc"), (b"x-api-key", b"def")])
        [b'abc', b'def']
    """
    found = []
    for name, value in headers:
        if name == b"x-api-key":
            found.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            found.append(value[7:].strip())
    return found


def check_browser(headers: Iterable[tuple[bytes, bytes]], *, loopback: bool) -> None:
    """Refuse what a page of another site sends by way of the user's browser.

    A browser says where a request comes from, other clients say nothing and pass. On loopback the
    server must also be called by such a name: a foreign name that leads here is DNS rebinding.

    Raises:
        ServeError: FORBIDDEN.
    """
    origin = site = host = b""
    for name, value in headers:
        if name == b"origin":
            origin = value
        elif name == b"sec-fetch-site":
            site = value
        elif name == b"host":
            host = value
    if not origin and not site:
        return
    foreign = site in (b"cross-site", b"same-site") or (
        origin and origin.rpartition(b"/")[2] != host
    )
    if foreign or (loopback and not _loopback_name(host.decode("latin-1"))):
        raise ServeError(Status.FORBIDDEN, "requests from pages of other sites are refused")


def _loopback_name(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    name = name.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def scrub(text: str) -> str:
    """A text for a client: absolute paths of this host become "[path]".

    Example:
        >>> scrub("cannot open /srv/models/net/1/model.onnx: no such file")
        'cannot open [path]: no such file'
    """
    return _PATH.sub("[path]", text)
