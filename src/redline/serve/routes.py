"""Every HTTP path and RPC that exists, and whether it belongs to the data or the control plane.

What no row names does not exist: a request for it is refused before any front looks for a
handler, so a route that somebody forgot to list is closed and not open.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Gate(Enum):
    """What a route may do."""

    OPEN = "open"  # no key: what a load balancer asks, and the page's own files
    DATA = "data"  # an API key, where there are any
    CONTROL = "control"  # changes what is served: off unless the operator turned it on


@dataclass(frozen=True)
class Route:
    """One row: paths (a regular expression on the decoded path) and what they may do."""

    path: str
    gate: Gate

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.path)


_MODEL = r"/v2/models/[^/]+(?:/versions/[^/]+)?"
ROUTES = (
    Route(r"/", Gate.OPEN),
    Route(r"/page/[a-z]+\.(?:css|js)", Gate.OPEN),
    Route(r"/v2/health/(?:live|ready)", Gate.OPEN),
    Route(r"/page/state", Gate.DATA),
    Route(r"/metrics", Gate.DATA),
    Route(r"/v2/?", Gate.DATA),
    Route(r"/v2/openapi\.yaml", Gate.DATA),
    Route(rf"{_MODEL}", Gate.DATA),
    Route(rf"{_MODEL}/(?:ready|config|stats|infer|generate|generate_stream)", Gate.DATA),
    Route(r"/v2/models/stats", Gate.DATA),
    Route(r"/v2/repository/index", Gate.DATA),
    Route(r"/v2/repository/models/[^/]+/(?:load|unload)", Gate.CONTROL),
    Route(r"/v2/logging", Gate.CONTROL),
    Route(r"(?:/v2|/v2/models/[^/]+)/trace/setting", Gate.CONTROL),
    Route(
        r"/v2/(?:system|cuda)sharedmemory(?:/region/[^/]+)?/(?:status|register|unregister)",
        Gate.CONTROL,
    ),
)
_RULES = tuple((row.pattern, row.gate) for row in ROUTES)

_OPEN_RPCS = frozenset({"ServerLive", "ServerReady"})
_DATA_RPCS = frozenset(
    {
        "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics",
        "ModelInfer", "ModelStreamInfer", "RepositoryIndex",
    }
)  # fmt: skip
_CONTROL_RPCS = frozenset(
    {
        "RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings",
        "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister",
    }
)  # fmt: skip
_INFERENCE = "inference.GRPCInferenceService"
_SERVICES = {
    "grpc.health.v1.Health": Gate.OPEN,
    "grpc.reflection.v1alpha.ServerReflection": Gate.DATA,
    "grpc.reflection.v1.ServerReflection": Gate.DATA,
}


def classify(path: str) -> Gate | None:
    """What a decoded HTTP path may do; None for a path that does not exist.

    Example:
        >>> classify("/v2/models/net/infer"), classify("/v2/logging"), classify("/v2//logging")
        (<Gate.DATA: 'data'>, <Gate.CONTROL: 'control'>, None)
    """
    for pattern, gate in _RULES:
        if pattern.fullmatch(path):
            return gate
    return None


def classify_rpc(method: str) -> Gate | None:
    """The same for a gRPC method, such as "/inference.GRPCInferenceService/ModelInfer"."""
    service, _, name = method.removeprefix("/").partition("/")
    if service in _SERVICES:
        return _SERVICES[service]
    if service != _INFERENCE:
        return None
    for gate, names in (
        (Gate.OPEN, _OPEN_RPCS), (Gate.DATA, _DATA_RPCS), (Gate.CONTROL, _CONTROL_RPCS),
    ):  # fmt: skip
        if name in names:
            return gate
    return None
