"""The response cache: equal questions only, bounded, emptied by a reload."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest

from redline.serve.cache import ResponseCache
from redline.serve.messages import Request, Response

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def ask(model: str = "net", version: str = "", x: np.ndarray = X, **more: object) -> Request:
    return Request(model, version, {"x": x}, **more)  # type: ignore[arg-type]


DIFFERENT = [
    ask(),
    ask("net2"),
    ask(version="1"),
    ask(x=X + 1),
    ask(x=X.reshape(3, 2)),
    ask(x=X.view(np.int32)),
    ask(x=X.astype(np.float16)),
    ask(x=X.astype(ml_dtypes.bfloat16)),
    ask(x=X.astype(np.float16).view(np.int16)),
    ask(outputs=("y",)),
    ask(outputs=("y", "z")),
    ask(outputs=("yz",)),
    ask(parameters={"top_k": 1}),
    ask(parameters={"top_k": "1"}),
    Request("net", "", {"z": X}),
    Request("net", "", {"x": X, "z": X}),
    Request("net", "", {"x": np.array([b"ab", b"c"], object)}),
    Request("net", "", {"x": np.array([b"a", b"bc"], object)}),
    Request("net", "", {"x": np.array([b"abc", b""], object)}),
]


@dataclass(eq=False)
class Loaded:
    """One load of a version."""

    name: str = "net"
    version: str = "1"


def key_of(request: Request, owner: Loaded | None = None) -> object:
    found = owner or Loaded(request.model, request.version)
    return ResponseCache(1 << 20).key(found, request)


def answer(x: np.ndarray, model: str = "net") -> Response:
    return Response(model, "1", {"y": x})


def test_no_two_questions_share_a_key() -> None:
    keys = [key_of(request) for request in DIFFERENT]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "same",
    [
        ask(x=np.asfortranarray(X)), ask(id="other", priority=3, timeout=1.0, traceparent="t"),
        ask(x=np.repeat(X, 2, axis=1)[:, ::2]),
    ],
)  # fmt: skip
def test_what_changes_no_answer_changes_no_key(same: Request) -> None:
    assert key_of(same) == key_of(ask())


def test_no_version_and_the_version_that_answers_are_the_same_question() -> None:
    loaded = Loaded()
    assert key_of(ask(version=""), loaded) == key_of(ask(version="1"), loaded)


def test_a_sequence_is_never_kept() -> None:
    cache, loaded = ResponseCache(1 << 20), Loaded()
    request = ask(parameters={"sequence_id": 5})
    assert cache.find(loaded, request) == (None, None)
    cache.put(loaded, None, answer(X))
    assert len(cache) == 0


def test_bytes_are_bounded_and_the_least_recently_used_goes() -> None:
    cache, loaded = ResponseCache(10_000), Loaded()
    first, _ = cache.find(loaded, ask())
    cache.put(loaded, first, answer(np.zeros(256, "f4")))
    for number in range(1, 100):
        assert cache.find(loaded, ask())[1] is not None  # used all the time, so it stays
        key, kept = cache.find(loaded, ask(x=X + number))
        assert kept is None
        cache.put(loaded, key, answer(np.zeros(256, "f4")))
        assert cache.bytes <= 10_000
    assert len(cache) == 6
    assert cache.evictions == 100 - len(cache)
    assert cache.find(loaded, ask(x=X + 50))[1] is None
    big, _ = cache.find(loaded, ask(x=X + 1000))
    cache.put(loaded, big, answer(np.zeros(10_000)))
    assert cache.find(loaded, ask(x=X + 1000))[1] is None
    assert cache.find(loaded, ask())[1] is not None


def test_a_kept_answer_is_a_copy_that_nobody_can_change() -> None:
    cache, loaded = ResponseCache(1 << 20), Loaded()
    slab = np.zeros((8, 3), np.float32)
    key, _ = cache.find(loaded, ask())
    cache.put(loaded, key, answer(slab[2:4]))
    slab[:] = 7
    _, kept = cache.find(loaded, ask(id="9"))
    assert kept is not None
    assert kept.id == "9"
    assert not kept.outputs["y"].any()
    assert kept.outputs["y"].base is None
    with pytest.raises(ValueError, match="read-only"):
        kept.outputs["y"][:] = 1
    del kept.outputs["y"]
    assert cache.find(loaded, ask())[1].outputs  # type: ignore[union-attr]


def test_a_reload_empties_it_also_for_answers_on_their_way() -> None:
    cache, old = ResponseCache(1 << 20), Loaded()
    other = Loaded("other")
    for loaded, request in ((old, ask()), (other, ask("other"))):
        cache.put(loaded, cache.find(loaded, request)[0], answer(X))
    late, _ = cache.find(old, ask(x=X + 1))  # the old one still computes this
    new = Loaded()
    key, kept = cache.find(new, ask())
    assert kept is None
    cache.put(old, late, answer(X))
    assert cache.find(new, ask(x=X + 1))[1] is None
    cache.put(new, key, answer(X + 1))
    assert cache.find(new, ask())[1].outputs["y"][0, 0] == 1  # type: ignore[union-attr]
    assert cache.find(other, ask("other"))[1] is not None


def test_an_unload_gives_the_memory_back() -> None:
    cache, loaded = ResponseCache(1 << 20), Loaded()
    cache.put(loaded, cache.find(loaded, ask())[0], answer(X))
    assert cache.bytes
    del loaded
    gc.collect()
    assert (cache.bytes, len(cache)) == (0, 0)


def test_hits_and_misses_are_counted() -> None:
    cache, loaded = ResponseCache(1 << 20), Loaded()
    for _ in range(3):
        key, kept = cache.find(loaded, ask())
        if kept is None:
            cache.put(loaded, key, answer(X))
    counts = cache.counts["net"]
    assert (counts.hits, counts.misses) == (2, 1)
    assert counts.hit_seconds > 0
