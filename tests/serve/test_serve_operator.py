"""Everything put together: TLS and mutual TLS over real sockets, keys from knobs, bad options."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest
from ops_samples import QuietPlane, echo, serving, statistics  # type: ignore[import-not-found]

from redline.errors import InputError
from redline.serve.operator import Operator, Options

KEY = "user-key-0123456789"


def operator(**options: Any) -> Operator:
    return Operator(QuietPlane([statistics("net")]), Options(**options), host="127.0.0.1")


def tls(certificates: dict[str, Path], **more: Any) -> Operator:
    return operator(tls_cert=certificates["cert"], tls_key=certificates["key"], **more)


def serve(made: Operator) -> Any:
    options = made.uvicorn()
    for name in ("http", "ws", "log_config", "access_log"):
        del options[name]
    return serving(made.app(echo), **options)


def test_https_with_a_certificate(certificates: dict[str, Path]) -> None:
    trust = ssl.create_default_context(cafile=str(certificates["ca"]))
    with serve(tls(certificates)) as port:
        told = httpx.get(f"https://localhost:{port}/v2/models/net", verify=trust)
        assert told.json() == {"size": 0}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://localhost:{port}/")  # a CA that nobody knows
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://localhost:{port}/")
        old = ssl.create_default_context(cafile=str(certificates["ca"]))
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert httpx.get(f"https://localhost:{port}/", verify=old).status_code == 200


def test_mutual_tls_lets_in_certificates_of_the_ca_only(certificates: dict[str, Path]) -> None:
    with serve(tls(certificates, tls_ca=certificates["ca"])) as port:
        url = f"https://localhost:{port}/v2/models/net"
        trust = ssl.create_default_context(cafile=str(certificates["ca"]))
        with pytest.raises(httpx.HTTPError):
            httpx.get(url, verify=trust)
        trust.load_cert_chain(certificates["client_cert"], certificates["client_key"])
        assert httpx.get(url, verify=trust).json() == {"size": 0}


def test_keys_come_from_knobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDLINE_API_KEY", KEY)
    with serve(operator()) as port:
        url = f"http://localhost:{port}/v2/models/net"
        assert httpx.get(url).status_code == 401
        assert httpx.get(url, headers={"x-api-key": KEY}).status_code == 200
    monkeypatch.setenv("REDLINE_ADMIN_KEY", "short")
    with pytest.raises(InputError, match="5 characters"):
        operator()


def test_options_that_need_each_other(certificates: dict[str, Path]) -> None:
    for options in (
        {"tls_cert": certificates["cert"]}, {"tls_ca": certificates["ca"]}, {"cache_bytes": -1},
        {"log_format": "xml"},
    ):  # fmt: skip
        with pytest.raises(InputError):
            Options(**options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot be used"):
        operator(tls_cert=certificates["cert"], tls_key=certificates["client_key"])


def test_a_remote_address_is_refused_and_a_bare_one_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plane = QuietPlane()
    with pytest.raises(InputError, match="other machines"):
        Operator(plane, Options(), host="0.0.0.0")
    with pytest.raises(InputError, match="loopback only"):
        Operator(plane, Options(allow_control=True), host="0.0.0.0", allow_remote=True)
    with caplog.at_level(logging.WARNING):
        Operator(plane, Options(), host="0.0.0.0", allow_remote=True)
    assert "no API key" in caplog.text
    assert "in the clear" in caplog.text


def test_no_key_reaches_a_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)
    with caplog.at_level(logging.DEBUG), serve(operator(api_key_file=file, verbose=True)) as port:
        for key in (KEY, "wrong-key-0123456789"):
            httpx.get(f"http://localhost:{port}/v2", headers={"authorization": f"Bearer {key}"})
    ours = [
        record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))
    ]
    assert ours
    assert not [record for record in ours if "key-0123456789" in record.getMessage()]
