"""Train a network by one plain loop: any data, any device, exact resume, and straight to an engine.

from redline import train

result = train.fit("resnet", "digits", epochs=20)
engine = redline.optimize(result.model, result.example)
"""

import importlib
from typing import Any

# Public name -> the module that has it. Loaded on first use: torch and accelerate take seconds.
_PUBLIC = {
    "Data": "redline.train.data",
    "Loop": "redline.train.tuning",
    "Metric": "redline.train.metrics",
    "Recipe": "redline.train.recipe",
    "Result": "redline.train.result",
    "Tracker": "redline.train.log",
    "fit": "redline.train.fit",
    "load_data": "redline.train.sources",
    "load_weights": "redline.train.weights",
    "network": "redline.train.networks",
    "search_recipe": "redline.train.trials",
    "tune": "redline.train.tuning",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'redline.train' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    # A submodule that has been imported hides the function of its name; put the function back.
    found = getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
