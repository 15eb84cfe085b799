"""Logs on stderr: text or JSON lines, one record a line whatever a client sent.

A control character in a message (a line feed, an escape sequence of a terminal, a bidirectional
mark) is written as an escape, so no name or header can forge a record.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import IO, Any, Literal

import msgspec

from redline.serve.messages import Request, Response, ServeError, Status

Format = Literal["text", "json"]
LOGGER = "redline.serve"
_LOG = logging.getLogger(LOGGER)
_LONGEST = 8192  # characters of one message
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
# Bidirectional and other marks that change how the rest of a line looks.
_MARKS = frozenset(
    "\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"
)


def escape(text: str) -> str:
    r"""A text as one line of visible characters.

    Example:
        >>> print(escape("net\nERROR forged"))
        net\nERROR forged
    """
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + f"... ({len(text)} characters)"
    if text.isprintable() and not _MARKS.intersection(text):
        return text
    return "".join(
        char if (char.isprintable() or char == " ") and char not in _MARKS
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )  # fmt: skip


class _Formatter(logging.Formatter):
    """One record as text or as a JSON object; its `extra` become fields."""

    def __init__(self, form: Format) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        message = record.getMessage()
        extra = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            extra["exception"] = self.formatException(record.exc_info)
        if self.form == "json":
            fields = {
                "time": at, "level": record.levelname.lower(), "logger": record.name,
                "message": escape(message),
            }  # fmt: skip
            fields |= {
                key: escape(value) if isinstance(value, str) else value
                for key, value in extra.items()
                if key not in fields
            }
            return msgspec.json.encode(fields, enc_hook=str).decode()
        told = "".join(f" {key}={_quoted(value)}" for key, value in extra.items())
        return f"{at} {record.levelname:<7} {record.name} {escape(message)}{told}"


def _quoted(value: Any) -> str:
    text = escape(str(value))
    return f'"{text}"' if " " in text or not text else text


def setup(form: Format = "text", stream: IO[str] | None = None) -> logging.Handler:
    """Send the logs of the server and of uvicorn to stderr in this form; returns the handler."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Formatter(form))
    for name in ("redline", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
        logger.propagate = name == "uvicorn.error"
        if logger.propagate:
            continue
        logger.addHandler(handler)
    logging.getLogger("redline").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").disabled = True  # `Settings.after` writes what is asked
    return handler


@dataclass
class Settings:
    """Triton's log settings, as GET and POST v2/logging show and change them.

    Attributes:
        verbose: 1 or more writes a line for each request.
    """

    form: Format = "text"
    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: int = 0

    def read(self) -> dict[str, Any]:
        """The settings by Triton's names; the file is always stderr."""
        return {
            "log_file": "",
            "log_info": self.info,
            "log_warning": self.warning,
            "log_error": self.error,
            "log_verbose_level": self.verbose,
            "log_format": "ISO8601",
        }

    def update(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Change all that is named, or nothing; returns the settings as they are then.

        Raises:
            ServeError: INVALID: a name or a value that is not known.

        Example:
            >>> Settings().update({"log_verbose_level": 1})["log_verbose_level"]
            1
        """
        now = self.read()
        for name, value in wanted.items():
            if name == "log_file" and value != "":
                raise ServeError(Status.INVALID, "log_file cannot be changed over the network")
            if name not in now:
                raise ServeError(
                    Status.INVALID, f"unknown log setting {name[:80]!r}; known: {', '.join(now)}"
                )
            if name == "log_format" and value not in ("default", "ISO8601"):
                raise ServeError(
                    Status.INVALID, f"log_format is {str(value)[:80]!r}, expected 'ISO8601'"
                )
            kind = type(now[name])
            if type(value) is not kind or (kind is int and not 0 <= value <= 9):
                raise ServeError(
                    Status.INVALID, f"{name} is {str(value)[:80]!r}, expected {_EXPECTED[kind]}"
                )
        now |= wanted
        self.info, self.warning, self.error = (
            now["log_info"], now["log_warning"], now["log_error"],
        )  # fmt: skip
        self.verbose = now["log_verbose_level"]
        return self.read()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written; a filter of the handler."""
        if record.levelno >= logging.ERROR:
            return self.error
        if record.levelno >= logging.WARNING:
            return self.warning
        return self.info

    def after(self, request: Request, outcome: Response | ServeError, times: Any) -> None:
        """A hook of the data plane: internal errors always, the rest when verbose."""
        failed = isinstance(outcome, ServeError)
        broken = failed and outcome.status is Status.INTERNAL  # type: ignore[union-attr]
        if not broken and not self.verbose:
            return
        extra: dict[str, Any] = {"model": request.model, "version": request.version}
        if request.id:
            extra["id"] = request.id
        extra["ms"] = round((time.perf_counter() - request.arrived) * 1e3, 3)
        if failed:
            extra["status"] = outcome.status.name  # type: ignore[union-attr]
        level = logging.ERROR if broken else logging.INFO
        _LOG.log(level, "failed: %s" if failed else "%s", outcome if failed else "answered",
                 extra=extra)  # fmt: skip


_EXPECTED = {str: "a text", bool: "true or false", int: "a whole number from 0 to 9"}
