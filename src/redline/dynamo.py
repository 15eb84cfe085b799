"""torch.compile(model, backend="redline"): every graph that Dynamo cuts out becomes an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from redline.api import optimize
from redline.errors import RedlineError

_LOG = logging.getLogger("redline")
Compiled = Callable[..., Any]


class _Bound(torch.nn.Module):
    """A graph with its weights bound, so that only the activations are inputs."""

    def __init__(
        self, graph: torch.fx.GraphModule, values: Sequence[Any], free: Sequence[int]
    ) -> None:
        super().__init__()
        self.graph_module = graph
        self.free = tuple(free)
        self.fixed = {}
        for place, value in enumerate(values):
            if place not in self.free:
                self.register_buffer(f"weight_{place}", value.detach())
                self.fixed[place] = f"weight_{place}"

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = dict(zip(self.free, tensors, strict=True))
        count = len(self.free) + len(self.fixed)
        values = [given[i] if i in given else getattr(self, self.fixed[i]) for i in range(count)]
        return self.graph_module(*values)


def redline_backend(
    graph: torch.fx.GraphModule,
    example_inputs: Sequence[Any],
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """The backend that torch.compile finds under the name "redline".

    A graph is optimized at its first call, when real tensors are at hand. A graph that an engine
    cannot stand in for (gradients wanted, sizes that change) stays as it is, and the log says why.

    Args:
        graph: what Dynamo captured.
        example_inputs: weights and activations in the order of its placeholders.
        options: keywords for redline.optimize, e.g. {"budget": "20s"}.

    Example:
        >>> fast = torch.compile(model, backend="redline", dynamic=False)
        >>> with torch.inference_mode():
        ...     y = fast(x)
    """
    free = [i for i, value in enumerate(example_inputs) if not _is_weight(value)]
    if any(not isinstance(example_inputs[i], torch.Tensor) for i in free):
        _LOG.warning(
            "a graph with changing sizes stays in PyTorch; use torch.compile(dynamic=False)"
        )
        return graph.forward
    if not free:
        return graph.forward
    return _Late(graph, free, dict(options or {}))


class _Late:
    """A compiled graph that becomes an engine at its first call."""

    def __init__(
        self, graph: torch.fx.GraphModule, free: Sequence[int], options: dict[str, Any]
    ) -> None:
        self.graph = graph
        self.free = free
        self.options = options
        self.engine: Any = None
        self.versions: tuple[int, ...] = ()
        self.refused = False

    def __call__(self, *values: Any) -> Any:
        if not self.refused and not self._needs_gradients(values) and self._ready(values):
            return self.engine(*[values[i] for i in self.free])
        return self.graph(*values)

    def _ready(self, values: Sequence[Any]) -> bool:
        """Whether there is an engine that still stands for the graph."""
        if self.engine is None:
            self._build(values)
        elif self._versions(values) != self.versions:
            self._refuse("its weights were changed in place after it was optimized")
        return not self.refused

    def _build(self, values: Sequence[Any]) -> None:
        bound = _Bound(self.graph, values, self.free).eval()
        inputs = tuple(values[i].detach() for i in self.free)
        self.versions = self._versions(values)
        try:
            self.engine = optimize(bound, inputs, name="compiled graph", **self.options)
        except RedlineError as error:
            self._refuse(str(error))

    def _refuse(self, why: str) -> None:
        self.refused = True
        _LOG.warning("a graph stays in PyTorch: %s", why)

    def _versions(self, values: Sequence[Any]) -> tuple[int, ...]:
        """The version counters of the weights: they rise at every in-place change."""
        return tuple(
            value._version
            for place, value in enumerate(values)
            if place not in self.free and not value.is_inference()
        )

    def _needs_gradients(self, values: Sequence[Any]) -> bool:
        return torch.is_grad_enabled() and any(
            isinstance(value, torch.Tensor) and value.requires_grad for value in values
        )


def _is_weight(value: Any) -> bool:
    """Whether Dynamo passes a module's parameter or buffer, and not an activation."""
    static = getattr(value, "_dynamo_static_input_type", None) is not None
    return isinstance(value, torch.nn.Parameter) or static
