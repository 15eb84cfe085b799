"""/metrics: Triton's names, valid text, true counts, and no label that a client made up."""

from __future__ import annotations

from typing import Any

import pytest
from ops_samples import Marks, QuietPlane, statistics  # type: ignore[import-not-found]
from prometheus_client.parser import text_string_to_metric_families

from redline.serve import exposition
from redline.serve.cache import ResponseCache
from redline.serve.exposition import Family
from redline.serve.messages import Request, Response, ServeError, Status
from redline.serve.metrics import BOUNDS, Histogram, Metrics

EVIL = 'net"} 1\nforged{model="x\\'


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            # The parser gives counters the suffix of OpenMetrics; Triton's names have none.
            name = (
                sample.name if "process_cpu" in sample.name else sample.name.removesuffix("_total")
            )
            key = (name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


def done(metrics: Metrics, model: str = "net", took: float = 0.003) -> None:
    marks = Marks(1.0, 1.0, 1.0 + took / 3, 1.0 + took / 2, 1.0 + took, batch_size=4)
    metrics.after(Request(model, "", {}), Response(model, "1", {}), marks)


def test_counts_are_true_and_valid_text() -> None:
    metrics = Metrics(QuietPlane([statistics("net", success=7), statistics(EVIL)]))
    for _ in range(7):
        done(metrics)
    text = metrics.text()
    net = {"model": "net", "version": "1"}
    assert value(text, "nv_inference_request_success", **net) == 7
    assert value(text, "nv_inference_count", **net) == 14
    assert value(text, "nv_inference_exec_count", **net) == 7
    for name in ("request", "queue", "compute_input", "compute_infer", "compute_output"):
        assert value(text, f"nv_inference_{name}_duration_us", **net) == 35_000
    assert value(text, "nv_inference_pending_request_count", **net) == 3
    assert value(text, "redline_request_seconds_count", **net) == 7
    assert value(text, "redline_request_seconds_sum", **net) == pytest.approx(0.021)
    assert value(text, "redline_request_seconds_bucket", **net, le="0.0025") == 0
    assert value(text, "redline_request_seconds_bucket", **net, le="0.005") == 7
    assert value(text, "redline_batch_rows_bucket", **net, le="4") == 7
    assert value(text, "process_resident_memory_bytes") > 1e6
    assert value(text, "redline_ready") == 1
    assert value(text, "nv_inference_request_success", model=EVIL, version="1") == 0
    assert not [name for name, _ in samples(text) if name.startswith("forged")]


def test_failures_by_reason() -> None:
    metrics = Metrics(QuietPlane([statistics("net")]))
    done(metrics)
    for status in (Status.UNAVAILABLE, Status.DEADLINE, Status.CANCELLED, Status.INTERNAL):
        metrics.after(Request("net", "", {}), ServeError(status, "x"), Marks())
    metrics.after(Request("net", "1", {}), ServeError(Status.INVALID, "x"), Marks())
    for reason, count in {"REJECTED": 2, "CANCELED": 1, "BACKEND": 1, "OTHER": 1}.items():
        labels = {"model": "net", "version": "1", "reason": reason}
        assert value(metrics.text(), "nv_inference_request_failure", **labels) == count


def test_made_up_names_make_no_labels() -> None:
    metrics = Metrics(QuietPlane())
    for number in range(1000):
        error = ServeError(Status.NOT_FOUND, "unknown")
        metrics.after(Request(f"made-up-{number}", "", {}), error, Marks())
    assert "made-up" not in metrics.text()
    assert len(metrics.models) == 0
    assert value(metrics.text(), "redline_requests_refused", status="404") == 1000


def test_a_kept_answer_counts_as_a_request_and_not_as_a_run() -> None:
    metrics = Metrics(QuietPlane(), ResponseCache(1))
    metrics.after(Request("net", "", {}), Response("net", "1", {}), Marks(1.0, 1.0, 0, 0, 1.001))
    text = metrics.text()
    assert value(text, "redline_request_seconds_count", model="net", version="1") == 1
    assert value(text, "redline_compute_seconds_count", model="net", version="1") == 0
    assert value(text, "redline_cache_bytes") == 0


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_quantile_is_within_its_bucket(share: float) -> None:
    values = sorted((number + 1) ** 2 * 1e-5 for number in range(300))
    found = Histogram(BOUNDS)
    for one in values:
        found.add(one)
    true = values[min(len(values) - 1, int(share * len(values)))]
    low = max([bound for bound in (0.0, *BOUNDS) if bound <= true * (1 - 1e-9)], default=0.0)
    high = min(bound for bound in BOUNDS if bound >= true)
    assert low * 0.4 <= found.quantile(share) <= high
    assert Histogram(BOUNDS).quantile(share) == 0.0


def test_texts_of_workers_add_up() -> None:
    workers = []
    for number in (2, 3):
        metrics = Metrics(QuietPlane([statistics("net", success=number), statistics(f"m{number}")]))
        for _ in range(number):
            done(metrics)
        workers.append(metrics.text())
    text = exposition.merge(workers)
    net = {"model": "net", "version": "1"}
    assert value(text, "nv_inference_request_success", **net) == 5
    assert value(text, "redline_request_seconds_bucket", **net, le="+Inf") == 5
    assert value(text, "nv_inference_count", model="m3", version="1") == 0
    memory = [value(one, "process_resident_memory_bytes") for one in workers]
    assert value(text, "process_resident_memory_bytes") == sum(memory)
    total = value(workers[0], "nv_cpu_memory_total_bytes")
    assert value(text, "nv_cpu_memory_total_bytes") == total
    again = exposition.merge([text])
    assert samples(again) == samples(text)
    assert exposition.merge([]) == "\n"


@pytest.mark.parametrize("number", [0, 1, 0.1, 1e-9, 1e20, 123456789012, float("inf")])
def test_numbers_come_back(number: float) -> None:
    text = exposition.text([Family("x", "gauge", "X.", [("", {}, number)])])
    assert samples(text)["x", frozenset()] == number


def rows_of(state: dict[str, Any]) -> dict[str, Any]:
    return next(iter(state["models"].values()))


def test_the_pages_state_has_the_same_counts() -> None:
    metrics = Metrics(QuietPlane([statistics("net", success=2)]))
    done(metrics)
    done(metrics, took=100.0)
    row = rows_of(metrics.state())
    assert (row["success"], row["rows"], row["runs"], row["pending"]) == (2, 4, 2, 3)
    assert sum(row["latency"]) == 2
    assert row["latency"][-1] == 1
