"""Counts of one model's version, in the shape of Triton's statistics."""

from __future__ import annotations

import time
from typing import Any

from redline.serve.instance import Batch

_NS = 1e9


class Total:
    """How often something happened and how long it took together."""

    __slots__ = ("count", "ns")

    def __init__(self) -> None:
        self.count = 0
        self.ns = 0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.ns += int(max(0.0, seconds) * _NS)

    def told(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


class Statistics:
    """Written on the event loop, read there too: no lock."""

    def __init__(self) -> None:
        self.inferences = 0
        self.executions = 0
        self.last_ms = 0
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        self.totals = {name: Total() for name in (*names, "cache_hit", "cache_miss")}
        self._batches: dict[int, tuple[Total, Total, Total]] = {}

    def ran(self, batch: Batch, rows: int) -> None:
        """A batch has run."""
        self.executions += 1
        totals = self._batches.get(rows)
        if totals is None:
            totals = self._batches[rows] = (Total(), Total(), Total())
        totals[0].add(batch.gathered - batch.started)
        totals[1].add(batch.finished - batch.gathered)
        totals[2].add(0.0)  # its requests say how long they took

    def answered(self, item: Any, arrived: float, now: float) -> None:
        """A request was answered."""
        totals = self.totals
        totals["success"].add(now - arrived)
        totals["queue"].add(item.started - item.queued)
        totals["compute_input"].add(item.gathered - item.started)
        totals["compute_infer"].add(item.finished - item.gathered)
        totals["compute_output"].add(now - item.finished)
        if of_batch := self._batches.get(item.batch_rows):
            of_batch[2].add((now - item.finished) * item.rows / item.batch_rows, 0)
        self.inferences += item.rows
        self.last_ms = int(time.time() * 1000)

    def failed(self, arrived: float, now: float) -> None:
        """A request was refused or failed."""
        self.totals["fail"].add(now - arrived)

    def told(self, name: str, version: str) -> dict[str, Any]:
        """One row of "model_stats"."""
        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.inferences,
            "execution_count": self.executions,
            "inference_stats": {key: total.told() for key, total in self.totals.items()},
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": before.told(),
                    "compute_infer": run.told(),
                    "compute_output": after.told(),
                }
                for rows, (before, run, after) in sorted(self._batches.items())
            ],
            "memory_usage": [],
        }
