"""Counters of the server: a hook of the data plane adds integers, and a scrape renders them.

Everything runs in the server's event loop, so nothing is locked and nothing is rendered before it
is asked for. Names are Triton's where Triton has one; what a counter means is in
docs/operating.md.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import psutil

from redline.serve import exposition
from redline.serve.cache import ResponseCache
from redline.serve.exposition import Family
from redline.serve.messages import Request, Response, ServeError, Status

if TYPE_CHECKING:
    from redline.serve.plane import Times

# Seconds; factors of about 2 from 50 µs to 10 s, so that a percentile is known to within that.
BOUNDS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
)  # fmt: skip
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_Kind = Literal["counter", "gauge", "histogram"]
_SECONDS = ("request", "queue", "compute")

# Why a request failed, by Triton's four words.
_REASONS = {
    Status.UNAVAILABLE: "REJECTED",
    Status.DEADLINE: "REJECTED",
    Status.CANCELLED: "CANCELED",
    Status.INTERNAL: "BACKEND",
}
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")


class Counted(Protocol):
    """The part of the data plane that a scrape asks."""

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]: ...
    def ready(self) -> bool: ...
    def waiting(self) -> dict[tuple[str, str], int]: ...


class Histogram:
    """Counts by bound, and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count one value; a bound belongs to the bucket below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def quantile(self, share: float) -> float:
        """The value below which `share` of all lie, taken evenly within its bucket; 0.0 for none.

        Example:
            >>> found = Histogram((1.0, 2.0))
            >>> found.add(0.5), found.add(1.5)
            (None, None)
            >>> found.quantile(0.5), found.quantile(1.0)
            (1.0, 2.0)
        """
        wanted, seen, low = share * sum(self.counts), 0, 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and seen + count >= wanted:
                return low + (bound - low) * (wanted - seen) / count
            seen, low = seen + count, bound
        return self.bounds[-1] if wanted else 0.0


class _Model:
    """What is counted for one version of a model."""

    __slots__ = ("batch", "compute", "failures", "queue", "request")

    def __init__(self) -> None:
        self.request = Histogram(BOUNDS)
        self.queue = Histogram(BOUNDS)
        self.compute = Histogram(BOUNDS)
        self.batch = Histogram(_BATCHES)
        self.failures = dict.fromkeys(REASONS, 0)


class Metrics:
    """Put `after` among the hooks of the data plane; `text` is what /metrics answers.

    Example:
        >>> metrics = Metrics()
        >>> "process_resident_memory_bytes" in metrics.text()
        True
    """

    def __init__(self, plane: Counted | None = None, cache: ResponseCache | None = None) -> None:
        self.plane = plane
        self.cache = cache
        self.models: dict[tuple[str, str], _Model] = {}
        self.refused: dict[str, int] = {}
        self._process = psutil.Process()
        self._started = time.time()

    def after(self, request: Request, outcome: Response | ServeError, times: Times) -> None:
        """Count one request that is over."""
        if isinstance(outcome, ServeError):
            self._failed(request, outcome.status)
            return
        key = (outcome.model, outcome.version)
        model = self.models.get(key)
        if model is None:
            model = self.models[key] = _Model()
        model.request.add(times.answered - times.arrived)
        if times.started:  # a kept answer was never computed
            model.queue.add(times.started - times.queued)
            model.compute.add(times.finished - times.started)
            model.batch.add(times.batch_size)

    def _failed(self, request: Request, status: Status) -> None:
        # A name that no model has must not become a label: clients could fill memory with them.
        model = self.models.get((request.model, request.version))
        if model is None and not request.version:
            found = [key for key in self.models if key[0] == request.model]
            model = self.models[max(found, key=_newest)] if found else None
        if model is None or status is Status.NOT_FOUND:
            self.refuse(status)
        else:
            model.failures[_REASONS.get(status, "OTHER")] += 1

    def refuse(self, status: Status) -> None:
        """Count a request that was refused before any model saw it."""
        name = str(status.value[0])
        self.refused[name] = self.refused.get(name, 0) + 1

    def forget(self, model: str, versions: Iterable[str]) -> None:
        """Drop what was counted for versions that are gone."""
        for version in versions:
            self.models.pop((model, version), None)

    def text(self) -> str:
        """All of it in the Prometheus text format."""
        rows = self.plane.statistics().get("model_stats", []) if self.plane else []
        return exposition.text(
            [*self._triton(rows), *self._histograms(), *self._cached(), *self._server()]
        )

    def state(self) -> dict[str, Any]:
        """Per version what the page draws: requests, rows, failures and percentiles in seconds."""
        rows = self.plane.statistics().get("model_stats", []) if self.plane else []
        waiting = self.plane.waiting() if self.plane else {}
        found = {}
        for row in rows:
            key = (row["name"], row["version"])
            model = self.models.get(key) or _Model()
            found["/".join(key)] = {
                "name": row["name"],
                "version": row["version"],
                "success": _stat(row, "success", "count"),
                "failure": _stat(row, "fail", "count"),
                "rows": int(row.get("inference_count", 0)),
                "runs": int(row.get("execution_count", 0)),
                "pending": waiting.get(key, 0),
                "latency": model.request.counts,
            }
        return {"models": found, "bounds": BOUNDS}

    def memory(self) -> int:
        """Resident bytes of this process."""
        return int(self._process.memory_info().rss)

    def _triton(self, rows: list[Mapping[str, Any]]) -> list[Family]:
        families = {
            name: Family(f"nv_inference_{name}", "counter", help) for name, help, *_ in _COUNTERS
        }
        pending = Family(
            "nv_inference_pending_request_count", "gauge", "Requests that wait for an engine."
        )
        failures = Family(
            "nv_inference_request_failure", "counter", "Requests that failed, by reason."
        )
        waiting = self.plane.waiting() if self.plane else {}
        for row in rows:
            labels = {"model": row["name"], "version": row["version"]}
            for name, _, phase, what in _COUNTERS:
                value = row.get(what, 0) if not phase else _stat(row, phase, what)
                value = int(value) // 1000 if what == "ns" else int(value)
                families[name].add(value, **labels)
            pending.add(waiting.get((row["name"], row["version"]), 0), **labels)
            model = self.models.get((row["name"], row["version"])) or _Model()
            for reason, count in model.failures.items():
                failures.add(count, model=row["name"], version=row["version"], reason=reason)
        return [*families.values(), failures, pending]

    def _histograms(self) -> list[Family]:
        families = [
            Family(f"redline_{name}_seconds", "histogram", help)
            for name, help in zip(_SECONDS, _HELPS, strict=True)
        ]
        batch = Family(
            "redline_batch_rows", "histogram", "Rows of the batch that a request was in."
        )
        for (name, version), model in self.models.items():
            labels = {"model": name, "version": version}
            for family, found in zip(
                families, (model.request, model.queue, model.compute), strict=True
            ):
                family.add_histogram(found.bounds, found.counts, found.total, **labels)
            batch.add_histogram(_BATCHES, model.batch.counts, model.batch.total, **labels)
        return [*families, batch]

    def _cached(self) -> list[Family]:
        if self.cache is None:
            return []
        hits = Family("nv_cache_num_hits_per_model", "counter", "Answers that were kept.")
        misses = Family("nv_cache_num_misses_per_model", "counter", "Answers that were computed.")
        hit = Family("nv_cache_hit_duration_per_model", "counter", "Time of hits, in us.")
        miss = Family("nv_cache_miss_duration_per_model", "counter", "Time of lost lookups, in us.")
        for model, counts in self.cache.counts.items():
            hits.add(counts.hits, model=model)
            misses.add(counts.misses, model=model)
            hit.add(int(counts.hit_seconds * 1e6), model=model)
            miss.add(int(counts.miss_seconds * 1e6), model=model)
        size = Family("redline_cache_bytes", "gauge", "Bytes of kept answers.")
        size.add(self.cache.bytes)
        entries = Family("redline_cache_entries", "gauge", "Kept answers.")
        entries.add(len(self.cache))
        evicted = Family("redline_cache_evictions", "counter", "Answers dropped for room.")
        evicted.add(self.cache.evictions)
        return [hits, misses, hit, miss, size, entries, evicted]

    def _server(self) -> list[Family]:
        refused = Family(
            "redline_requests_refused", "counter", "Requests that no model saw, by HTTP status."
        )
        for status, count in sorted(self.refused.items()):
            refused.add(count, status=status)
        with self._process.oneshot():
            memory = self._process.memory_info().rss
            cpu = self._process.cpu_times()
            files = self._process.num_fds()
            threads = self._process.num_threads()
        values: tuple[tuple[str, _Kind, str, float], ...] = (
            ("redline_ready", "gauge", "1 while requests are taken.", self._ready()),
            ("process_resident_memory_bytes", "gauge", "Resident memory.", memory),
            ("process_cpu_seconds_total", "counter", "CPU time.", cpu.user + cpu.system),
            ("process_open_fds", "gauge", "Open files and connections.", files),
            ("process_threads", "gauge", "Threads.", threads),
            ("process_start_time_seconds", "gauge", "When it started.", self._started),
            ("nv_cpu_memory_total_bytes", "gauge", "Memory of the machine.", _memory().total),
            ("nv_cpu_memory_used_bytes", "gauge", "Of that, what is in use.", _memory().used),
        )
        families = [refused]
        for name, kind, help, value in values:
            family = Family(name, kind, help)
            family.add(value)
            families.append(family)
        return families

    def _ready(self) -> int:
        return int(self.plane.ready()) if self.plane else 0


# (name after nv_inference_, help, phase of the statistics or "", its field)
_COUNTERS = (
    ("request_success", "Requests that were answered.", "success", "count"),
    ("count", "Rows that were computed; a request with a batch of n counts n.", "",
     "inference_count"),
    ("exec_count", "Runs of the engine.", "", "execution_count"),
    ("request_duration_us", "Time from arrival to answer, kept answers too.", "success", "ns"),
    ("queue_duration_us", "Time spent waiting.", "queue", "ns"),
    ("compute_input_duration_us", "Time spent putting batches together.", "compute_input", "ns"),
    ("compute_infer_duration_us", "Time spent in engines.", "compute_infer", "ns"),
    ("compute_output_duration_us", "Time spent taking batches apart.", "compute_output", "ns"),
)  # fmt: skip
_HELPS = (
    "From arrival to answer.",
    "From the queue to the engine.",
    "In the engine, with its batch put together and taken apart.",
)


def _stat(row: Mapping[str, Any], phase: str, what: str) -> int:
    return int(row.get("inference_stats", {}).get(phase, {}).get(what, 0))


def _newest(key: tuple[str, str]) -> tuple[int, str]:
    return (int(key[1]) if key[1].isdecimal() else -1, key[1])


def _memory() -> Any:
    return psutil.virtual_memory()
