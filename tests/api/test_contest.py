"""In which order candidates are tried."""

from __future__ import annotations

from types import SimpleNamespace

from redline import contest
from redline.backends.base import Candidate


def test_nothing_is_left_out_as_a_whole_when_time_runs_out():
    """The first setting of a backend in int8 comes before the second one of any in fp32."""
    order = [
        ("inductor", "fp32", 40),  # the longest, beside the short ones
        ("eager", "fp32", 0),
        ("onnxruntime", "fp32", 10),
        ("native", "fp32", 30),
        ("onnxruntime", "int8", 110),
        ("onnxruntime", "fp32", 12),
        ("native", "fp32", 33),
        ("onnxruntime", "int8", 112),
    ]
    trials = [
        SimpleNamespace(
            backend=SimpleNamespace(name=name),
            candidate=Candidate(name, {}, precision=precision, rank=rank),
        )
        for name, precision, rank in reversed(order)
    ]
    assert contest._order(trials) == trials[::-1]
