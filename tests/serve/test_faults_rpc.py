"""A real server process under abuse over gRPC; test_faults.py has the same over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import serve_models
from faults import process
from faults_rpc import RpcAbuser

GROWTH = 5 << 20  # bytes


@pytest.mark.parametrize(
    ("count", "warm"),
    [
        (300, 0),
        pytest.param(10_000, 3000, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_abuse_over_grpc(tmp_path: Path, count: int, warm: int) -> None:
    """No good call is lost or gets another's answer, every error says why, memory stays."""
    serve_models.save(tmp_path / "mlp/1/model.onnx", serve_models.mlp())
    with process(tmp_path, "--max-body", str(1 << 20)) as server:
        made = RpcAbuser(server.rpc, seed=1)
        asyncio.run(made.run(warm))
        before = server.memory
        asyncio.run(made.run(count))
        grown = server.memory - before
        assert made.wrong == []
        assert {kind for kind, _ in made.ended} == set(made.kinds)
        assert made.ended["good", "OK"] > count // 4
        assert server.live()
        if warm:
            assert grown < GROWTH
        assert server.terminate() == 0
