"""What `redline graph-view` does: from the words on a command line to a view."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from redline.capture.factory import load_factory, parse_inputs
from redline.errors import InputError
from redline.views.calls import check_module
from redline.views.model_graph import GraphView
from redline.views.survey import graph_view


def view_model(
    target: str, inputs: Sequence[str], *, train: bool = False, meta: bool = False,
    real: bool = False,
) -> GraphView:  # fmt: skip
    """Build what `target` names, and view it with inputs of these shapes.

    Args:
        target: "pkg.module:factory"; the factory returns the module, or (module, inputs).
        inputs: as in parse_inputs(); none takes the inputs that the factory returned.
        train: put the model in training mode first.
        meta: build the model on the meta device, without memory for its weights.
        real: compute on real values.

    Raises:
        InputError: no such model, an input that cannot be read, or `meta` with `real`.
        ModelError: not an nn.Module, or its forward fails.
    """
    if meta and real:
        raise InputError("a model without weights cannot run", hint="leave out --meta or --real")
    with torch.device("meta") if meta else contextlib.nullcontext():
        found = load_factory(target)
    built = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    model, example = built
    check_module(model)
    given = parse_inputs(inputs)
    if train:
        model.train()
    return graph_view(model, example if given is None else given, real=real)
