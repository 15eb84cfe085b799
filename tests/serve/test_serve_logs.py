"""Logs: one record is one line, whatever a client sent."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
from ops_samples import Marks  # type: ignore[import-not-found]

from redline.serve import logs
from redline.serve.messages import Request, Response, ServeError, Status

EVIL = [
    "net\n2026-01-01T00:00:00.000+00:00 ERROR   redline.serve forged",
    "net\r\nforged", "net\x1b[2Jforged", "net\u2028forged", "net\x85forged", "\x00", "a\tb",
    "net\u202eforged", '","level":"error","message":"forged', "\udcff",
]  # fmt: skip


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Put the loggers back as they were."""
    names = ("redline", "uvicorn", "uvicorn.error", "uvicorn.access")
    before = {
        name: (list(found.handlers), found.level, found.propagate, found.disabled)
        for name in names
        for found in [logging.getLogger(name)]
    }
    yield io.StringIO()
    for name, (handlers, level, propagate, disabled) in before.items():
        found = logging.getLogger(name)
        found.handlers[:] = handlers
        found.level, found.propagate, found.disabled = level, propagate, disabled
        found.manager._clear_cache()  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("text", EVIL)
def test_nothing_forges_a_record(stream: io.StringIO, form: logs.Format, text: str) -> None:
    logs.setup(form, stream)
    logging.getLogger("redline.serve").warning("model %s is odd", text, extra={"model": text})
    written = stream.getvalue()
    assert written.endswith("\n")
    assert len(written[:-1].splitlines()) == 1
    assert written[:-1].isprintable()
    if form == "json":
        told = json.loads(written)
        assert told["level"] == "warning"
        assert told["model"] == logs.escape(text)


def test_an_exception_is_one_line_too(stream: io.StringIO) -> None:
    logs.setup("text", stream)
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        logging.getLogger("redline.serve").exception("broken")
    assert len(stream.getvalue().splitlines()) == 1
    assert "one\\ntwo" in stream.getvalue()


def test_a_long_message_is_cut() -> None:
    assert len(logs.escape("x" * 1_000_000)) < 10_000


def test_settings_by_tritons_names() -> None:
    settings = logs.Settings()
    told = settings.read()
    assert set(told) == {
        "log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format",
    }  # fmt: skip
    assert settings.update({"log_info": False, "log_verbose_level": 1})["log_info"] is False
    for bad in (
        {"log_file": "/etc/passwd"}, {"log_info": 1}, {"log_verbose_level": True}, {"nope": 1},
        {"log_verbose_level": -1}, {"log_format": "x"}, {"log_warning": False, "log_error": None},
    ):  # fmt: skip
        before = settings.read()
        with pytest.raises(ServeError) as caught:
            settings.update(bad)
        assert caught.value.status is Status.INVALID
        assert settings.read() == before


def test_a_line_a_request_when_verbose_and_internal_errors_always(stream: io.StringIO) -> None:
    settings = logs.Settings()
    logs.setup("json", stream).addFilter(settings)
    request = Request("net", "1", {}, id="a\nb")
    settings.after(request, Response("net", "1", {}), Marks())
    settings.after(request, ServeError(Status.INVALID, "bad"), Marks())
    assert stream.getvalue() == ""
    settings.after(request, ServeError(Status.INTERNAL, "broken"), Marks())
    settings.update({"log_verbose_level": 1})
    settings.after(request, Response("net", "1", {}), Marks())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["level"] for line in lines] == ["error", "info"]
    assert lines[0]["id"] == "a\\nb"
    settings.update({"log_info": False})
    settings.after(request, Response("net", "1", {}), Marks())
    assert len(stream.getvalue().splitlines()) == 2
