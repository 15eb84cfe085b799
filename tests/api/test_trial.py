"""A trial that is ended from another thread, as Ctrl-C does it."""

import time

import pytest

from redline import trial
from redline.backends.base import Candidate
from redline.measure.child import Child


class Stub:
    """What a Bench is asked for before the child answers."""

    cache, cancelled, memory, signature = None, False, None, {}

    def ingredients(self, backend, precision="fp32"):
        return {"module": None}


@pytest.mark.timeout(60)
def test_a_kill_that_meets_a_child_about_to_start_ends_it(monkeypatch):
    """The window between starting a process and knowing it: the kill would find nothing to end."""
    started = []

    def starts_while_killed(memory):
        bench.cancelled = True
        one.kill()
        started.append(Child(memory=memory))
        return started[-1]

    bench = Stub()
    monkeypatch.setattr(trial, "Child", starts_while_killed)
    one = trial.Trial(bench, Candidate("eager", {}, rank=0))
    one.prepare(time.monotonic() + 600)
    assert (one.record.outcome, one.record.reason) == ("skipped", "stopped before it was ready")
    assert one.child is None
    assert started[0]._closed
