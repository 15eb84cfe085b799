"""The outermost application: who may pass, and what operators are told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from ops_samples import QuietPlane, echo, statistics  # type: ignore[import-not-found]
from prometheus_client.parser import text_string_to_metric_families

from redline.serve import tracing
from redline.serve.keys import Keys
from redline.serve.ops import Operations
from redline.serve.routes import Gate
from redline.serve.security import Access

USER, ADMIN = "user-key-0123456789", "admin-key-0123456789"
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def app(access: Access | None = None, **more: Any) -> Operations:
    return Operations(echo, QuietPlane([statistics("net", success=2)]), access or Access(), **more)


def ask(made: Operations, method: str, path: str, **more: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app=made)
        base = "http://localhost:8000"
        async with httpx.AsyncClient(transport=transport, base_url=base) as client:
            return await client.request(method, path, **more)

    return asyncio.run(run())


# A path for every row of the table of routes.
EXAMPLES = {
    "/": Gate.OPEN,
    "/page/page.css": Gate.OPEN,
    "/page/page.js": Gate.OPEN,
    "/v2/health/live": Gate.OPEN,
    "/v2/health/ready": Gate.OPEN,
    "/page/state": Gate.DATA,
    "/metrics": Gate.DATA,
    "/v2": Gate.DATA,
    "/v2/models/net": Gate.DATA,
    "/v2/models/net/versions/1/ready": Gate.DATA,
    "/v2/models/net/infer": Gate.DATA,
    "/v2/models/stats": Gate.DATA,
    "/v2/repository/index": Gate.DATA,
    "/v2/repository/models/net/load": Gate.CONTROL,
    "/v2/repository/models/net/unload": Gate.CONTROL,
    "/v2/logging": Gate.CONTROL,
    "/v2/trace/setting": Gate.CONTROL,
    "/v2/models/net/trace/setting": Gate.CONTROL,
    "/v2/systemsharedmemory/status": Gate.CONTROL,
    "/v2/cudasharedmemory/region/a/register": Gate.CONTROL,
}
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")


@pytest.mark.parametrize("path", EXAMPLES)
@pytest.mark.parametrize("method", METHODS)
def test_no_method_of_any_route_passes_without_its_key(method: str, path: str) -> None:
    made = app(Access(Keys.of([USER]), Keys.of([ADMIN])))
    plane = EXAMPLES[path]
    none = ask(made, method, path).status_code
    user = ask(made, method, path, headers={"X-API-Key": USER}).status_code
    admin = ask(made, method, path, headers={"Authorization": f"Bearer {ADMIN}"}).status_code
    expected = {Gate.OPEN: (False, False), Gate.DATA: (True, False), Gate.CONTROL: (True, True)}
    assert (none == 401, user in (401, 403)) == expected[plane]
    assert admin not in (401, 403)


@pytest.mark.parametrize("path", EXAMPLES)
def test_control_is_off_by_default(path: str) -> None:
    status = ask(app(), "POST", path).status_code
    assert (status == 403) == (EXAMPLES[path] is Gate.CONTROL)


@pytest.mark.parametrize(
    "path",
    ["/v2//logging", "/v2/logging/", "/%76%32/x", "/v2/models/a%2f..%2f..%2flogging", "/admin"],
)
def test_what_no_row_names_is_not_there(path: str) -> None:
    for headers in ({}, {"X-API-Key": ADMIN}):
        made = app(Access(Keys.of([USER]), Keys.of([ADMIN])))
        assert ask(made, "GET", path, headers=headers).status_code == 404


def test_an_encoded_path_is_the_path_that_it_means() -> None:
    made = app(Access(Keys.of([USER]), Keys.of([ADMIN])))
    assert ask(made, "GET", "/v2/%6Cogging").status_code == 401
    assert ask(made, "GET", "/v2/%6Cogging", headers={"X-API-Key": ADMIN}).status_code == 200


def test_errors_are_json_and_say_what_to_send() -> None:
    made = app(Access(Keys.of([USER])))
    refused = ask(made, "GET", "/v2")
    assert refused.headers["www-authenticate"].startswith("Bearer")
    assert "X-API-Key" in refused.json()["error"]
    wrong = ask(made, "GET", "/v2", headers={"X-API-Key": "wrong" * 10})
    assert wrong.json() == {"error": "the key is not known"}


def test_refusals_are_counted() -> None:
    made = app(Access(Keys.of([USER])))
    for _ in range(3):
        ask(made, "GET", "/v2")
    text = ask(made, "GET", "/metrics", headers={"X-API-Key": USER}).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["redline_requests_refused"].samples[0].value == 3


def test_the_inner_application_gets_what_may_pass() -> None:
    assert ask(app(), "POST", "/v2/models/net/infer", content=b"12345").json() == {"size": 5}


def test_another_sites_page_may_not_ask() -> None:
    headers = {"origin": "http://evil.example"}
    assert ask(app(), "POST", "/v2/models/net/infer", headers=headers).status_code == 403
    assert ask(app(), "GET", "/", headers={"sec-fetch-site": "cross-site"}).status_code == 200


def test_log_settings_over_http() -> None:
    made = app(Access(control=True))
    assert ask(made, "GET", "/v2/logging").json()["log_info"] is True
    told = ask(made, "POST", "/v2/logging", json={"log_info": False})
    assert told.json()["log_info"] is False
    assert made.log_settings.info is False
    for body in (b"[1]", b"{", b"\xff", b"[" * 60_000, b'{"log_info": 1}', b'{"nope": 1}'):
        assert ask(made, "POST", "/v2/logging", content=body).status_code == 400
    assert ask(made, "POST", "/v2/logging", content=b" " * 70_000).status_code == 413
    assert ask(made, "DELETE", "/v2/logging").status_code == 405


def test_trace_settings_over_http() -> None:
    made = app(Access(control=True), trace_settings=tracing.Settings(on=True))
    assert ask(made, "GET", "/v2/trace/setting").json()["trace_mode"] == "opentelemetry"
    told = ask(made, "POST", "/v2/models/net/trace/setting", json={"trace_rate": "7"})
    assert told.json()["trace_rate"] == "7"
    assert ask(made, "GET", "/v2/trace/setting").json()["trace_rate"] == "1000"
    assert ask(made, "POST", "/v2/models/other/trace/setting", json={}).status_code == 404
    assert ask(made, "POST", "/v2/trace/setting", json={"trace_file": "x"}).status_code == 400


def test_the_page_and_its_policy() -> None:
    page = ask(app(), "GET", "/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "<script>" not in page.text
    assert " style=" not in page.text
    for path in ("/page/page.css", "/page/page.js", "/page/tensor.js"):
        told = ask(app(), "GET", path)
        assert told.status_code == 200
        assert f'"{path}"' in page.text
        assert "//" not in told.text.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
    assert ask(app(), "POST", "/").status_code == 405
    state = ask(app(), "GET", "/page/state").json()
    assert state["ready"] is True
    assert state["counted"]["net/1"]["success"] == 2
    assert state["models"][0]["state"] == "READY"


def test_a_trace_goes_in_and_out() -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    spans = memory.InMemorySpanExporter()
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope["headers"]).get(b"traceparent", b"").decode())
        await echo(scope, receive, send)

    tracer = tracing.Tracer(tracing.provider(spans, simple=True), tracing.Settings())
    made = Operations(inner, QuietPlane([]), Access(), tracer=tracer)
    path = "/v2/models/net/infer"
    told = ask(made, "POST", path, headers={"traceparent": SAMPLED})
    out = told.headers["traceparent"]
    assert seen == [out]
    assert out.split("-")[1] == SAMPLED.split("-")[1]
    (span,) = spans.get_finished_spans()
    assert f"{span.context.span_id:016x}" == out.split("-")[2]
    assert span.attributes["http.response.status_code"] == 200
    not_sampled = ask(made, "POST", path, headers={"traceparent": SAMPLED[:-1] + "0"})
    assert "traceparent" not in not_sampled.headers
    assert seen[1] == ""
    assert len(spans.get_finished_spans()) == 1


def test_the_state_of_the_page_has_no_path_of_this_host() -> None:
    assert "/work" not in json.dumps(ask(app(), "GET", "/page/state").json())
