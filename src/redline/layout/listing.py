"""The copies that were found, as text and as HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from redline.layout.page import facts_table, table

if TYPE_CHECKING:
    from redline.layout.finder import Copies, Copy

_UPPER_BOUND = (
    "structural, from the meta device: an upper bound of the copies that lines of Python ask for; "
    "copies inside kernels are not seen, and attention is counted on its plain path (uncertain)"
)


def size(count: int) -> str:
    """Bytes in powers of ten.

    Example:
        >>> size(96), size(1_500_000)
        ('96 B', '1.5 MB')
    """
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"


def span(seconds: float | None) -> str:
    """Seconds in a fitting unit; empty where nothing was timed."""
    if seconds is None:
        return ""
    for scale, unit in ((1e-6, "µs"), (1e-3, "ms")):
        if seconds < 1000 * scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def headline(copies: Copies) -> str:
    """How many, how much, and what share of the time.

    Example:
        >>> headline(Copies((), "cpu", 0.001))
        'no copies'
    """
    if not copies.found:
        return "no copies"
    uncertain = sum(not copy.certain for copy in copies.found)
    count = len(copies)
    words = f"{count} {'copy' if count == 1 else 'copies'}, {size(copies.bytes)}"
    words += f" ({uncertain} of them uncertain)" if uncertain else ""
    if copies.copy_seconds is not None and copies.seconds:
        share = copies.copy_seconds / copies.seconds
        words += f", {span(copies.copy_seconds)} of {span(copies.seconds)} ({share:.0%})"
    return words


def text(copies: Copies) -> str:
    """The headline, then a block for each line and cause, those with the most bytes first."""
    lines = [headline(copies)]
    lines += [_UPPER_BOUND] if copies.device == "meta" else []
    for group in copies.by_line():
        lines += ["", *_block(group)]
    return "\n".join(lines)


def _block(group: tuple[Copy, ...]) -> Iterator[str]:
    first = group[0]
    yield f"{summary(group)}  {first.place}{_module(first)}"
    if first.place.code:
        yield f"    {first.place.code}"
    for label, words in (("why", first.why), ("change", first.change)):
        yield textwrap.fill(
            words, 100, initial_indent=f"  {label}: ", subsequent_indent="    ",
            break_long_words=False,
        )  # fmt: skip


def summary(group: tuple[Copy, ...]) -> str:
    """Example: "12 x forward, 3.1 MB, 410 µs, inside layer_norm"."""
    first = group[0]
    pass_ = "backward" if first.backward else "forward"
    parts = [f"{len(group)} x {pass_}", size(sum(copy.bytes for copy in group))]
    if first.seconds is not None:
        parts.append(span(sum(copy.seconds or 0.0 for copy in group)))
    if first.inside:
        parts.append(f"inside {first.path[0]}")
    if not first.certain:
        parts.append("uncertain")
    again = sum(copy.again > 0 for copy in group)
    if again:
        parts.append(f"{again} of a tensor that was copied before")
    return ", ".join(parts)


def _module(copy: Copy) -> str:
    return f"  ({copy.place.module})" if copy.place.module else ""


def fragment(copies: Copies) -> str:
    """A table for a notebook or a page."""
    told = [("found", headline(copies))]
    told += [("note", _UPPER_BOUND)] if copies.device == "meta" else []
    if not copies.found:
        return facts_table(told)
    rows = [
        (summary(group), f"{group[0].place}{_module(group[0])}", group[0].why, group[0].change)
        for group in copies.by_line()
    ]
    return facts_table(told) + table(("copies", "line", "why", "change"), rows)
