"""The report on a terminal, drawn by rich at whatever width there is."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from redline.measure.record import Study
from redline.report import card, chain, figures, precision, units
from redline.report.columns import Column, Detail, detail, telling
from redline.report.figures import Row

_NARROWEST = 40
_NAME = "candidate"
_GAP = 3  # between two columns


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
        yield from _reasons("Why not the others", _losers(timed))
        yield from _reasons("Not in the race", rest, outcome=True)
        yield from _precisions(self.study)
        yield from _limits(self.study)
        yield from _notes(self.study)


@dataclass(frozen=True)
class Explanation:
    """Why the winner won, how near the machine's limit it is, and the chain to machine code."""

    study: Study

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _header(self.study)
        timed, rest = figures.rows(self.study)
        yield from _reasons("Why not the others", _losers(timed))
        yield from _reasons("Not in the race", rest, outcome=True)
        yield from _limits(self.study)
        yield from _pieces(self.study)
        yield from _chain(self.study)
        yield from _notes(self.study)


def text(renderable: RenderableType, width: int) -> str:
    """What rich would print, without colour, at a width in columns."""
    out = io.StringIO()
    Console(file=out, width=max(width, _NARROWEST), color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def _header(study: Study) -> Iterator[RenderableType]:
    origin = (f"  ({study.origin})", "dim")
    yield Text.assemble(("Redline", "bold red"), "  ", (study.model, "bold"), origin)
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
        cells = [Text(column.text(row)) for column in columns]
        star, style = ("★", "bold green") if row.record.winner else ("", "")
        table.add_row(star, Text(row.record.id), *cells, style=style)
    return table


def _fitting(timed: Sequence[Row], room: int) -> list[Column | Detail]:
    """The columns that say something and fit, the most important first to be let in."""
    ordered: list[Column | Detail] = []
    for column in telling(timed):
        below = detail(column)
        ordered += [column, below] if below else [column]
    kept = []
    for one in sorted(ordered, key=lambda one: one.priority):
        needed = _GAP + max(cell_len(one.title), *(cell_len(one.text(row)) for row in timed))
        if needed <= room:
            room -= needed
            kept.append(one)
    return [one for one in ordered if one in kept]


def _losers(timed: Sequence[Row]) -> list[Row]:
    return [row for row in timed if not row.record.winner]


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


def _precisions(study: Study) -> Iterator[RenderableType]:
    """What lower precisions cost and bring."""
    found = precision.levels(study)
    if not found:
        return
    yield _title("Lower precisions")
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
    table.add_column("precision", overflow="fold")
    for title in ("graph", "loses", "may lose", "over fp32", "fastest"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for level in found:
        words = "; ".join(word for word in (level.verdict, level.why, level.layers) if word)
        numbers = (level.size, level.drop, level.allowed, level.pace, level.fastest)
        table.add_row(level.name, *numbers, words)
    yield Padding(table, (0, 0, 0, 2))
    yield Padding(Text(study.compressed[0].how, style="dim"), (0, 0, 0, 2))


def _pieces(study: Study) -> Iterator[RenderableType]:
    """The winner's groups with their kernels and times, then what could not be fused."""
    found = figures.pieces(study, card.read(study.machine))
    best = figures.winner(study)
    if found:
        yield _title("Groups, in the order they run")
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1))
        table.add_column("kernel", overflow="fold")
        table.add_column("operators", overflow="fold")
        for title in ("time", "share", "rate", "of the limit"):
            table.add_column(title, justify="right", no_wrap=True)
        for piece in found:
            group = piece.group
            rate = group.flops / group.seconds if group.seconds and group.flops else None
            first, *more = group.name.split("+")
            table.add_row(
                Text(group.kernel),
                Text(f"{first} +{len(more)}" if more else first),
                units.seconds(group.seconds),
                units.percent(piece.share),
                units.flops(rate, per_second=True) if rate else "",
                units.percent(piece.roof) if piece.roof else "",
            )
        yield Padding(table, (0, 0, 0, 2))
    if best and best.missed:
        yield _title("Not fused, or left to another runtime")
        for line in best.missed:
            yield Padding(Text(line), (0, 0, 0, 2))


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
