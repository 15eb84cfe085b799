"""Every error that Redline raises on purpose.

RedlineError                     all of them; has .what, .where, .hint
  + InputError                   what the caller gave is not usable (also a ValueError)
  |   - ModelError               not a model, in training mode, on another device
  |   - SignatureError           an engine got a wrong name, dtype, shape or structure
  |   - UnknownNameError         a name that is not in a list; says "did you mean"
  |   - GoalError                a goal or budget that cannot be read
  + CaptureError                 the model could not be turned into a graph
  |   - SpecializedAxisError     an axis asked to be dynamic came out fixed
  + BackendError                 a backend could not do its work
  |   - MissingError             it is not installed; .hint is the command that mends it
  |   - RefusedError             it cannot take this model or setting, with the reason
  |   - BuildError               it tried and failed
  |   - RunError                 the built part failed while running
  + EngineFileError              an engine file cannot be used
  |   - TruncatedError           bytes are missing
  |   - TamperedError            a hash or the structure does not match the manifest
  |   - UnsafeError              a path that leaves the file, a zip bomb, a link
  |   - SchemaError              written by a newer Redline
  |   - UntrustedError           holds code that no trusted key signed
  |   - WrongMachineError        needs an instruction set or backend this machine lacks
  |   - SelfTestError            replayed its own inputs and got other numbers
  |   - SaveError                could not be written; what was there is untouched
  + ChildError                   a measuring process ended badly
      - CrashedError             by a signal
      - TimedOutError            by the clock
      - OutOfMemoryError         by its memory limit
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RedlineError(Exception):
    """What happened, where, and what to do about it.

    Example:
        >>> print(RedlineError("got 3 channels, expected 1", where="input 'x'"))
        got 3 channels, expected 1
          where: input 'x'
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class InputError(RedlineError, ValueError):
    """What the caller gave is not usable."""


class ModelError(InputError):
    """Not a model, in training mode, or on another device."""


class SignatureError(InputError):
    """An engine got a wrong name, dtype, shape or structure."""


class GoalError(InputError):
    """A goal or a budget that cannot be read."""


class UnknownNameError(InputError):
    """A name that is not in a list of known names.

    Example:
        >>> raise UnknownNameError("backend", "onxruntime", ["onnxruntime", "openvino"])
        Traceback (most recent call last):
        ...
        redline.errors.UnknownNameError: unknown backend 'onxruntime'; did you mean 'onnxruntime'?
          hint: known: onnxruntime, openvino
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = list(known)
        close = difflib.get_close_matches(name, known, n=1)
        guess = f"; did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}{guess}", hint="known: " + ", ".join(known))


class CaptureError(RedlineError):
    """The model could not be turned into a graph."""


class SpecializedAxisError(CaptureError):
    """An axis that was asked to be dynamic came out fixed."""


class BackendError(RedlineError):
    """A backend could not do its work."""


class MissingError(BackendError):
    """A backend is not installed; the hint is the command that mends it."""


class RefusedError(BackendError):
    """A backend cannot take this model or setting."""


class BuildError(BackendError):
    """A backend tried to build and failed."""


class RunError(BackendError):
    """A built part failed while running."""


class EngineFileError(RedlineError):
    """An engine file cannot be used."""


class TruncatedError(EngineFileError):
    """Bytes of the file are missing."""


class TamperedError(EngineFileError):
    """A hash or the structure does not match the manifest."""


class UnsafeError(EngineFileError):
    """The file tries to leave its folder or to fill the disk."""


class SchemaError(EngineFileError):
    """The file was written by a newer Redline."""


class UntrustedError(EngineFileError):
    """The file holds code that no trusted key signed."""


class WrongMachineError(EngineFileError):
    """A part needs an instruction set or a backend that this machine lacks."""


class SelfTestError(EngineFileError):
    """The engine replayed its own inputs and got other numbers."""


class SaveError(EngineFileError):
    """The file could not be written; what was there before is untouched."""


class ChildError(RedlineError):
    """A measuring process ended badly."""


class CrashedError(ChildError):
    """A measuring process was ended by a signal."""


class TimedOutError(ChildError):
    """A measuring process ran past its time."""


class OutOfMemoryError(ChildError):
    """A measuring process went over its memory limit."""
