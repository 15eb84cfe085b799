"""What fronts hand to the data plane and get back: requests, responses, errors; no protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from redline.errors import RedlineError


class Status(Enum):
    """What went wrong, as both protocols can say it: (HTTP status, name of the gRPC code)."""

    INVALID = (400, "INVALID_ARGUMENT")
    UNAUTHENTICATED = (401, "UNAUTHENTICATED")
    FORBIDDEN = (403, "PERMISSION_DENIED")
    NOT_FOUND = (404, "NOT_FOUND")
    METHOD = (405, "UNIMPLEMENTED")
    TOO_LARGE = (413, "RESOURCE_EXHAUSTED")
    CANCELLED = (499, "CANCELLED")
    INTERNAL = (500, "INTERNAL")
    UNSUPPORTED = (501, "UNIMPLEMENTED")
    UNAVAILABLE = (503, "UNAVAILABLE")
    DEADLINE = (504, "DEADLINE_EXCEEDED")


class ServeError(RedlineError):
    """A request that is not answered with a result; `what` is told to the client as it is.

    It must therefore hold no path of this host and nothing of another request.
    """

    def __init__(self, status: Status, what: str) -> None:
        super().__init__(what)
        self.status = status


@dataclass(slots=True)
class Request:
    """One inference.

    Attributes:
        model, version: whom it asks; "" for the version that the policy picks.
        inputs: arrays by name; BYTES are object arrays of bytes, BF16 is ml_dtypes.bfloat16.
            They may be read-only views into the request's body, which they keep alive.
        outputs: names that are wanted; () for all.
        id: the client's, told back.
        priority: 1 is the most urgent; 0 takes the model's default.
        timeout: seconds that it may wait in the queue; 0 takes the model's. It can only shorten.
        parameters: what else the client said, checked by the front.
        arrived: time.perf_counter() when its first byte was there.
        traceparent: the W3C trace context that came with it, or "".
    """

    model: str
    version: str
    inputs: dict[str, np.ndarray]
    outputs: tuple[str, ...] = ()
    id: str = ""
    priority: int = 0
    timeout: float = 0.0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    arrived: float = 0.0
    traceparent: str = ""


@dataclass(slots=True)
class Response:
    """The answer: arrays by name, in the order that was asked for; `version` is who answered."""

    model: str
    version: str
    outputs: dict[str, np.ndarray]
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
