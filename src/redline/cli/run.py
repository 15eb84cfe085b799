"""`redline run`: one call of an engine, with inputs from files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from redline.cli import options
from redline.errors import InputError

if TYPE_CHECKING:
    import numpy as np


def run(
    engine: options.EngineFile,
    input: options.Inputs = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to save the outputs: .npz, or .npy for one.",
        ),
    ] = None,
    part: Annotated[
        str | None, typer.Option(metavar="BACKEND", help="Run this backend's part of the engine.")
    ] = None,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Run an engine once.

    Without --input it runs on the inputs that are stored in it.

    Example: redline run model.redline --input x.npy -o y.npy
    """
    options.can_be_written(output, ".npy", ".npz")

    from redline.capture.factory import parse_inputs
    from redline.cli import arrays
    from redline.runtime.check import check_arrays
    from redline.runtime.load import open_engine

    notices: list[str] = []
    with open_engine(engine, trust=trust, part=part, notify=notices.append) as session:
        names = [spec.name for spec in session.signature.inputs]
        given = parse_inputs(input or [])
        inputs = _stored(engine) if given is None else arrays.ordered(given, names)
        check_arrays(inputs, session.signature)
        start = time.perf_counter()
        results = session.run(inputs)
        seconds = time.perf_counter() - start
        outputs = dict(zip([spec.name for spec in session.signature.outputs], results, strict=True))
        backend = session.part.backend if session.part else ""
    for notice in notices:
        options.note(f"note: {notice}")
    if output:
        arrays.save(output, outputs)
        options.note(f"outputs: {output}")
    if json:
        import msgspec

        rows = {name: arrays.summary(array) for name, array in outputs.items()}
        told = {"backend": backend, "seconds": seconds, "outputs": rows}
        typer.echo(msgspec.json.encode(told).decode())
    elif not output:
        options.show(arrays.table(outputs))
        options.note(f"{backend}: {seconds * 1e3:.3g} ms for this one call")


def _stored(path: Path) -> Sequence[np.ndarray]:
    from redline.engine.file import open_file

    with open_file(path) as file:
        if file.manifest.check is None:
            raise InputError(f"{path} holds no inputs of its own", hint="give --input")
        return [array.copy() for array in file.check_arrays()[0]]
