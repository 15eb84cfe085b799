"""The report on a terminal, drawn by rich at whatever width there is."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from redline.measure.record import Record, Study
from redline.report import card, chain, figures, units
from redline.report.figures import Row

_NARROWEST = 40
_NAME = "candidate"
_GAP = 3  # between two columns


@dataclass(frozen=True)
class _Column:
    """A column of the table; the lower its priority number, the longer it stays."""

    title: str
    priority: int
    cell: Callable[[Row], str]


_COLUMNS = (
    _Column("latency", 0, lambda row: units.seconds(_median(row.record))),
    _Column("95 % interval", 3, lambda row: units.interval(row.record.timing)),
    _Column("× eager", 1, lambda row: _times(row.over_eager)),
    _Column("× best other", 4, lambda row: _times(row.over_other)),
    _Column("items", 7, lambda row: units.rate(row.record.throughput)),
    _Column("build", 6, lambda row: units.seconds(row.record.build_seconds)),
    _Column("memory", 5, lambda row: units.size(row.record.peak_memory)),
    _Column("size", 4, lambda row: units.size(row.record.size)),
    _Column("error", 2, lambda row: units.error(row.record.error)),
    _Column("allowed", 5, lambda row: allowed(row.record)),
    _Column("accuracy", 3, lambda row: units.percent(row.record.accuracy)),
)


@dataclass(frozen=True)
class Page:
    """A study as something rich can print; asks the console how wide it is."""

    study: Study

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(options.max_width, _NARROWEST)
        timed, rest = figures.rows(self.study)
        yield from _header(self.study)
        if timed:
            yield Text()
            yield _table(timed, width)
            yield from _reasons("Why not the others", [row for row in timed if not row.record.winner])
        yield from _reasons("Not in the race", rest, outcome=True)
        yield from _limits(self.study)
        yield from _notes(self.study)


@dataclass(frozen=True)
class Explanation:
    """Why the winner won, how near it is to the machine's limit, and where in the chain it works."""

    study: Study

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _header(self.study)
        timed, rest = figures.rows(self.study)
        yield from _reasons("Why not the others", [row for row in timed if not row.record.winner])
        yield from _reasons("Not in the race", rest, outcome=True)
        yield from _limits(self.study)
        yield from _chain(self.study)
        yield from _notes(self.study)


def text(renderable: RenderableType, width: int) -> str:
    """What rich would print, without colour, at a width in columns."""
    out = io.StringIO()
    console = Console(file=out, width=max(width, _NARROWEST), color_system=None, legacy_windows=False)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def allowed(record: Record) -> str:
    """The tolerance, with its class where it is not the strict one."""
    if record.tolerance is None:
        return units.UNKNOWN
    loose = "" if record.tolerance_class == "fp32" else f" {record.tolerance_class}"
    return units.error(record.tolerance) + loose


def _header(study: Study) -> Iterator[RenderableType]:
    yield Text.assemble(("Redline", "bold red"), "  ", (study.model, "bold"), (f"  ({study.origin})", "dim"))
    machine = card.read(study.machine)
    lines = [
        ("machine", machine.line),
        ("input", ", ".join(study.inputs)),
        ("goal", f"{study.goal}: {study.verdict}" if study.verdict else study.goal),
        ("winner", figures.headline(study)),
        ("took", figures.provenance(study)),
    ]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, words in lines:
        if words:
            grid.add_row(label, Text(words, style="bold green" if label == "winner" else ""))
    yield grid


def _table(timed: Sequence[Row], width: int) -> Table:
    names = [row.record.id for row in timed]
    longest_word = max(cell_len(word) for name in names for word in name.split())
    room = max(min(longest_word, width // 3), width // 4)
    name_width = max(cell_len(_NAME), min(max(map(cell_len, names)), room))
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("", width=1)
    table.add_column(_NAME, overflow="fold", width=name_width)
    columns = _fitting(timed, width - name_width - 1 - _GAP)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for row in timed:
        cells = [Text(column.cell(row)) for column in columns]
        star, style = ("★", "bold green") if row.record.winner else ("", "")
        table.add_row(star, Text(row.record.id), *cells, style=style)
    return table


def _fitting(timed: Sequence[Row], room: int) -> list[_Column]:
    """The columns that say something and fit, the most important first to be let in."""
    telling = [column for column in _COLUMNS if _tells(column, timed)]
    kept: list[_Column] = []
    for column in sorted(telling, key=lambda one: one.priority):
        needed = _GAP + max(cell_len(column.title), *(cell_len(column.cell(row)) for row in timed))
        if needed > room:
            continue
        room -= needed
        kept.append(column)
    return [column for column in _COLUMNS if column in kept]


def _tells(column: _Column, timed: Sequence[Row]) -> bool:
    return any(column.cell(row) not in ("", units.UNKNOWN) for row in timed)


def _reasons(title: str, rows: Sequence[Row], outcome: bool = False) -> Iterator[RenderableType]:
    """One entry a row: who, what happened, and the command that helps."""
    rows = [row for row in rows if row.why or outcome]
    if not rows:
        return
    yield _title(title)
    for row in rows:
        record = row.record
        style = "yellow" if record.outcome in ("missing", "refused", "skipped", "ok") else "red"
        head = Text.assemble((record.id, "bold"), "  ")
        if outcome:
            head.append(record.outcome, style=style)
            if row.why and row.why != record.outcome:
                head.append(": ")
        if row.why != record.outcome:
            head.append(row.why)
        yield Padding(head, (0, 0, 0, 2))
        if record.hint:
            yield Padding(Text(record.hint, style="cyan"), (0, 0, 0, 6))


def _limits(study: Study) -> Iterator[RenderableType]:
    roof = figures.roofline(study, card.read(study.machine))
    if roof:
        yield _title("How near to this machine's limit")
        yield Padding(Text(figures.bound_line(roof)), (0, 0, 0, 2))
        if roof.remark:
            yield Padding(Text(roof.remark, style="dim"), (0, 0, 0, 2))
    best = figures.optimised(study)
    if best:
        yield _title("Operators, before and after graph optimisation")
        for record in best:
            line = Text.assemble((record.id, "bold"), "  ", figures.operator_line(study, record))
            yield Padding(line, (0, 0, 0, 2))


def _chain(study: Study) -> Iterator[RenderableType]:
    yield _title("From model to machine code")
    for link in chain.links(study):
        style = "bold green" if link.winner else "bold"
        head = Text.assemble((link.compiler.name, style), (f"  {link.state}", "dim"))
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        for stage, words in link.stages:
            grid.add_row(stage, Text(words))
        yield Padding(Group(head, Padding(grid, (0, 0, 0, 2))), (0, 0, 1, 2))


def _notes(study: Study) -> Iterator[RenderableType]:
    if study.notes:
        yield _title("Notes from capture")
    for what, where, hint in study.notes:
        yield Padding(Text.assemble(what, (f"  {where}" if where else "", "dim")), (0, 0, 0, 2))
        if hint:
            yield Padding(Text(hint, style="cyan"), (0, 0, 0, 6))
    if study.yardstick is not None:
        how = f"; reference: {study.reference}" if study.reference else ""
        yield _title("Accuracy")
        words = f"eager float32 itself is {units.error(study.yardstick)} from the reference{how}"
        yield Padding(Text(words), (0, 0, 0, 2))


def _title(words: str) -> RenderableType:
    return Text.from_markup(f"\n[bold]{escape(words)}[/bold]")


def _median(record: Record) -> float | None:
    return record.timing.median if record.timing else None


def _times(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else units.ratio(value)
