"""Everything around the data plane, put together from what the operator asked for.

The server gives its plane and its protocol's application, and gets the application to serve, what
uvicorn and gRPC need to know, and one thing to close at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redline import knobs
from redline.errors import InputError
from redline.serve import logs, tracing, transport
from redline.serve.cache import ResponseCache
from redline.serve.keys import Keys
from redline.serve.messages import ServeError, Status
from redline.serve.metrics import Metrics
from redline.serve.ops import Operations, Served
from redline.serve.routes import Gate, classify_rpc
from redline.serve.security import Access, keys_in

_LOG = logging.getLogger("redline.serve")


@dataclass(frozen=True)
class Options:
    """What the operator asked for. Paths that are None and 0 mean: not used.

    Attributes:
        api_key_file, admin_key_file: keys of the data and of the control plane, one a line; the
            knobs REDLINE_API_KEY and REDLINE_ADMIN_KEY hold one key each instead.
        allow_control: the control plane without a key, on loopback only.
        admin_port: the control plane is on this port alone, which is always on 127.0.0.1.
        tls_cert, tls_key: PEM files; with them HTTPS and gRPC over TLS, and nothing in the clear.
        tls_ca: clients must have a certificate that this CA signed.
        trace_endpoint: an OTLP collector, such as http://localhost:4318/v1/traces.
        trace_rate: one of so many requests that bring no trace context of their own; 0 for none.
        log_format: text or json.
        verbose: a line for each request.
        cache_bytes: size of the response cache.
    """

    api_key_file: Path | None = None
    admin_key_file: Path | None = None
    allow_control: bool = False
    admin_port: int = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    trace_endpoint: str = ""
    trace_rate: int = 1000
    log_format: logs.Format = "text"
    verbose: bool = False
    cache_bytes: int = 0

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls-cert and --tls-key need each other")
        if self.tls_ca is not None and self.tls_cert is None:
            raise InputError("--tls-ca needs --tls-cert and --tls-key")
        if self.cache_bytes < 0 or self.trace_rate < 0:
            raise InputError("--cache-bytes and --trace-rate are 0 or more")
        if self.log_format not in ("text", "json"):
            raise InputError(f"--log-format is {self.log_format!r}, expected text or json")


class Operator:
    """Made once for a server; `host` must have been allowed to be bound.

    Attributes:
        cache: the response cache, or None; `plane.cache`.
        hooks: for the data plane, to be called after each request.

    Example:
        >>> operator = Operator(plane, Options(), host="127.0.0.1")
        >>> plane.hooks += operator.hooks
        >>> config = uvicorn.Config(operator.app(rest_app), **operator.uvicorn())

    Raises:
        InputError: keys, certificates or the address cannot be used together.
        MissingError: tracing was asked for and OpenTelemetry is not installed.
    """

    def __init__(
        self, plane: Served, options: Options, *, host: str, allow_remote: bool = False
    ) -> None:
        self.plane = plane
        self.options = options
        api = _keys(options.api_key_file, "REDLINE_API_KEY")
        admin = _keys(options.admin_key_file, "REDLINE_ADMIN_KEY")
        open_control = options.allow_control and admin is None
        transport.check_bind(host, allow_remote=allow_remote, control=open_control)
        self.loopback = transport.is_loopback(host)
        self.access = Access(api, admin, control=open_control, admin_port=options.admin_port)
        self.cache = ResponseCache(options.cache_bytes) if options.cache_bytes else None
        self.metrics = Metrics(plane, self.cache)
        self.log_settings = logs.Settings(form=options.log_format, verbose=int(options.verbose))
        self.trace_settings = tracing.Settings()
        self.tracer: tracing.Tracer | None = None
        if options.trace_endpoint:
            self.tracer = tracing.exporting(options.trace_endpoint, self.trace_settings)
            self.trace_settings.update({"trace_rate": str(options.trace_rate)})
        self._tls = None
        if options.tls_cert and options.tls_key:
            self._tls = transport.tls_context(options.tls_cert, options.tls_key, options.tls_ca)
        self.hooks: list[Callable[..., None]] = [self.metrics.after, self.log_settings.after]
        if self.tracer is not None:
            self.hooks.append(self.tracer.after)
        self._warn(api)

    def _warn(self, api: Keys | None) -> None:
        if self.loopback:
            return
        if api is None:
            _LOG.warning("anybody who reaches this address may use the models: no API key is set")
        if self._tls is None:
            _LOG.warning("requests and keys travel in the clear: no TLS certificate is set")

    def start_logs(self) -> None:
        """Send logs to stderr in the form that was asked for."""
        logs.setup(self.options.log_format).addFilter(self.log_settings)

    def app(self, inner: Any, scrape: Callable[[], Awaitable[str]] | None = None) -> Operations:
        """The application to serve, around that of the protocol."""
        return Operations(
            inner,
            self.plane,
            self.access,
            metrics=self.metrics,
            log_settings=self.log_settings,
            trace_settings=self.trace_settings,
            tracer=self.tracer,
            scrape=scrape,
            loopback=self.loopback,
        )

    def uvicorn(self) -> dict[str, Any]:
        """Arguments for uvicorn.Config: limits on connections, TLS, no logs of its own."""
        from redline.serve.limits import LimitedProtocol

        found: dict[str, Any] = {
            "http": LimitedProtocol,
            "ws": "none",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "proxy_headers": False,
        }
        if (context := self._tls) is not None:
            found["ssl_context_factory"] = lambda config, default: context
        return found

    def authorize(self, method: str, metadata: Sequence[tuple[str, Any]]) -> None:
        """Decide a gRPC call before its method is looked for.

        Raises:
            ServeError: why it may not go on.
        """
        try:
            gate = classify_rpc(method)
            if gate is None:
                raise ServeError(Status.UNSUPPORTED, "no such method")
            if gate is not Gate.OPEN:
                self.access.check(gate, keys_in(_pairs(metadata)))
        except ServeError as error:
            self.metrics.refuse(error.status)
            raise

    @property
    def control(self) -> bool:
        """Whether anybody may use the control plane."""
        return self.access.control or self.access.admin is not None

    def rpc_credentials(self) -> Any:
        """For add_secure_port; None where there is no TLS."""
        options = self.options
        if options.tls_cert is None or options.tls_key is None:
            return None
        return transport.grpc_credentials(options.tls_cert, options.tls_key, options.tls_ca)

    # What gRPC's RPCs of settings read and change

    def trace(self, model: str, changes: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Trace settings after the changes; a list without a value puts a setting back."""
        wanted = {name: list(values) or None for name, values in changes.items()}
        settings = self.trace_settings
        told = settings.update(wanted, model) if wanted else settings.read(model)
        return {name: found if isinstance(found, list) else [found] for name, found in told.items()}

    def log(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Log settings after the changes."""
        settings = self.log_settings
        return settings.update(changes) if changes else settings.read()

    def close(self) -> None:
        """Send the traces that are waiting."""
        if self.tracer is not None:
            self.tracer.close()


def _pairs(metadata: Sequence[tuple[str, Any]]) -> list[tuple[bytes, bytes]]:
    return [
        (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1", "replace"))
        for name, value in metadata
        if name in ("authorization", "x-api-key")
    ]


def _keys(file: Path | None, knob: str) -> Keys | None:
    if file is not None:
        return Keys.from_file(file)
    value = knobs.text(knob)
    return Keys.of([value]) if value else None
