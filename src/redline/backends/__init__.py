"""The build half of every backend, one file each; the run half is in runtime/.

Light to import: a backend's own libraries are loaded when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import cast

from redline.backends.base import Backend
from redline.errors import UnknownNameError

# Name -> "module:Class", the simplest first. Children find a backend by the same text.
BACKENDS = {
    "eager": "redline.backends.eager:EagerBackend",
    "onnxruntime": "redline.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "redline.backends.openvino:OpenVinoBackend",
    "ncnn": "redline.backends.ncnn:NcnnBackend",
    "native": "redline.backends.native:NativeBackend",
    "inductor": "redline.backends.inductor:InductorBackend",
    "tensorrt": "redline.backends.tensorrt:TensorRtBackend",
    "null": "redline.backends.null:NullBackend",
}
_HIDDEN = ("null",)


def names(*, hidden: bool = False) -> tuple[str, ...]:
    """The backends that optimize() tries; `hidden` adds the one for tests.

    Example:
        >>> names()[0]
        'eager'
    """
    return tuple(name for name in BACKENDS if hidden or name not in _HIDDEN)


def get(name: str) -> Backend:
    """A backend by its name.

    Raises:
        UnknownNameError: there is none of that name; says "did you mean".
    """
    if name not in BACKENDS:
        raise UnknownNameError("backend", name, names())
    return load(BACKENDS[name])


def load(entry: str) -> Backend:
    """A backend from "module:Class"."""
    module, _, kind = entry.partition(":")
    return cast(Backend, getattr(importlib.import_module(module), kind)())
