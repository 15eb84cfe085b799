"""Tensors as shape, strides and offset: what is legal, what is a view, where copies hide."""

import importlib
from typing import Any

# Name -> the module that has it; loaded on first use, so that the arithmetic needs no torch.
_PUBLIC = {
    "copies": "redline.layout.finder",
    "describe": "redline.layout.facts",
    "explain_view": "redline.layout.view",
    "from_dlpack": "redline.layout.source",
    "is_contiguous": "redline.layout.legal",
    "may_exist": "redline.layout.legal",
    "may_view": "redline.layout.legal",
    "may_write": "redline.layout.legal",
    "writes": "redline.layout.history",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'redline.layout' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
