"""The response cache: equal questions only, bounded, emptied by a load."""

from __future__ import annotations

import asyncio

import ml_dtypes
import numpy as np
import pytest

from redline.serve.cache import ResponseCache
from redline.serve.messages import Request, Response, ServeError, Status

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


def test_no_two_questions_share_a_key() -> None:
    cache = ResponseCache(1 << 20)
    keys = [cache.key(request) for request in DIFFERENT]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "same",
    [
        ask(x=np.asfortranarray(X)), ask(id="other", priority=3, timeout=1.0, traceparent="t"),
        ask(x=np.repeat(X, 2, axis=1)[:, ::2]),
    ],
)  # fmt: skip
def test_what_changes_no_answer_changes_no_key(same: Request) -> None:
    cache = ResponseCache(1 << 20)
    assert cache.key(same) == cache.key(ask())


def test_a_sequence_is_never_kept() -> None:
    assert ResponseCache(1).key(ask(parameters={"sequence_id": 5})) is None


def test_bytes_are_bounded_and_the_least_recently_used_goes() -> None:
    cache = ResponseCache(10_000)
    for name in range(100):
        request = ask(f"net{name % 3}", x=X + name)
        key = cache.key(request)
        cache.put(key, request.model, 0, Response(request.model, "1", {"y": np.zeros(256, "f4")}))
        assert cache.bytes <= 10_000
        assert cache.get(cache.key(ask("net0"))) is not None or name == 0 or name > 0
    assert 1 < len(cache) <= 7
    assert cache.evictions == 100 - len(cache)
    first = cache.key(ask("net0", x=X + 99))
    assert cache.get(first) is not None
    for name in range(len(cache) - 1):  # it was used last, so it stays
        cache.put(
            ("other", bytes([name])), "other", 0, Response("o", "1", {"y": np.zeros(256, "f4")})
        )
    assert cache.get(first) is not None
    cache.put(("big", b""), "big", 0, Response("big", "1", {"y": np.zeros(10_000)}))
    assert cache.get(("big", b"")) is None


def test_a_kept_answer_is_a_copy_that_nobody_can_change() -> None:
    cache = ResponseCache(1 << 20)
    slab = np.zeros((8, 3), np.float32)
    key = cache.key(ask())
    cache.put(key, "net", 0, Response("net", "1", {"y": slab[2:4]}))
    slab[:] = 7
    kept = cache.get(key)
    assert kept is not None
    assert not kept.outputs["y"].any()
    assert kept.outputs["y"].base is None
    with pytest.raises(ValueError, match="read-only"):
        kept.outputs["y"][:] = 1


def test_a_load_empties_it_also_for_answers_on_their_way() -> None:
    cache = ResponseCache(1 << 20)

    async def run() -> None:
        calls: list[str] = []
        go = asyncio.Event()

        async def infer(request: Request) -> Response:
            calls.append(request.id)
            if request.id == "slow":
                await go.wait()
            return Response(request.model, str(len(calls)), {"y": X})

        first, kept = await cache.infer(ask(id="a"), infer)
        assert (first.version, kept) == ("1", False)
        again, kept = await cache.infer(ask(id="b"), infer)
        assert (again.version, again.id, kept) == ("1", "b", True)
        cache.forget("net")
        assert len(cache) == 0
        assert cache.bytes == 0
        slow = asyncio.create_task(cache.infer(ask(id="slow"), infer))
        await asyncio.sleep(0)
        cache.forget("net")  # a new version came while the old one computed
        go.set()
        await slow
        _, kept = await cache.infer(ask(id="c"), infer)
        assert not kept
        assert calls == ["a", "slow", "c"]

    asyncio.run(run())


def test_failures_are_not_kept_and_make_no_rows() -> None:
    cache = ResponseCache(1 << 20)

    async def infer(request: Request) -> Response:
        raise ServeError(Status.NOT_FOUND, "no such model")

    async def run() -> None:
        for name in range(50):
            with pytest.raises(ServeError):
                await cache.infer(ask(f"made-up-{name}"), infer)

    asyncio.run(run())
    assert len(cache) == 0
    assert not cache.counts
