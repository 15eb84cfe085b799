"""OpenTelemetry traces of requests (extra `otel`), for the sampled ones only.

A hook of the data plane makes the spans from the marks that a request has anyway, once it is over:
off, and for a request that is not sampled, a trace costs nothing. The W3C context that came with
a request (`traceparent`) is its parent; the context of our own span goes back with the answer.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from redline.errors import MissingError
from redline.serve.messages import Request, Response, ServeError, Status

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

    from redline.serve.plane import Times

_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_ZERO = ("0" * 32, "0" * 16)


@dataclass(frozen=True, slots=True)
class Context:
    """A W3C trace context."""

    trace: int
    span: int
    sampled: bool

    def header(self) -> str:
        """As `traceparent` writes it."""
        return f"00-{self.trace:032x}-{self.span:016x}-{int(self.sampled):02x}"


def parse(traceparent: str) -> Context | None:
    """The context of a `traceparent`; None for one that is not valid, which is then not there.

    Example:
        >>> parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").sampled
        True
    """
    if len(traceparent) > 512 or not (found := _PARENT.fullmatch(traceparent)):
        return None
    version, trace, span, flags = found.groups()
    bad_version = version == "ff" or (version == "00" and len(traceparent) != 55)
    if bad_version or trace == _ZERO[0] or span == _ZERO[1]:
        return None
    return Context(int(trace, 16), int(span, 16), bool(int(flags, 16) & 1))


@dataclass(frozen=True)
class _Choice:
    """What is traced. Triton's names in `read`.

    Attributes:
        level: OFF or TIMESTAMPS.
        rate: one of so many requests that bring no context; 0 for none.
        count: how many more are traced; -1 for no end.
    """

    level: str = "TIMESTAMPS"
    rate: int = 1000
    count: int = -1


@dataclass
class Settings:
    """Triton's trace settings, of the server and of models that differ from it."""

    on: bool = False
    own: _Choice = field(default_factory=_Choice)
    models: dict[str, _Choice] = field(default_factory=dict)

    def of(self, model: str) -> _Choice:
        """What holds for a model."""
        return self.models.get(model, self.own)

    def read(self, model: str = "") -> dict[str, Any]:
        """By Triton's names; its values are texts."""
        now = self.of(model)
        return {
            "trace_level": [now.level if self.on else "OFF"],
            "trace_rate": str(now.rate),
            "trace_count": str(now.count),
            "log_frequency": "0",
            "trace_file": "",
            "trace_mode": "opentelemetry",
        }

    def update(self, wanted: Mapping[str, Any], model: str = "") -> dict[str, Any]:
        """Change all that is named, or nothing; None puts a setting back.

        Raises:
            ServeError: INVALID: a name or value that is not known, or tracing was not set up when
                the server was started.

        Example:
            >>> Settings(on=True).update({"trace_rate": "10"})["trace_rate"]
            '10'
        """
        base = self.own if model else _Choice()
        now = self.of(model)
        for name, value in wanted.items():
            if name == "trace_level":
                now = replace(now, level=base.level if value is None else _level(value))
            elif name == "trace_rate":
                now = replace(now, rate=base.rate if value is None else _whole(name, value, 0))
            elif name == "trace_count":
                now = replace(now, count=base.count if value is None else _whole(name, value, -1))
            elif self.read(model).get(name) != value and value is not None:
                known = "trace_level, trace_rate and trace_count"
                raise ServeError(
                    Status.INVALID,
                    f"trace setting {str(name)[:80]!r} cannot be changed; {known} can",
                )
        if not self.on and now.level != "OFF" and wanted:
            raise ServeError(
                Status.INVALID,
                "tracing is not set up; the operator gives --trace-endpoint when starting",
            )
        if model:
            self.models[model] = now
        else:
            self.own = now
        return self.read(model)


def _level(value: Any) -> str:
    levels = [value] if isinstance(value, str) else value
    if levels not in (["OFF"], ["TIMESTAMPS"]):
        raise ServeError(
            Status.INVALID, f"trace_level is {str(value)[:80]}, expected ['OFF'] or ['TIMESTAMPS']"
        )
    return str(levels[0])


def _whole(name: str, value: Any, low: int) -> int:
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    text = str(value)
    if not re.fullmatch(r"-?\d{1,9}", text) or int(text) < low:
        raise ServeError(
            Status.INVALID, f"{name} is {text[:80]!r}, expected a whole number of at least {low}"
        )
    return int(text)


class Tracer:
    """Samples requests and writes their spans.

    Args:
        provider: where spans go; see `exporting`.
        settings: what is traced; may change while the server runs.
    """

    def __init__(self, provider: TracerProvider, settings: Settings) -> None:
        from opentelemetry import trace

        self.provider = provider
        self.settings = settings
        settings.on = True
        self._trace = trace
        self._tracer = provider.get_tracer("redline.serve")
        self._seen = 0
        # perf_counter to the wall clock, once: spans of one process keep their order.
        self._epoch = time.time_ns() - time.perf_counter_ns()

    def sample(self, request_parent: str, model: str) -> Context | None:
        """The context of a request's own span, when it is traced, before it is known how it ends.

        A caller that samples decides; others are sampled at the rate of the settings.
        """
        now = self.settings.of(model)
        if now.level == "OFF" or now.count == 0:
            return None
        parent = parse(request_parent) if request_parent else None
        if parent is not None:
            if not parent.sampled:
                return None
        else:
            self._seen += 1
            if not now.rate or self._seen % now.rate:
                return None
        if now.count > 0:
            self._spend(model, now)
        trace = parent.trace if parent else secrets.randbits(127) + 1
        return Context(trace, secrets.randbits(63) + 1, True)

    def _spend(self, model: str, now: _Choice) -> None:
        less = replace(now, count=now.count - 1)
        if model in self.settings.models:
            self.settings.models[model] = less
        else:
            self.settings.own = less

    def after(self, request: Request, outcome: Response | ServeError, times: Times) -> None:
        """A hook of the data plane: the spans of a request whose context says it is sampled."""
        if not request.traceparent:
            return
        parent = parse(request.traceparent)
        if parent is None or not parent.sampled or self.settings.of(request.model).level == "OFF":
            return
        failed = isinstance(outcome, ServeError)
        attributes: dict[str, Any] = {
            "redline.model": request.model,
            "redline.version": request.version if failed else outcome.version,  # type: ignore[union-attr]
            "redline.batch": int(times.batch_size),
        }
        if request.id:
            attributes["redline.request_id"] = request.id[:256]
        span = self._start("infer " + request.model, parent, times.arrived, attributes)
        inside = span.get_span_context()
        inner = Context(inside.trace_id, inside.span_id, True)
        for name, start, end in (
            ("read", times.arrived, times.queued),
            ("queue", times.queued, times.started),
            ("compute", times.started, times.finished),
            ("answer", times.finished, times.answered),
        ):
            if start and end >= start:
                self._start(name, inner, start, {}).end(self._nanoseconds(end))
        if failed:
            status = outcome.status.name  # type: ignore[union-attr]
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, status))
            span.set_attribute("redline.status", status)
        span.end(self._nanoseconds(times.answered or time.perf_counter()))

    def server_span(self, own: Context, parent: str, name: str, start: float, status: int) -> None:
        """The outermost span, of the whole HTTP request, under an id that was told already."""
        found = parse(parent) if parent else None
        span = _with_id(self.provider, own)(
            self._tracer, name, self._context(found) if found else None,
            self._nanoseconds(start), self._trace.SpanKind.SERVER,
        )  # fmt: skip
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
        span.end(self._nanoseconds(time.perf_counter()))

    def close(self) -> None:
        """Send what is waiting; takes at most the exporter's own timeout."""
        self.provider.shutdown()

    def _nanoseconds(self, mark: float) -> int:
        return self._epoch + int(mark * 1e9)

    def _context(self, parent: Context) -> Any:
        trace = self._trace
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED if parent.sampled else 0)
        return trace.set_span_in_context(
            trace.NonRecordingSpan(
                trace.SpanContext(parent.trace, parent.span, is_remote=True, trace_flags=flags)
            )
        )

    def _start(self, name: str, parent: Context, start: float, attributes: dict[str, Any]) -> Any:
        return self._tracer.start_span(
            name, self._context(parent), start_time=self._nanoseconds(start), attributes=attributes
        )


class _Ids:
    """Ids for spans: those that were told in advance first, then random ones."""

    def __init__(self) -> None:
        self.told: Context | None = None

    def generate_span_id(self) -> int:
        return self.told.span if self.told else secrets.randbits(63) + 1

    def generate_trace_id(self) -> int:
        return self.told.trace if self.told else secrets.randbits(127) + 1

    def is_trace_id_random(self) -> bool:
        return True


def _with_id(provider: TracerProvider, own: Context) -> Any:
    """start_span with the ids of `own`; the loop runs nothing in between."""

    def start(tracer: Any, name: str, context: Any, at: int, kind: Any) -> Any:
        ids = provider.id_generator
        assert isinstance(ids, _Ids)
        ids.told = own
        try:
            return tracer.start_span(name, context, kind=kind, start_time=at)
        finally:
            ids.told = None

    return start


def provider(exporter: SpanExporter, *, simple: bool = False) -> TracerProvider:
    """A provider of our own that keeps every span it gets: what is sampled is decided here.

    Args:
        simple: export each span at once, for tests.

    Raises:
        MissingError: opentelemetry is not installed.
    """
    resources, trace, export = _sdk()
    resource = resources.Resource.create({"service.name": "redline"})
    made: TracerProvider = trace.TracerProvider(
        resource=resource, sampler=trace.sampling.ALWAYS_ON, id_generator=_Ids(),
        shutdown_on_exit=False,
    )  # fmt: skip
    kind = export.SimpleSpanProcessor if simple else export.BatchSpanProcessor
    made.add_span_processor(kind(exporter))
    return made


def exporting(endpoint: str, settings: Settings) -> Tracer:
    """A tracer that sends to an OTLP collector over HTTP, such as http://localhost:4318/v1/traces.

    Raises:
        MissingError: opentelemetry is not installed.
    """
    _sdk()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise _missing() from None
    return Tracer(provider(OTLPSpanExporter(endpoint=endpoint, timeout=5)), settings)


def _sdk() -> tuple[Any, Any, Any]:
    """(resources, trace, export) of the SDK."""
    try:
        from opentelemetry.sdk import resources, trace
        from opentelemetry.sdk.trace import export
    except ImportError:
        raise _missing() from None
    return resources, trace, export


def _missing() -> MissingError:
    return MissingError("OpenTelemetry is not installed", hint="pip install 'redline[otel]'")
