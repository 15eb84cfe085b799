"""A server under abuse for a long time: REDLINE_SOAK=3600 for an hour, else a minute."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import serve_models
from faults import GROWTH, abuse, check, process


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_memory_stays_where_it_is(tmp_path: Path) -> None:
    """Nothing lost, nothing mixed up; the heap goes up and down, a leak lifts its lowest points."""
    serve_models.save(tmp_path / "mlp/1/model.onnx", serve_models.mlp())
    with process(tmp_path) as server:
        for seed in (1, 2, 3):
            check(abuse(server, 1000, seed), server)
        sizes, rounds = [], 0
        until = time.monotonic() + float(os.environ.get("REDLINE_SOAK", "60"))
        while time.monotonic() < until or rounds < 8:
            rounds += 1
            check(abuse(server, 500, seed=100 + rounds), server)
            sizes.append(server.memory)
        print(f"{rounds} rounds of 500, {sizes[0] >> 20} to {sizes[-1] >> 20} MiB")
        quarter = len(sizes) // 4
        assert min(sizes[-quarter:]) - min(sizes[:quarter]) < GROWTH
        assert server.terminate() == 0
