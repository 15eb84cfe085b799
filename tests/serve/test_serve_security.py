"""Keys, the two planes, TLS, the bound address, and what a text may tell of this host."""

from __future__ import annotations

import logging
import os
import ssl
import time
from pathlib import Path

import pytest

from redline.errors import InputError
from redline.serve import keys as keys_module
from redline.serve import transport
from redline.serve.keys import Keys
from redline.serve.messages import ServeError, Status
from redline.serve.routes import ROUTES, Gate, classify, classify_rpc
from redline.serve.security import Access, check_browser, keys_in, scrub
from redline.serve.transport import check_bind

USER, ADMIN = "user-key-0123456789", "admin-key-0123456789"


def refusal(access: Access, plane: Gate, *keys: str, port: int = 0) -> Status | None:
    try:
        access.check(plane, [key.encode() for key in keys], port)
    except ServeError as error:
        return error.status
    return None


def test_without_keys_data_is_open_and_control_is_off() -> None:
    access = Access()
    assert refusal(access, Gate.OPEN) is None
    assert refusal(access, Gate.DATA) is None
    assert refusal(access, Gate.CONTROL) is Status.FORBIDDEN
    assert refusal(access, Gate.CONTROL, ADMIN) is Status.FORBIDDEN


def test_each_key_opens_its_plane() -> None:
    access = Access(Keys.of([USER]), Keys.of([ADMIN]))
    table = {
        (Gate.OPEN, ""): None,
        (Gate.DATA, ""): Status.UNAUTHENTICATED,
        (Gate.DATA, USER): None,
        (Gate.DATA, ADMIN): None,
        (Gate.DATA, USER[:-1]): Status.UNAUTHENTICATED,
        (Gate.DATA, USER + "0"): Status.UNAUTHENTICATED,
        (Gate.CONTROL, ""): Status.UNAUTHENTICATED,
        (Gate.CONTROL, USER): Status.FORBIDDEN,
        (Gate.CONTROL, ADMIN): None,
    }
    for (plane, key), expected in table.items():
        assert refusal(access, plane, *([key] if key else [])) is expected, (plane, key)


def test_the_control_plane_can_be_on_one_port_alone() -> None:
    access = Access(admin=Keys.of([ADMIN]), admin_port=9000)
    assert refusal(access, Gate.CONTROL, ADMIN, port=8000) is Status.NOT_FOUND
    assert refusal(access, Gate.CONTROL, ADMIN, port=9000) is None
    assert refusal(access, Gate.DATA, port=8000) is None


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every known key is compared, by compare_digest, whether or not an earlier one fits."""
    compared = []
    real = keys_module.hmac.compare_digest
    monkeypatch.setattr(
        keys_module.hmac, "compare_digest", lambda a, b: compared.append(len(a)) or real(a, b)
    )
    keys = Keys.of([USER, ADMIN, "third-key-0123456789"])
    assert keys.hold(USER.encode())
    assert not keys.hold(b"x" * 100_000)
    assert compared == [32] * 6


def test_no_key_stays_in_memory_as_it_is() -> None:
    keys = Keys.of([USER])
    assert USER not in repr(vars(keys))
    assert USER.encode() not in b"".join(keys._digests)


def test_a_file_of_keys_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "_REREAD", -1.0)
    file = tmp_path / "keys"
    file.write_text(f"# one a line\n\n{USER}\n")
    file.chmod(0o600)
    keys = Keys.from_file(file)
    assert keys.hold(USER.encode())
    file.write_text(ADMIN)
    os.utime(file, (time.time() + 5, time.time() + 5))
    assert keys.hold(ADMIN.encode())
    assert not keys.hold(USER.encode())
    file.unlink()  # the old keys stay in force: nothing is opened, nobody is shut out
    assert keys.hold(ADMIN.encode())
    assert not keys.hold(USER.encode())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "got 0 keys"),
        ("# nothing\n", "got 0 keys"),
        ("short", "5 characters"),
        ("a key with spaces in it", "without spaces"),
        ("ключ-ключ-ключ-ключ", "ASCII"),
    ],
)
def test_a_file_without_a_good_key_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said) as caught:
        Keys.from_file(file)
    if "short" in text:
        assert "short" not in str(caught.value).replace("shorter", "").replace(str(file), "")


def test_a_file_that_is_not_there_and_one_that_all_can_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Keys.from_file(tmp_path / "none")
    (tmp_path / "keys").write_text(USER)
    (tmp_path / "keys").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        Keys.from_file(tmp_path / "keys")
    assert "chmod 600" in caplog.text
    assert USER not in caplog.text


def test_keys_come_by_either_header() -> None:
    headers = [(b"authorization", b"Bearer  abc "), (b"x-api-key", b"def"), (b"host", b"x")]
    assert keys_in(headers) == [b"abc", b"def"]
    assert keys_in([(b"authorization", b"Basic abc")]) == []


@pytest.mark.parametrize(
    ("path", "plane"),
    [
        ("/", Gate.OPEN),
        ("/page/page.css", Gate.OPEN),
        ("/page/state", Gate.DATA),
        ("/metrics", Gate.DATA),
        ("/v2/models/net/versions/1/infer", Gate.DATA),
        ("/v2/repository/models/net/load", Gate.CONTROL),
        ("/v2/models/net/trace/setting", Gate.CONTROL),
        ("/v2/systemsharedmemory/region/x/register", Gate.CONTROL),
        ("/v2//logging", None),
        ("/V2/logging", None),
        ("/v2/logging/", None),
        ("/v2/logging\n", None),
        ("/v2/models/a/../../logging", None),
        ("//v2/repository/models/net/load", None),
        ("/v2/models/net/infer/../../../logging", None),
        ("/page/../state", None),
    ],
)
def test_paths_are_known_exactly_or_not_at_all(path: str, plane: Gate | None) -> None:
    assert classify(path) is plane


def test_rpcs_are_known_exactly_or_not_at_all() -> None:
    service = "/inference.GRPCInferenceService/"
    assert classify_rpc(service + "ModelInfer") is Gate.DATA
    assert classify_rpc(service + "RepositoryModelLoad") is Gate.CONTROL
    assert classify_rpc(service + "ServerLive") is Gate.OPEN
    assert classify_rpc("/grpc.health.v1.Health/Check") is Gate.OPEN
    assert classify_rpc(service + "modelinfer") is None
    assert classify_rpc("/other.Service/ModelInfer") is None


def test_every_row_of_routes_fits_something() -> None:
    assert {row.gate for row in ROUTES} == set(Gate)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_loopback_needs_no_permission(host: str) -> None:
    check_bind(host, allow_remote=False, control=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_other_addresses_need_one(host: str) -> None:
    with pytest.raises(InputError, match="reachable by other machines") as caught:
        check_bind(host, allow_remote=False)
    assert "--allow-remote" in caught.value.hint
    check_bind(host, allow_remote=True)
    with pytest.raises(InputError, match="loopback only"):
        check_bind(host, allow_remote=True, control=True)


def test_a_host_without_an_address_is_one_error() -> None:
    with pytest.raises(InputError, match="no address"):
        check_bind("no.such.host.invalid", allow_remote=True)


BROWSERS = [
    ({"host": "localhost:8000"}, True),
    ({"host": "localhost:8000", "origin": "http://localhost:8000"}, True),
    ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}, True),
    ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, True),
    ({"host": "localhost:8000", "origin": "http://evil.example"}, False),
    ({"host": "localhost:8000", "origin": "null"}, False),
    ({"host": "localhost:8000", "origin": "http://localhost:3000"}, False),
    ({"host": "localhost:8000", "sec-fetch-site": "cross-site"}, False),
    ({"host": "evil.example:8000", "origin": "http://evil.example:8000"}, False),  # rebinding
    ({"host": "localhost.evil.example", "sec-fetch-site": "same-origin"}, False),
]


@pytest.mark.parametrize(("headers", "may"), BROWSERS)
def test_pages_of_other_sites_are_refused(headers: dict[str, str], may: bool) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    if may:
        check_browser(pairs, loopback=True)
        return
    with pytest.raises(ServeError, match="other sites"):
        check_browser(pairs, loopback=True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no such file: /srv/models/net/1/model.onnx", "no such file: [path]"),
        ("'/root/x/y' and /tmp/a/b, both", "'[path]' and [path], both"),
        ("input 'x' has shape [1/2]", "input 'x' has shape [1/2]"),
        ("got 3/4 of http://example.org/a/b", "got 3/4 of http://example.org/a/b"),
    ],
)
def test_texts_for_clients_tell_no_paths(text: str, told: str) -> None:
    assert scrub(text) == told


def test_tls_refuses_what_does_not_fit(tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    with pytest.raises(InputError, match="certificate or key cannot be used"):
        transport.tls_context(junk, junk)
    with pytest.raises(InputError, match="cannot be used"):
        transport.tls_context(tmp_path / "none", junk)


def test_tls_is_modern(certificates: dict[str, Path]) -> None:
    context = transport.tls_context(certificates["cert"], certificates["key"])
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE
    mutual = transport.tls_context(certificates["cert"], certificates["key"], certificates["ca"])
    assert mutual.verify_mode is ssl.CERT_REQUIRED
