"""The report a user holds: prints itself on a terminal, in a notebook, as HTML and as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from redline.errors import InputError, SchemaError
from redline.measure.record import Record, Study
from redline.report import document, figures

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = 1
_HINT = "give what Report.json() wrote"
# Only these can be infinite or NaN.
_FLOATS = ("error", "tolerance", "accuracy", "yardstick", "drop")


@dataclass(frozen=True)
class Report:
    """Everything one optimize() learned, to be read.

    Example:
        >>> report = redline.optimize(model, example).report
        >>> print(report)
        >>> report.write_html("report.html")
    """

    study: Study

    @property
    def records(self) -> tuple[Record, ...]:
        """One record for every candidate and for every backend that could not take part."""
        return self.study.records

    @property
    def winner(self) -> Record | None:
        """The candidate that was chosen, or None when none could run."""
        return figures.winner(self.study)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"Report({self.study.model!r}: {figures.headline(self.study)})"

    def __rich__(self) -> RenderableType:
        from redline.report.terminal import Page

        return Page(self.study)

    def _repr_html_(self) -> str:
        """A frame, so that neither the notebook's style nor the report's leaks into the other."""
        return document.frame(self.html(), "Redline report")

    def text(self, width: int | None = None) -> str:
        """The terminal page without colour, for a width in columns (None: this terminal's)."""
        from redline.report.terminal import Page, text

        return text(Page(self.study), width or document.columns())

    def explain(self, width: int | None = None) -> str:
        """Why the winner won, how near the machine's limit it is, and the chain to machine code."""
        from redline.report.terminal import Explanation, text

        return text(Explanation(self.study), width or document.columns())

    def html(self) -> str:
        """The whole report as one HTML document that asks the network for nothing."""
        from redline.report.html import render

        return render(self.study)

    def json(self) -> str:
        """The study as JSON. Infinities and NaN, which JSON lacks, become "inf", "-inf" and "nan".

        Example:
            >>> Report.from_json(report.json()) == report
            True
        """
        data = {"schema": SCHEMA, **_words(msgspec.to_builtins(self.study))}
        return msgspec.json.encode(data).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that json() wrote.

        Raises:
            InputError: not JSON, or not a report.
            SchemaError: written by a newer Redline.
        """
        try:
            data = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"not a report: {error}", hint=_HINT) from None
        schema = data.get("schema") if isinstance(data, dict) else None
        if isinstance(schema, int) and schema > SCHEMA:
            raise SchemaError(
                f"the report has schema {schema}, this Redline reads up to {SCHEMA}",
                hint="pip install --upgrade redline",
            )
        try:
            return cls(msgspec.convert(_numbers(data), Study))
        except msgspec.ValidationError as error:
            raise InputError(f"not a report: {error}", hint=_HINT) from None

    def write_html(self, path: str | Path) -> Path:
        """Write html() to a file, all of it or nothing; returns the path.

        Raises:
            SaveError: the file cannot be written; what was there is untouched.
        """
        return document.write(path, self.html())

    def write_json(self, path: str | Path) -> Path:
        """Write json() to a file, all of it or nothing; returns the path.

        Raises:
            SaveError: the file cannot be written; what was there is untouched.
        """
        return document.write(path, self.json())


def _words(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _words(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_words(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data


def _numbers(data: Any) -> Any:
    """The reverse of _words, where a number is meant; a model may still be called "nan"."""
    if not isinstance(data, dict):
        return data
    found: dict[str, Any] = {
        key: float(value) if key in _FLOATS and value in ("inf", "-inf", "nan") else value
        for key, value in data.items()
    }
    for name in ("records", "compressed"):
        rows = found.get(name)
        if isinstance(rows, list):
            found[name] = [_numbers(row) for row in rows]
    return found
