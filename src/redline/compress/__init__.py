"""Smaller and faster under an accuracy budget: one file for each method.

Methods for graphs are tried by redline.optimize(precisions=...). These change a torch module:

small = redline.compress.qat(model, loader, loss, epochs=3)
engine = redline.optimize(small, x)
"""

import importlib
from typing import Any

# Public name -> the module that has it. Loaded on first use: torch takes seconds.
_PUBLIC = {
    "Scheme": "redline.compress.scheme",
    "Training": "redline.compress.finetune",
    "convert_qat": "redline.compress.quantised_training",
    "distill": "redline.compress.distillation",
    "low_float": "redline.compress.gpu_floats",
    "prepare_qat": "redline.compress.quantised_training",
    "prune": "redline.compress.pruning",
    "qat": "redline.compress.quantised_training",
    "what_was_done": "redline.compress.modules",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'redline.compress' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
