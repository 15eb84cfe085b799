"""`redline serve --tune`: batch, delay and instances of one model for a p99 goal."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from redline.cli import options
from redline.errors import InputError, SaveError

if TYPE_CHECKING:
    from redline.serve.arrivals import Arrivals
    from redline.serve.settings import Settings
    from redline.serve.tuning import Setting, Tried, Tuned


def tune(
    settings: Settings, model: str, told: str, p99_ms: float, write: bool, as_json: bool
) -> None:
    """Try settings, print the table, write the best only when asked; ends with 1 without one.

    Args:
        told: "poisson:RATE", "bursty:RATE" or a file of recorded arrivals.
    """
    from redline.serve import folder

    assert settings.models is not None
    found = folder.find(settings.models, model)
    if found is None:
        raise InputError(f"there is no model {model!r} in {settings.models}")
    path = list(found.versions.values())[-1].path
    tuned = asyncio.run(_run(path, found.config, settings, _arrivals(told, model), p99_ms / 1e3))
    home = settings.models / model
    if as_json:
        typer.echo(json.dumps(_plain(tuned), indent=2))
    else:
        options.show(_table(tuned))
    if tuned.best is None:
        options.note(f"nothing reaches a p99 of {p99_ms:g} ms: a faster engine, or a lower rate")
        raise typer.Exit(1)
    if write:
        options.note(f"written: {write_config(home, tuned.best.setting)}")
    elif not as_json:
        options.show("config.pbtxt (--tune-write puts it there):\n" + _text(tuned.best.setting))


async def _run(path: Path, config: Any, settings: Settings, arrivals: Arrivals, goal: float) -> Any:
    from redline.serve import tuning
    from redline.serve.batcher import Queueing
    from redline.serve.opening import example
    from redline.serve.served import prepare

    count = min(4, os.cpu_count() or 1)
    config = dataclasses.replace(config, instances=count)
    prepared = await asyncio.to_thread(prepare, path, config, settings)
    try:
        batched = prepared.max_batch > 0
        inline = 0.0 if prepared.isolated else settings.inline
        grid = tuning.settings_to_try(
            max(1, prepared.max_batch), goal, int(arrivals.rows.max()), count
        )
        return await tuning.tune(
            prepared.runs,
            lambda rows: [example(t, rows if batched else None, 0) for t in prepared.opened.inputs],
            Queueing(size=config.queue_size or settings.queue_size, inline=inline),
            arrivals, goal, grid, lambda tried: options.note(_line(tried)),
        )  # fmt: skip
    finally:
        prepared.close()


def _arrivals(told: str, model: str) -> Arrivals:
    from redline.serve.arrivals import bursty, poisson, read_arrivals

    law, _, rate = told.partition(":")
    laws = {"poisson": poisson, "bursty": bursty}
    if law not in laws:
        return read_arrivals(Path(told), model)
    try:
        number = float(rate)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise InputError(f"the rate is {rate!r}, expected requests a second, as in {law}:200")
    return laws[law](number, 3.0)


def _line(tried: Tried) -> str:
    s = tried.setting
    end = " stopped" if tried.stopped else ""
    return (
        f"instances {s.instances}  batch {s.batch}  delay {s.delay * 1e6:.0f} µs: "
        f"p99 {tried.p99 * 1e3:.2f} ms{end}"
    )


def _table(tuned: Tuned) -> Any:
    from rich.table import Table

    table = Table("instances", "batch", "delay µs", "p50 ms", "p99 ms", "answers/s", "")
    for tried in tuned.tried:
        s = tried.setting
        mark = "best" if tried == tuned.best else "too slow" if tried.stopped else ""
        table.add_row(
            str(s.instances), str(s.batch), f"{s.delay * 1e6:.0f}", f"{tried.p50 * 1e3:.2f}",
            f"{tried.p99 * 1e3:.2f}", f"{tried.rate:.0f}", mark,
        )  # fmt: skip
    return table


def _plain(tuned: Tuned) -> dict[str, Any]:
    """As JSON has it, which knows no infinity."""

    def row(tried: Tried) -> dict[str, Any]:
        flat = dataclasses.asdict(tried) | dataclasses.asdict(tried.setting)
        del flat["setting"]
        return {key: None if value == float("inf") else value for key, value in flat.items()}

    best = row(tuned.best) if tuned.best else None
    return {"goal": tuned.goal, "best": best, "tried": [row(tried) for tried in tuned.tried]}


def _fields(setting: Setting) -> dict[str, Any]:
    delay = {"max_queue_delay_microseconds": round(setting.delay * 1e6)}
    groups = [{"count": setting.instances, "kind": "KIND_CPU"}]
    fields: dict[str, Any] = {"max_batch_size": setting.batch, "instance_group": groups}
    return fields | ({"dynamic_batching": delay} if setting.batch > 1 else {"max_batch_size": 0})


def _text(setting: Setting) -> str:
    fields = _fields(setting)
    lines = [
        f"max_batch_size: {fields['max_batch_size']}",
        f"instance_group [ {{ count: {setting.instances}, kind: KIND_CPU }} ]",
    ]
    if "dynamic_batching" in fields:
        delay = fields["dynamic_batching"]["max_queue_delay_microseconds"]
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}")
    return "\n".join([*lines, ""])


def _batching(given: dict[str, Any], setting: Setting) -> dict[str, Any]:
    """What a config.json says of its queue stays; what it says of batches is the setting's."""
    kept = {
        key: value
        for key, value in given.items()
        if key not in ("preferred_batch_size", "max_queue_delay_microseconds")
    }
    return kept | dict(_fields(setting).get("dynamic_batching", {}))


def write_config(home: Path, setting: Setting) -> Path:
    """Put a setting into a model's config.pbtxt, or into its config.json where it has one.

    Raises:
        InputError: the model has no folder, or its config.pbtxt says something of batches already.
        SaveError: it cannot be written.
    """
    from redline.serve.config import read_config

    if not home.is_dir():
        raise InputError(f"{home.name} is a file", hint=f"lay it in {home.name}/1/")
    given = read_config(home)
    target = home / ("config.json" if (home / "config.json").is_file() else "config.pbtxt")
    fields = _fields(setting)
    if target.suffix == ".json":
        merged = given | fields
        batching = _batching(given.get("dynamic_batching", {}), setting)
        if batching:
            merged["dynamic_batching"] = batching
        text = json.dumps(merged, indent=2) + "\n"
    else:
        taken = sorted({*given} & {"max_batch_size", "dynamic_batching", "instance_group"})
        if taken:
            raise InputError(
                f"config.pbtxt has {taken[0]} already", where=str(target),
                hint="take that line out, or put there by hand:\n" + _text(setting),
            )  # fmt: skip
        before = target.read_text(encoding="utf-8") if target.is_file() else ""
        text = before + ("\n" if before and not before.endswith("\n") else "") + _text(setting)
    aside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise SaveError(f"it cannot be written: {error.strerror}", where=str(target)) from None
    return target
