"""Open an engine file with the best of its parts that this machine can run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from redline.engine.file import EngineFile, open_file
from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import (
    BackendError,
    MissingError,
    RedlineError,
    SelfTestError,
    TamperedError,
    UnknownNameError,
    UnsafeError,
    UntrustedError,
    WrongMachineError,
)
from redline.machine import isa_flags
from redline.runtime.runner import RUNNERS, Runner, open_part
from redline.runtime.self_test import replay
from redline.runtime.session import Session

_log = logging.getLogger("redline")
# What is wrong with one part only; anything else is wrong with the file.
_NEXT = (BackendError, UntrustedError, WrongMachineError, SelfTestError, UnknownNameError)
# Backends whose parts are data to an interpreter. Every other part is taken for code, whatever its
# manifest says: who forges a file would leave the mark out.
DATA_ONLY = frozenset({"onnxruntime", "openvino", "ncnn"})
PORTABLE = Part("onnxruntime", uses_graph=True, needs={"onnxruntime": ""})


def open_engine(
    path: str | Path,
    *,
    trust: bool = False,
    part: str | None = None,
    self_test: bool = True,
    notify: Callable[[str], None] = _log.warning,
) -> Session:
    """Open an engine file; parts that cannot run here are passed over, and `notify` says so.

    Args:
        trust: run machine code in it although no trusted key signed it.
        part: the backend whose part to open; None takes the first that can run, in the end ONNX
            Runtime on the engine's graph.
        self_test: replay the stored inputs, and pass over a part whose numbers differ.
        notify: gets one line for each notice; they are also in Session.notices.

    Raises:
        EngineFileError: the file is damaged or unsafe, or no part may or can run here (the first
            part's reason: UntrustedError, WrongMachineError, SelfTestError).
        MissingError: the library of the only part is not installed.
        UnknownNameError: no part of that backend.

    Example:
        >>> with open_engine("model.redline") as session:
        ...     y = session(x)
    """
    file = open_file(path)
    try:
        return _open_first(file, _choices(file, part), trust, self_test, notify)
    except BaseException as error:
        file.close()
        if isinstance(error, RedlineError):
            error.where = error.where or str(path)
        raise


def _choices(file: EngineFile, backend: str | None) -> list[tuple[Part, Store]]:
    """The parts to try, in order."""
    parts = file.manifest.parts
    found = [
        (part, file.store(index))
        for index, part in enumerate(parts)
        if backend in (None, part.backend)
    ]
    can_fall = backend in (None, PORTABLE.backend) and file.graph() is not None
    plain = any(part.backend == PORTABLE.backend and part.uses_graph for part, _ in found)
    if can_fall and not plain:
        found.append((PORTABLE, file.store(0)))
    if not found:
        raise UnknownNameError("part", str(backend), dict.fromkeys(part.backend for part in parts))
    return found


def _open_first(
    file: EngineFile,
    choices: list[tuple[Part, Store]],
    trust: bool,
    self_test: bool,
    notify: Callable[[str], None],
) -> Session:
    refusals: list[tuple[Part, RedlineError]] = []
    for part, store in choices:
        try:
            runner = _open_checked(file, part, store, trust, self_test)
        except (TamperedError, UnsafeError):
            raise
        except _NEXT as error:
            refusals.append((part, error))
            continue
        notices = [f"{p.backend} part passed over: {e.what}" for p, e in refusals]
        if notices:
            notices[-1] += f"; {part.backend} runs instead"
        for notice in notices:
            notify(notice)
        manifest = file.manifest
        return Session(
            runner,
            manifest.signature,
            name=manifest.name,
            part=part,
            manifest=manifest,
            notices=notices,
            on_close=file.close,
        )
    first = refusals[0][1]
    for other, reason in refusals[1:]:
        first.add_note(f"  {other.backend} part: {reason.what}")
    raise first


def _open_checked(
    file: EngineFile, part: Part, store: Store, trust: bool, self_test: bool
) -> Runner:
    _check_backend(part)
    code = part.code or part.backend not in DATA_ONLY
    if code and not trust and not file.trusted:
        raise _untrusted(file, part)
    _check_machine(part)
    runner = open_part(part, store, file.manifest.signature)
    try:
        if self_test and file.manifest.check is not None:
            replay(runner, file.manifest.check, *file.check_arrays())
    except BaseException:
        runner.close()
        raise
    return runner


def _check_backend(part: Part) -> None:
    if part.backend not in RUNNERS:
        raise MissingError(
            f"this Redline cannot run {part.backend} parts", hint="pip install --upgrade redline"
        )


def _untrusted(file: EngineFile, part: Part) -> UntrustedError:
    signer = (
        f"signed by {file.signer}, whom this machine does not trust"
        if file.signer
        else ("not signed")
    )
    return UntrustedError(
        f"the {part.backend} part is machine code and the file is {signer}",
        hint="trust=True runs it once; redline.engine.sign.trust_key(...) trusts the signer",
    )


def _check_machine(part: Part) -> None:
    if part.isa and (lacking := sorted(set(part.isa) - isa_flags())):
        raise WrongMachineError(
            f"the {part.backend} part needs {', '.join(lacking)}, which this CPU lacks",
            hint="optimize the model on this machine",
        )
