"""Who may do what: keys, the two planes of routes, TLS, and the address that is bound.

Every front asks `Access.check` before it looks for a handler, so no route can be forgotten: what
no row of ROUTES or of the tables of RPCs names does not exist.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import re
import secrets
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from redline.errors import InputError
from redline.serve.messages import ServeError, Status

if TYPE_CHECKING:
    import grpc

_LOG = logging.getLogger("redline.serve")
MIN_KEY = 16  # characters; a shorter key can be guessed
_MAX_KEYS = 1000
_REREAD = 5.0  # seconds between looks at whether the file of keys has changed
_PATH = re.compile(r"(?<![\w./:])(?:/[^\s/'\"`:,;()\[\]<>]+){2,}/?")


class Plane(Enum):
    """What a route may do."""

    OPEN = "open"  # no key: what a load balancer asks, and the page's own files
    DATA = "data"  # an API key, where there are any
    CONTROL = "control"  # changes what is served: off unless the operator turned it on


@dataclass(frozen=True)
class Route:
    """One row: paths (a regular expression on the decoded path) and what they may do."""

    path: str
    plane: Plane

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.path)


_MODEL = r"/v2/models/[^/]+(?:/versions/[^/]+)?"
ROUTES = (
    Route(r"/", Plane.OPEN),
    Route(r"/page/[a-z]+\.(?:css|js)", Plane.OPEN),
    Route(r"/v2/health/(?:live|ready)", Plane.OPEN),
    Route(r"/page/state", Plane.DATA),
    Route(r"/metrics", Plane.DATA),
    Route(r"/v2/?", Plane.DATA),
    Route(rf"{_MODEL}", Plane.DATA),
    Route(rf"{_MODEL}/(?:ready|config|stats|infer|generate|generate_stream)", Plane.DATA),
    Route(r"/v2/models/stats", Plane.DATA),
    Route(r"/v2/repository/index", Plane.DATA),
    Route(r"/v2/repository/models/[^/]+/(?:load|unload)", Plane.CONTROL),
    Route(r"/v2/logging", Plane.CONTROL),
    Route(r"(?:/v2|/v2/models/[^/]+)/trace/setting", Plane.CONTROL),
    Route(
        r"/v2/(?:system|cuda)sharedmemory(?:/region/[^/]+)?/(?:status|register|unregister)",
        Plane.CONTROL,
    ),
)
_RULES = tuple((row.pattern, row.plane) for row in ROUTES)

_OPEN_RPCS = frozenset({"ServerLive", "ServerReady"})
_DATA_RPCS = frozenset(
    {
        "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics",
        "ModelInfer", "ModelStreamInfer", "RepositoryIndex",
    }
)  # fmt: skip
_CONTROL_RPCS = frozenset(
    {
        "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings",
        "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
    }
)  # fmt: skip
_INFERENCE = "inference.GRPCInferenceService"
_SERVICES = {
    "grpc.health.v1.Health": Plane.OPEN,
    "grpc.reflection.v1alpha.ServerReflection": Plane.DATA,
    "grpc.reflection.v1.ServerReflection": Plane.DATA,
}


def classify(path: str) -> Plane | None:
    """What a decoded HTTP path may do; None for a path that does not exist.

    Example:
        >>> classify("/v2/models/net/infer"), classify("/v2/logging"), classify("/v2//logging")
        (<Plane.DATA: 'data'>, <Plane.CONTROL: 'control'>, None)
    """
    for pattern, plane in _RULES:
        if pattern.fullmatch(path):
            return plane
    return None


def classify_rpc(method: str) -> Plane | None:
    """The same for a gRPC method, such as "/inference.GRPCInferenceService/ModelInfer"."""
    service, _, name = method.removeprefix("/").partition("/")
    if service in _SERVICES:
        return _SERVICES[service]
    if service != _INFERENCE:
        return None
    for plane, names in (
        (Plane.OPEN, _OPEN_RPCS), (Plane.DATA, _DATA_RPCS), (Plane.CONTROL, _CONTROL_RPCS),
    ):  # fmt: skip
        if name in names:
            return plane
    return None


class Keys:
    """Keys that open one plane. Only keyed digests are kept, so no dump or log can tell a key.

    A file is looked at every 5 seconds and read anew when it has changed; one that has become
    unusable leaves the old keys in force, and the log says so.

    Example:
        >>> keys = Keys.of(["a-key-of-enough-length"])
        >>> keys.hold(b"a-key-of-enough-length"), keys.hold(b"another-key-of-length")
        (True, False)
    """

    def __init__(self, found: Iterable[bytes], file: Path | None = None) -> None:
        self._salt = secrets.token_bytes(32)
        self._file = file
        self._stamp = _stamp(file)
        self._looked = time.monotonic()
        self._digests = [self._digest(key) for key in found]

    @classmethod
    def of(cls, keys: Iterable[str]) -> Keys:
        """Keys given as texts.

        Raises:
            InputError: one is shorter than 16 characters, or there is none.
        """
        return cls(_checked("\n".join(keys), "the key"))

    @classmethod
    def from_file(cls, path: str | Path) -> Keys:
        """Keys of a file: one a line; blank lines and lines that start with # do not count.

        Raises:
            InputError: it cannot be read, holds no key, or one shorter than 16 characters.
        """
        path = Path(path)
        return cls(_read(path), path)

    def hold(self, presented: bytes) -> bool:
        """Whether it is one of them; takes the same time whichever it is, and if it is none."""
        if self._file is not None and time.monotonic() - self._looked > _REREAD:
            self._reread(self._file)
        digest, found = self._digest(presented), False
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._salt, key, "sha256")

    def _reread(self, file: Path) -> None:
        self._looked = time.monotonic()
        stamp = _stamp(file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._digests = [self._digest(key) for key in _read(file)]
        except InputError as error:
            _LOG.error("the keys are not read anew, the old ones stay: %s", error.what)
        else:
            _LOG.info("keys read anew: %d", len(self._digests))


def _stamp(file: Path | None) -> tuple[int, int] | None:
    try:
        state = file.stat() if file else None
    except OSError:
        return None
    return (state.st_mtime_ns, state.st_size) if state else None


def _read(path: Path) -> list[bytes]:
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1 << 20)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"the file of keys cannot be read: {reason}", where=str(path)) from None
    if mode & 0o004:
        _LOG.warning("every user of this machine can read a file of keys; chmod 600 mends it")
    return _checked(text, "a line", str(path))


def _checked(text: str, what: str, where: str = "") -> list[bytes]:
    keys = [line.strip() for line in text.splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys or len(keys) > _MAX_KEYS:
        raise InputError(
            f"got {len(keys)} keys, expected 1 to {_MAX_KEYS}", where=where,
            hint='python -c "import secrets; print(secrets.token_urlsafe(32))" makes one',
        )  # fmt: skip
    for number, key in enumerate(keys, 1):
        if len(key) < MIN_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(
                f"{what} has {len(key)} characters, expected a key of at least {MIN_KEY} "
                "printable ASCII characters without spaces",
                where=where or f"key {number}",
                hint='python -c "import secrets; print(secrets.token_urlsafe(32))" makes one',
            )
    return [key.encode() for key in keys]


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

    def check(self, plane: Plane, presented: Iterable[bytes], port: int = 0) -> None:
        """Return when the request may go on.

        Args:
            presented: keys that came with it, see `keys_in`.
            port: the local port that it came in by.

        Raises:
            ServeError: UNAUTHENTICATED or FORBIDDEN, or NOT_FOUND on a port without the route.
        """
        if plane is Plane.OPEN or (plane is Plane.DATA and self.api is None):
            return
        if plane is Plane.CONTROL:
            self._check_control(port)
            if self.admin is None:
                return
        given = list(presented)[:4]
        admin = self.admin is not None and any([self.admin.hold(key) for key in given])
        if admin:
            return
        if plane is Plane.DATA and self.api and any([self.api.hold(key) for key in given]):
            return
        if given and plane is Plane.CONTROL and self.api and any(map(self.api.hold, given)):
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


def check_bind(host: str, *, allow_remote: bool, control: bool = False) -> None:
    """Refuse an address that others can reach, unless the operator said so.

    Raises:
        InputError: `host` is not loopback and `allow_remote` is False, it has no address, or the
            control plane would be open to others without a key.
    """
    try:
        # asyncio takes "" for every interface.
        found = {str(info[4][0]) for info in socket.getaddrinfo(host or "0.0.0.0", None)}
    except (OSError, UnicodeError) as error:
        raise InputError(f"the host {host!r} has no address: {error}") from None
    remote = sorted(
        name for name in found if not ipaddress.ip_address(name.partition("%")[0]).is_loopback
    )
    if remote and not allow_remote:
        raise InputError(
            f"the host {host!r} is reachable by other machines ({remote[0]})",
            hint="--allow-remote serves there all the same; give --api-key-file and --tls-cert too",
        )
    if remote and control:
        raise InputError(
            "an open control plane is for loopback only",
            hint="give --admin-key-file instead of --allow-control",
        )


def tls_context(cert: Path, key: Path, ca: Path | None = None) -> ssl.SSLContext:
    """A context for HTTPS of TLS 1.2 or newer; with `ca`, clients need a certificate of it (mTLS).

    Raises:
        InputError: a file that cannot be read or does not fit the others.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError) as error:
        raise _unusable("certificate or key", cert, error) from None
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise _unusable("CA file", ca, error) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def grpc_credentials(cert: Path, key: Path, ca: Path | None = None) -> grpc.ServerCredentials:
    """The same for gRPC.

    Raises:
        InputError: as tls_context, which has the last word on whether the files fit.
    """
    import grpc

    tls_context(cert, key, ca)
    roots = ca.read_bytes() if ca else None
    pair = (key.read_bytes(), cert.read_bytes())
    return grpc.ssl_server_credentials(
        [pair], root_certificates=roots, require_client_auth=ca is not None
    )


def _no_password() -> str:
    raise InputError("the TLS key is encrypted", hint="openssl pkey -in KEY -out PLAIN decrypts it")


def _unusable(what: str, path: Path, error: OSError) -> InputError:
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    return InputError(f"the TLS {what} cannot be used: {reason}", where=str(path))


def scrub(text: str) -> str:
    """A text for a client: absolute paths of this host become "[path]".

    Example:
        >>> scrub("cannot open /srv/models/net/1/model.onnx: no such file")
        'cannot open [path]: no such file'
    """
    return _PATH.sub("[path]", text)


def secret_names(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as a log may tell them: without keys.

    Example:
        >>> secret_names({"X-API-Key": "abc", "Accept": "*/*"})
        {'X-API-Key': '[hidden]', 'Accept': '*/*'}
    """
    hidden = {"authorization", "x-api-key", "cookie", "proxy-authorization"}
    return {
        name: "[hidden]" if name.lower() in hidden else value for name, value in headers.items()
    }
