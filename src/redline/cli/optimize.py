"""`redline optimize`: the fastest verified engine for a model on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redline.cli import options


def optimize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="pkg.module:factory, or an .onnx, TorchScript .pt or .pt2 file."
        ),
    ],
    input: options.Inputs = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where to save the engine; here, under the model's name, by default.",
        ),
    ] = None,
    report: options.Html = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Try only this backend. Can be given again."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Try this precision: fp32, int8, int8-dynamic, int8-weights, int4-weights, "
            "fp16, bf16. Can be given again.",
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Inputs like those of real use, for int8: an .npy or .npz file whose first axis "
            "counts samples, or pkg.module:loader.",
        ),
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC", help="pkg.module:accuracy, called with the model; higher is better."
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="PART", help="How much the metric may fall, such as 0.005."),
    ] = None,
    minimize: Annotated[
        str,
        typer.Option(
            metavar="GOAL", help="latency, throughput (as high as can be), memory or size."
        ),
    ] = "latency",
    max_latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="A limit, such as 5ms.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="BYTES", help="A limit, such as 500MB.")
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(metavar="BYTES", help="A limit of the engine, such as 40MB.")
    ] = None,
    dynamic: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS",
            help="An axis that may change: batch=MIN:OPT:MAX for axis 0 of every input, "
            "INPUT.AXIS=MIN:OPT:MAX for one. OPT is the size that is timed.",
        ),
    ] = None,
    budget: options.Budget = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random inputs to verify on.")] = 0,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Measure anew what is in the timing cache.")
    ] = False,
    eval_mode: Annotated[
        bool, typer.Option("--eval", help="Put a model that is in training mode into eval mode.")
    ] = False,
    trust: options.Trust = False,
    json: options.Json = False,
) -> None:
    """Find the fastest verified engine for a model, and save it.

    Every backend of this machine is tried, in a process of its own, and its numbers are checked.
    Ctrl-C ends the search early: the best engine so far is reported and saved.

    Example: redline optimize pkg.models:build --input 1x3x224x224 -o model.redline
    """
    output = output or options.engine_name(model)
    options.can_be_written(output, ".redline")
    options.can_be_written(report, ".html")
    span = options.dynamic(dynamic)

    import redline
    from redline.capture.factory import load_data, load_object, parse_inputs

    goal = redline.Goal(
        minimize=minimize,
        max_latency=max_latency,
        max_memory=max_memory,
        max_size=max_size,
        max_drop=max_drop,
    )
    with options.talk_on_stderr():
        engine = redline.optimize(
            options.model(model),
            parse_inputs(input or []),
            goal=goal,
            backends=backend,
            precisions=precision or ("fp32",),
            dynamic=span,
            calibration=load_data(calibration) if calibration else None,
            evaluate=load_object(evaluate) if evaluate else None,
            budget=budget,
            seed=seed,
            use_cache=not no_cache,
            eval_mode=eval_mode,
            trust=trust,
        )
    with engine:
        if json:
            typer.echo(engine.report.json())
        else:
            options.show(engine.report)
        if report:
            options.note(f"report: {engine.report.write_html(report)}")
        options.note(f"engine: {engine.save(output)}")
        for notice in engine.notices:
            options.note(f"note: {notice}")
