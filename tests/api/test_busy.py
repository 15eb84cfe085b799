import time

import psutil
import pytest

from redline import contest


@pytest.fixture(autouse=True)
def _wait(monkeypatch):
    monkeypatch.setenv("REDLINE_QUIET", "1")


@pytest.mark.parametrize(("loads", "left"), [([5.0], 0.0), ([90.0, 90.0, 3.0], 0.0)])
def test_the_race_waits_for_a_quiet_machine(monkeypatch, loads, left):
    readings, said = iter(loads), []
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: next(readings))
    assert contest._wait_for_quiet(time.monotonic() + 60, said.append) == left
    assert len(said) == len(loads) - 1


def test_a_machine_that_stays_busy_is_reported(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 50.0)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    assert contest._wait_for_quiet(time.monotonic() - 1, lambda what: None) == 2.0
