"""Answers kept by what was asked: opt-in, bounded in bytes, least recently used out first.

A key holds the model, the version that was asked for, every input's name, dtype, shape and bytes,
the parameters and the wanted outputs: two models with equal inputs never share an answer, nor do
two dtypes with equal bytes. What a model kept is dropped when it is loaded or unloaded, and an
answer that was being computed meanwhile is not kept.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from redline.serve.messages import Request, Response

Infer = Callable[[Request], Awaitable[Response]]
_ENTRY = 512  # bytes that an entry costs besides its arrays, about
_BYTES = 64  # the same for an element of a BYTES tensor
_STATEFUL = ("sequence_id", "sequence_start", "sequence_end")


@dataclass(slots=True)
class _Entry:
    response: Response
    size: int


@dataclass(slots=True)
class Counts:
    """What the cache did for one model; seconds are the time that lookups took."""

    hits: int = 0
    misses: int = 0
    hit_seconds: float = 0.0
    miss_seconds: float = 0.0


class ResponseCache:
    """Belongs to one event loop; nothing is locked.

    Example:
        >>> cache = ResponseCache(1 << 20)
        >>> x = np.ones((1, 2), np.float32)
        >>> key = cache.key(Request("net", "", {"x": x}))
        >>> cache.put(key, "net", 0, Response("net", "1", {"y": x}))
        >>> cache.get(key).outputs["y"]
        array([[1., 1.]], dtype=float32)
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self.counts: dict[str, Counts] = {}
        self._entries: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        self._ages: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, request: Request) -> tuple[str, bytes] | None:
        """What an answer is kept by; None for a request of a sequence, which has a state."""
        if any(request.parameters.get(name) for name in _STATEFUL):
            return None
        digest = hashlib.blake2b(digest_size=32)
        add = digest.update
        parameters = msgspec.json.encode(dict(request.parameters), order="deterministic")
        for text in (request.version.encode(), parameters, *map(str.encode, request.outputs)):
            add(b"%d:" % len(text))
            add(text)
        for name in sorted(request.inputs):
            array = request.inputs[name]
            add(f"|{len(name)}:{name}{array.dtype.str}{array.dtype.name}{array.shape}".encode())
            if array.dtype.hasobject:
                for element in array.ravel():
                    add(b"%d:" % len(element))
                    add(element)
            else:
                add(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return request.model, digest.digest()

    def age(self, model: str) -> int:
        """A number that changes when the model's answers are dropped."""
        return self._ages.get(model, 0)

    def get(self, key: tuple[str, bytes]) -> Response | None:
        """The kept answer, with arrays that nobody may write to."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry.response

    def put(self, key: tuple[str, bytes], model: str, age: int, response: Response) -> None:
        """Keep an answer that was asked for at `age`; one larger than the cache is not kept."""
        if age != self.age(model):
            return
        size = _ENTRY + sum(_size(array) for array in response.outputs.values())
        if size > self.max_bytes:
            return
        outputs = {name: _own(array) for name, array in response.outputs.items()}
        self._drop(key)
        self._entries[key] = _Entry(
            Response(response.model, response.version, outputs, "", response.parameters), size
        )
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evictions += 1

    def forget(self, model: str) -> None:
        """Drop every answer of a model: it was loaded or unloaded."""
        self._ages[model] = self.age(model) + 1
        for key in [key for key in self._entries if key[0] == model]:
            self._drop(key)

    def _drop(self, key: tuple[str, bytes]) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.size

    async def infer(self, request: Request, infer: Infer) -> tuple[Response, bool]:
        """The kept answer, or that of `infer`, which is then kept; and whether it was kept."""
        started = time.perf_counter()
        key = self.key(request)
        if key is None:
            return await infer(request), False
        kept = self.get(key)
        counts = self.counts.get(request.model)
        took = time.perf_counter() - started
        if kept is not None:
            if counts is not None:
                counts.hits += 1
                counts.hit_seconds += took
            return _told(kept, request.id), True
        age = self.age(request.model)
        response = await infer(request)
        # Only a model that answers has a row: names that clients make up cost nothing.
        counts = self.counts.setdefault(request.model, Counts())
        counts.misses += 1
        counts.miss_seconds += took
        self.put(key, request.model, age, response)
        return response, False


def _told(kept: Response, id: str) -> Response:
    return Response(kept.model, kept.version, dict(kept.outputs), id, kept.parameters)


def _size(array: np.ndarray) -> int:
    if array.dtype.hasobject:
        return array.nbytes + sum(len(element) + _BYTES for element in array.ravel())
    return array.nbytes


def _own(array: np.ndarray) -> np.ndarray:
    """A copy that keeps no batch alive and that nobody may write to."""
    kept = np.array(array, order="C", copy=True)
    kept.flags.writeable = False
    return kept


def totals(cache: ResponseCache) -> Mapping[str, Any]:
    """Sizes for /metrics."""
    return {
        "bytes": cache.bytes,
        "max_bytes": cache.max_bytes,
        "entries": len(cache),
        "evictions": cache.evictions,
    }
