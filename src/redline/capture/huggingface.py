"""Hugging Face models, without importing transformers: they bring it along."""

from __future__ import annotations

import inspect
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


class WithoutCache(torch.nn.Module):
    """A model that keeps no keys and values: an engine is a function of its inputs.

    The rest of its ModelOutput, and its attributes, are the model's own.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.signature = inspect.signature(model.forward)
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **{**kwargs, "use_cache": False})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


def as_exportable(model: torch.nn.Module) -> torch.nn.Module:
    """The model itself, or without its cache if it would return one."""
    caches = getattr(model.config, "use_cache", False)
    takes = "use_cache" in inspect.signature(model.forward).parameters
    return WithoutCache(model) if caches and takes else model
