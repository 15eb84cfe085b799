"""Hugging Face models, without importing transformers: they bring it along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def is_huggingface(model: Any) -> bool:
    """Whether it is a transformers.PreTrainedModel.

    Example:
        >>> is_huggingface(torch.nn.Linear(1, 1))
        False
    """
    return any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith("transformers.")
        for kind in type(model).__mro__
    )


def is_pipeline(model: Any) -> bool:
    """Whether it is a transformers pipeline, whose model is what runs."""
    return any(
        kind.__name__ == "Pipeline" and kind.__module__.startswith("transformers.")
        for kind in type(model).__mro__
    )


@contextmanager
def as_exportable(model: torch.nn.Module, example: Any) -> Iterator[tuple[torch.nn.Module, Any]]:
    """The model with its cache of keys and values off, while it is captured.

    An engine is a function of its inputs: a cache that grows from call to call is not one of its
    outputs. The rest of a ModelOutput comes back as the model would return it.
    """
    config: Any = model.config
    before = getattr(config, "use_cache", None)
    if before:
        config.use_cache = False
    try:
        yield model, dict(example) if isinstance(example, Mapping) else example
    finally:
        if before:
            config.use_cache = before
