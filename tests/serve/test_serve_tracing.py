"""Traces: the context of W3C in and out, sampled requests only, nothing where it is off."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from ops_samples import Marks  # type: ignore[import-not-found]

from redline.serve import tracing
from redline.serve.messages import Request, Response, ServeError, Status

pytest.importorskip("opentelemetry.sdk")
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, NOT = f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00"


def tracer(**settings: Any) -> tuple[tracing.Tracer, InMemorySpanExporter]:
    spans = InMemorySpanExporter()
    own = tracing.Settings()
    made = tracing.Tracer(tracing.provider(spans, simple=True), own)
    own.update({name: str(value) for name, value in settings.items()})
    return made, spans


def marks() -> Marks:
    now = time.perf_counter()
    return Marks(now, now + 0.001, now + 0.003, now + 0.006, now + 0.007, batch_size=4)


@pytest.mark.parametrize(
    "text",
    [
        "", "x", f"00-{TRACE}-{SPAN}", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01", SAMPLED.upper(), SAMPLED + "-x", "0" * 1000, SAMPLED + "\n",
    ],
)  # fmt: skip
def test_a_broken_context_is_none(text: str) -> None:
    assert tracing.parse(text) is None


def test_a_context_comes_back() -> None:
    found = tracing.parse(SAMPLED)
    assert found is not None
    assert found.header() == SAMPLED
    future = tracing.parse(f"01-{TRACE}-{SPAN}-01-more")
    assert future is not None
    assert future.sampled


def test_a_sampled_request_has_its_phases() -> None:
    made, spans = tracer()
    times = marks()
    made.after(
        Request("net", "1", {}, id="7", traceparent=SAMPLED), Response("net", "1", {}), times
    )
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"infer net", "read", "queue", "compute", "answer"}
    outer = found["infer net"]
    assert f"{outer.context.trace_id:032x}" == TRACE
    assert f"{outer.parent.span_id:016x}" == SPAN
    assert outer.attributes["redline.batch"] == 4
    for name, length in (("read", 1), ("queue", 2), ("compute", 3), ("answer", 1)):
        span = found[name]
        assert span.parent.span_id == outer.context.span_id
        assert span.end_time - span.start_time == pytest.approx(length * 1e6, rel=0.05)
        assert outer.start_time <= span.start_time
        assert span.end_time <= outer.end_time + 1000


@pytest.mark.parametrize("parent", ["", NOT, "nonsense"])
def test_what_is_not_sampled_makes_no_span(parent: str) -> None:
    made, spans = tracer()
    made.after(Request("net", "1", {}, traceparent=parent), Response("net", "1", {}), marks())
    assert spans.get_finished_spans() == ()


def test_a_failure_is_an_error_and_cancelled_in_the_queue_has_no_compute() -> None:
    made, spans = tracer()
    times = marks()
    times.started = times.finished = times.answered = 0.0
    error = ServeError(Status.CANCELLED, "the client left")
    made.after(Request("net", "", {}, traceparent=SAMPLED), error, times)
    found = {span.name: span for span in spans.get_finished_spans()}
    assert set(found) == {"infer net", "read"}
    assert found["infer net"].status.is_ok is False
    assert found["infer net"].attributes["redline.status"] == "CANCELLED"


def test_sampling_by_rate_count_and_caller() -> None:
    made, _ = tracer(trace_rate=10)
    assert sum(made.sample("", "net") is not None for _ in range(100)) == 10
    own = made.sample(SAMPLED, "net")
    assert own is not None
    assert f"{own.trace:032x}" == TRACE
    assert own.span != int(SPAN, 16)
    assert made.sample(NOT, "net") is None
    made.settings.update({"trace_rate": "1", "trace_count": "3"})
    assert sum(made.sample("", "net") is not None for _ in range(10)) == 3
    made.settings.update({"trace_level": ["OFF"], "trace_count": "-1"})
    assert made.sample(SAMPLED, "net") is None
    made.settings.update({"trace_level": ["TIMESTAMPS"]}, "other")
    assert made.sample(SAMPLED, "other") is not None


def test_the_server_span_has_the_id_that_was_told() -> None:
    made, spans = tracer(trace_rate=1)
    for parent in (SAMPLED, ""):
        own = made.sample(parent, "net")
        assert own is not None
        made.server_span(own, parent, "POST infer", time.perf_counter(), 200)
        span = spans.get_finished_spans()[-1]
        assert span.context.span_id == own.span
        if parent:
            assert span.context.trace_id == int(TRACE, 16)
        else:
            assert span.context.trace_id == own.trace


def test_settings_by_tritons_names() -> None:
    settings = tracing.Settings()
    assert settings.read()["trace_level"] == ["OFF"]
    with pytest.raises(ServeError, match="not set up"):
        settings.update({"trace_level": ["TIMESTAMPS"]})
    settings.on = True
    told = settings.update({"trace_rate": "5"}, "net")
    assert told["trace_rate"] == "5"
    assert settings.read()["trace_rate"] == "1000"
    assert settings.update({"trace_rate": None}, "net")["trace_rate"] == "1000"
    for bad in (
        {"trace_file": "/etc/passwd"}, {"trace_level": ["TENSORS"]}, {"trace_rate": "-1"},
        {"trace_rate": "x"}, {"trace_count": -2}, {"nope": 1}, {"trace_mode": "triton"},
    ):  # fmt: skip
        with pytest.raises(ServeError) as caught:
            settings.update(bad)
        assert caught.value.status is Status.INVALID


def test_spans_reach_a_collector() -> None:
    """Over HTTP, as OTLP protobuf."""
    got: list[bytes] = []

    class Collector(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}/v1/traces"
        made = tracing.exporting(endpoint, tracing.Settings())
        made.after(Request("net", "1", {}, traceparent=SAMPLED), Response("net", "1", {}), marks())
        made.close()
        server.shutdown()
        thread.join()
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    message = ExportTraceServiceRequest()
    message.ParseFromString(got[0])
    spans = message.resource_spans[0].scope_spans[0].spans
    assert {span.name for span in spans} >= {"infer net", "compute"}
    assert all(span.trace_id.hex() == TRACE for span in spans)


def test_off_imports_nothing() -> None:
    code = (
        "import sys, redline.serve.tracing, redline.serve.metrics;"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library_it_is_one_error() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from redline.errors import MissingError\n"
        "from redline.serve import tracing\n"
        "try: tracing.exporting('http://x', tracing.Settings())\n"
        "except MissingError as error: print(error.hint)"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "redline[otel]" in told.stdout
