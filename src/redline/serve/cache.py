"""Answers kept by what was asked: opt-in, bounded in bytes, least recently used out first.

A key holds the model, the version that answers, every input's name, dtype, shape and bytes, the
parameters and the wanted outputs: two models with equal inputs never share an answer, nor do two
dtypes with equal bytes. Answers belong to the loaded model that gave them: when a reload has put
another in its place they are dropped, and one that was being computed meanwhile is not kept.
"""

from __future__ import annotations

import hashlib
import time
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np

from redline.serve.messages import Request, Response

Key = tuple[str, str, bytes]
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


class Owner(Protocol):
    """A loaded version of a model; another load makes another object."""

    name: str
    version: str


class ResponseCache:
    """Belongs to one event loop; nothing is locked.

    Args:
        max_bytes: of the arrays of all kept answers, and a little for each.

    Example:
        >>> cache = ResponseCache(1 << 20)
        >>> key, kept = cache.find(served, request)
        >>> if kept is None:
        ...     cache.put(served, key, await compute(request))
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.evictions = 0
        self.counts: dict[str, Counts] = {}
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._owners: dict[tuple[str, str], weakref.ref[Owner]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, owner: Owner, request: Request) -> tuple[Key | None, Response | None]:
        """The key of a request to `owner`, None for one that is never kept; and the kept answer.

        Its arrays may not be written to.
        """
        started = time.perf_counter()
        key = self.key(owner, request)
        if key is None:
            return None, None
        self._adopt(owner)
        counts = self.counts.setdefault(owner.name, Counts())
        entry = self._entries.get(key)
        if entry is None:
            counts.misses += 1
            counts.miss_seconds += time.perf_counter() - started
            return key, None
        self._entries.move_to_end(key)
        counts.hits += 1
        counts.hit_seconds += time.perf_counter() - started
        kept = entry.response
        outputs = dict(kept.outputs)
        return key, Response(kept.model, kept.version, outputs, request.id, kept.parameters)

    def put(self, owner: Owner, key: Key | None, response: Response) -> None:
        """Keep an answer of `owner`; one larger than the cache is not kept."""
        held = self._owners.get((owner.name, owner.version))
        if key is None or held is None or held() is not owner:
            return
        size = _ENTRY + sum(_size(array) for array in response.outputs.values())
        if size > self.max_bytes:
            return
        outputs = {name: _own(array) for name, array in response.outputs.items()}
        self._drop(key)
        kept = Response(response.model, response.version, outputs, "", response.parameters)
        self._entries[key] = _Entry(kept, size)
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))
            self.evictions += 1

    def key(self, owner: Owner, request: Request) -> Key | None:
        """What an answer is kept by; None for a request of a sequence, which has a state."""
        if any(request.parameters.get(name) for name in _STATEFUL):
            return None
        digest = hashlib.blake2b(digest_size=32)
        add = digest.update
        parameters = msgspec.json.encode(dict(request.parameters), order="deterministic")
        for text in (parameters, *map(str.encode, request.outputs)):
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
        return owner.name, owner.version, digest.digest()

    def _adopt(self, owner: Owner) -> None:
        """Drop what another load of the same version left."""
        place = (owner.name, owner.version)
        held = self._owners.get(place)
        if held is not None and held() is owner:
            return
        self._forget(place)
        # When the last reference to it goes (it was unloaded), its answers go.
        self._owners[place] = weakref.ref(owner, lambda gone: self._left(place, gone))

    def _left(self, place: tuple[str, str], gone: weakref.ref[Owner]) -> None:
        if self._owners.get(place) is gone:
            del self._owners[place]
            self._forget(place)

    def _forget(self, place: tuple[str, str]) -> None:
        for key in [key for key in self._entries if key[:2] == place]:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.size


def _size(array: np.ndarray) -> int:
    if array.dtype.hasobject:
        return array.nbytes + sum(len(element) + _BYTES for element in array.ravel())
    return array.nbytes


def _own(array: np.ndarray) -> np.ndarray:
    """A copy that keeps no batch alive and that nobody may write to."""
    kept = np.array(array, order="C", copy=True)
    kept.flags.writeable = False
    return kept
