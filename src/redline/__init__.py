"""From a PyTorch model to the fastest engine your machine can run: verified, explained, served.

engine = redline.optimize(model, example_inputs)
y = engine(x)
engine.save("model.redline")
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that has it. Loaded on first use, so that `import redline` is quick and
# an engine can be loaded on a machine without torch.
_PUBLIC = {
    "Engine": "redline.drop_in",
    "Goal": "redline.search.goal",
    "Report": "redline.report.report",
    "autograd_view": "redline.views.autograd",
    "compare": "redline.api",
    "errors": "redline.errors",
    "grad_report": "redline.views.gradients",
    "graph_view": "redline.views.survey",
    "load": "redline.drop_in",
    "machine": "redline.machine",
    "optimize": "redline.api",
    "watch": "redline.views.watch",
    "why": "redline.diagnosis",
}
# Packages that are used by name; each loads its own parts on first use.
_PACKAGES = ("compress", "layout")

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"redline.{name}")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'redline' has no attribute {name!r}")
    module = importlib.import_module(_PUBLIC[name])
    return module if module.__name__ == f"redline.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
