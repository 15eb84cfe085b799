"""What runs inside child processes: build a part, or hold a module open. Plain data in and out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from redline import backends
from redline.backends.base import Candidate, LocalBackend, Source
from redline.errors import BuildError, RefusedError
from redline.signature import Signature

if TYPE_CHECKING:
    import torch


def build(
    state: dict[str, Any],
    *,
    entry: str,
    candidate: dict[str, Any],
    signature: dict[str, Any],
    example: list[np.ndarray],
    graph: str | None,
    program: bytes | None,
    module: bytes | None,
    folder: str,
    fresh: bool = False,
) -> dict[str, Any]:
    """Build one candidate into a folder; returns its Part as plain data."""
    source = Source(
        signature=msgspec.convert(signature, Signature),
        example=tuple(example),
        graph=Path(graph) if graph else None,
        program=(lambda: _unpack_program(program)) if program else None,
        module=(lambda: _unpack_module(module)) if module else None,
        fresh=fresh,
    )
    wanted = msgspec.convert(candidate, Candidate)
    part = backends.load(entry).build(source, wanted, Path(folder))
    return msgspec.to_builtins(part)  # type: ignore[no-any-return]


def open_module(
    state: dict[str, Any],
    *,
    entry: str,
    candidate: dict[str, Any],
    signature: dict[str, Any],
    module: bytes,
) -> None:
    """Hold a module open as state["runner"], for backends that run it where it is."""
    backend = cast(LocalBackend, backends.load(entry))
    state["runner"] = backend.open_module(
        _unpack_module(module),
        msgspec.convert(candidate, Candidate),
        msgspec.convert(signature, Signature),
    )


def pack_module(module: torch.nn.Module | None) -> bytes:
    """A module as bytes for our own child.

    These bytes go from this process to a child that it started, through an anonymous pipe. They
    never come from, or go to, a file or a network: nothing that somebody else made is unpickled.

    Raises:
        RefusedError: the module cannot be pickled.
    """
    import cloudpickle

    if module is None:
        raise RefusedError("there is no PyTorch module to run: the model is an ONNX file")
    try:
        return bytes(cloudpickle.dumps(module))
    except Exception as error:  # pickling runs the module's own code, which may raise anything
        raise RefusedError(
            f"the module cannot be sent to a child process: {type(error).__name__}: {error}",
            hint="keep locks, files and generators out of the module's attributes",
        ) from error


def pack_program(program: torch.export.ExportedProgram | None) -> bytes:
    """An ExportedProgram as bytes for our own child (see pack_module).

    Raises:
        BuildError: torch cannot serialize it.
    """
    import torch

    if program is None:
        raise RefusedError("torch.export could not capture this model")
    buffer = io.BytesIO()
    try:
        torch.export.save(program, buffer)
    except Exception as error:
        raise BuildError(f"torch.export.save failed: {type(error).__name__}: {error}") from error
    return buffer.getvalue()


def _unpack_module(data: bytes) -> torch.nn.Module:
    import cloudpickle

    module: torch.nn.Module = cloudpickle.loads(data)
    return module


def _unpack_program(data: bytes) -> torch.export.ExportedProgram:
    import torch

    return torch.export.load(io.BytesIO(data))
