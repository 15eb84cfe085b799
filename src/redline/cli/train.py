"""`redline train`: a network on data, by one plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redline.cli import options

_Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="digits, iris, wine, breast_cancer, diabetes, linnerud; a folder or zip of images "
        "or IDX files; a text; torchvision:NAME:FOLDER; hf:FOLDER.",
    ),
]
_Model = Annotated[
    str, typer.Argument(metavar="[MODEL]", help="mlp, resnet, gpt, auto, or pkg.module:factory.")
]
_Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder of the run; a new one in runs/.")
]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A choice of the recipe: --set epochs=20."),
]
_Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights to start from: .safetensors, .pt.")
]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")]
_Trials = Annotated[
    int, typer.Option(min=0, help="Search the choices in so many trials, by optuna.")
]
_Space = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=RANGE", help="What trials vary: lr=1e-4:1e-1, batch_size=16,64."),
]
_Engine = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Optimize the result and save its engine.")
]


def train(
    data: _Data,
    model: _Model = "auto",
    out: _Out = None,
    set_: _Set = None,
    weights: _Weights = None,
    size: Annotated[int, typer.Option(help="Side to which images are resized.")] = 0,
    block: Annotated[int, typer.Option(help="Characters of a window of a text.")] = 128,
    resume: _Resume = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write scalars too.")] = False,
    trials: _Trials = 0,
    space: _Space = None,
    engine: _Engine = None,
    json: options.Json = False,
) -> None:
    """Train a network and keep its checkpoints.

    Ctrl-C saves a checkpoint; --resume goes on from it, also in the middle of an epoch.

    Example: redline train --data digits --set epochs=10 --engine digits.redline
    """
    options.can_be_written(engine, ".redline")
    from redline.train.command import run_training

    with options.talk_on_stderr():
        try:
            result = run_training(
                options.model(model) if ":" in model else model, data, set_ or (), out=out,
                weights=weights, size=size, block=block, resume=resume, tensorboard=tensorboard,
                trials=trials, space=space or (),
            )  # fmt: skip
        except KeyboardInterrupt as stop:
            options.note(str(stop) or "interrupted")
            raise typer.Exit(130) from None
        if engine and not result.interrupted:
            import redline

            with redline.optimize(result.model, result.example) as made:
                options.note(f"engine: {made.save(engine)}")
    typer.echo(result.json() if json else result.text())
    if result.interrupted:
        options.note(f"interrupted; go on with --out {result.out} --resume")
        raise typer.Exit(130)
