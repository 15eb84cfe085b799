"""Reads config.pbtxt, the text form of Triton's model configuration, as plain data."""

from __future__ import annotations

import ast
import re
from typing import Any

from redline.errors import InputError

_TOKEN = re.compile(
    r"""\s*(?:\#[^\n]*\s*)*(?:(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<word>[A-Za-z_][\w.]*)|(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"""
    r"""|(?P<mark>[{}\[\]<>:,;])|(?P<end>\Z)|(?P<bad>.))""",
    re.DOTALL,
)
_DEPTH = 32
_CLOSING = {"{": "}", "<": ">", "[": "]"}


def parse_pbtxt(text: str) -> dict[str, Any]:
    """Protobuf's text format as a dict; a field that comes twice, or as [..], is a list.

    Example:
        >>> parse_pbtxt('max_batch_size: 8 input [ { name: "x" dims: [ 3, 4 ] } ]')
        {'max_batch_size': 8, 'input': [{'name': 'x', 'dims': [3, 4]}]}

    Raises:
        InputError: the line that cannot be read.
    """
    return _Reader(text).message("", 0)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._kind, self._value = "", ""
        self._advance()

    def _advance(self) -> None:
        found = _TOKEN.match(self._text, self._at)
        assert found is not None  # `bad` takes any character, `end` the rest
        self._at = found.end()
        self._kind = str(found.lastgroup)
        self._value = found.group(self._kind)
        if self._kind == "bad":
            raise self._wrong()

    def _wrong(self) -> InputError:
        line = self._text.count("\n", 0, self._at) + 1
        return InputError(f"config.pbtxt cannot be read at line {line}, near {self._value[:40]!r}")

    def message(self, closing: str, depth: int) -> dict[str, Any]:
        if depth > _DEPTH:
            raise InputError(f"config.pbtxt has more than {_DEPTH} levels")
        found: dict[str, Any] = {}
        while not (self._kind == "end" and not closing) and self._value != closing:
            if self._kind != "word":
                raise self._wrong()
            name = self._value
            self._advance()
            if self._value == ":" and self._kind == "mark":
                self._advance()
            _add(found, name, self._field(depth))
            while self._kind == "mark" and self._value in ",;":
                self._advance()
        self._advance()
        return found

    def _field(self, depth: int) -> Any:
        if self._kind == "mark" and self._value in ("{", "<"):
            closing = _CLOSING[self._value]
            self._advance()
            return self.message(closing, depth + 1)
        if self._kind == "mark" and self._value == "[":
            return self._list(depth)
        return self._scalar()

    def _list(self, depth: int) -> list[Any]:
        if depth > _DEPTH:
            raise self._wrong()
        self._advance()
        found: list[Any] = []
        while self._value != "]":
            found.append(self._field(depth + 1))
            if self._value == ",":
                self._advance()
        self._advance()
        return found

    def _scalar(self) -> Any:
        kind, value = self._kind, self._value
        if kind not in ("string", "word", "number"):
            raise self._wrong()
        self._advance()
        if kind == "string":
            text = _unquote(value)
            while self._kind == "string":  # neighbours are one text
                text += _unquote(self._value)
                self._advance()
            return text
        if kind == "word":
            return {"true": True, "false": False}.get(value, value)
        return float(value) if re.search(r"[.eE]", value) else int(value)


def _unquote(text: str) -> str:
    try:
        return str(ast.literal_eval(text))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"config.pbtxt has a text that cannot be read: {text[:40]}") from error


def _add(found: dict[str, Any], name: str, value: Any) -> None:
    if name not in found:
        found[name] = value
        return
    before = found[name] if isinstance(found[name], list) else [found[name]]
    found[name] = before + (value if isinstance(value, list) else [value])
