"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from redline.errors import InputError

EngineFile = Annotated[
    Path, typer.Argument(metavar="ENGINE", exists=True, dir_okay=False, help="An engine file.")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="INPUT",
        help="An input: a shape (1x3x224x224), name:shape:dtype (ids:1x128:int64), or an .npy or "
        ".npz file. Once for each input.",
    ),
]
Budget = Annotated[
    str | None, typer.Option(metavar="TIME", help="Time it may take, such as 90s or 3m.")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Run machine code in files that no trusted key signed.")
]
Html = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="Write the report as one HTML file."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

_DYNAMIC = re.compile(
    r"(?P<key>[\w.]+?)(?:\.(?P<axis>\d+))?="
    r"(?:(?P<dim>[A-Za-z_]\w*):)?(?P<min>\d+):(?P<opt>\d+):(?P<max>\d+)"
)


def model(target: str) -> Any:
    """What MODEL names: the path of a file, or what "pkg.module:factory" builds.

    Raises:
        InputError: no such file, module or attribute.
    """
    from redline.capture.factory import load_factory

    return load_factory(target) if ":" in target and not Path(target).exists() else Path(target)


def engine_name(target: str) -> Path:
    """The file that the engine of MODEL is saved to when none is named, in this folder.

    Example:
        >>> engine_name("pkg.models:build"), engine_name("nets/net.onnx")
        (PosixPath('build.redline'), PosixPath('net.redline'))
    """
    factory = ":" in target and not Path(target).exists()
    name = target.split(":")[-1] if factory else Path(target).stem
    return Path(f"{name or 'model'}.redline")


def dynamic(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """The `dynamic` of optimize() from texts; None for none.

    "batch=1:8:32"             axis 0 of every input
    "ids.1=length:16:64:128"   axis 1 of the input `ids`, called length

    Raises:
        InputError: a text that cannot be read.

    Example:
        >>> dynamic(["batch=1:8:32"])
        {'batch': (1, 8, 32)}
    """
    found: dict[str, Any] = {}
    for text in texts or ():
        match = _DYNAMIC.fullmatch(text)
        if not match:
            raise InputError(
                f"--dynamic {text!r} cannot be read",
                hint="write batch=1:8:32 (min, opt, max), or ids.1=16:64:128 for axis 1 of `ids`",
            )
        span: tuple[Any, ...] = tuple(int(match[size]) for size in ("min", "opt", "max"))
        if match["axis"] is None:
            found[match["key"]] = span
        else:
            named = (match["dim"], *span) if match["dim"] else span
            found.setdefault(match["key"], {})[int(match["axis"])] = named
    return found or None


def can_be_written(path: Path | None, *suffixes: str) -> None:
    """Say before minutes of work, and not after them, that a file cannot be written.

    Raises:
        InputError: a folder that is missing or closed, a folder's name, or another suffix.
    """
    if path is None:
        return
    folder = path.resolve().parent
    if suffixes and path.suffix not in suffixes:
        raise InputError(
            f"{path} does not end in {' or '.join(suffixes)}", hint="give it that ending"
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file", hint=f"write {path}/NAME")
    if not folder.is_dir():
        raise InputError(f"the folder of {path} does not exist", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK):
        raise InputError(
            f"{path} cannot be written", where=str(folder), hint="choose another folder"
        )


@contextlib.contextmanager
def talk_on_stderr() -> Iterator[None]:
    """Whatever a model's own code prints is talk; stdout is for the data."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def note(renderable: Any) -> None:
    """Talk: on stderr."""
    _print(renderable, stderr=True)


def show(renderable: Any) -> None:
    """Data for a person: on stdout."""
    _print(renderable, stderr=False)


def _print(renderable: Any, stderr: bool) -> None:
    """In colour on a terminal, plain in a pipe or under NO_COLOR; text is never folded."""
    from rich.console import Console

    width = shutil.get_terminal_size((100, 24)).columns
    console = Console(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)
    console.print(renderable, soft_wrap=isinstance(renderable, str))
