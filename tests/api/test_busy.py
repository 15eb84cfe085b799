import time

import psutil
import pytest

from redline import contest, machine


@pytest.fixture(autouse=True)
def _wait(monkeypatch):
    monkeypatch.setenv("REDLINE_QUIET", "1")


@pytest.fixture
def loads(monkeypatch):
    """Two cores for us, of four; the readings that psutil gives of all four in turn."""

    def plan(*readings):
        left = iter(readings)
        monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: next(left))

    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: [1, 2])
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    return plan


def wait(seconds, said=None):
    return contest._wait_for_quiet(time.monotonic() + seconds, (said or []).append)


def test_the_race_begins_at_once_on_a_quiet_machine(loads):
    loads([0.0, 5.0, 5.0, 0.0])
    assert wait(60) == 0.0


def test_what_others_do_on_cores_that_are_not_ours_is_no_matter(loads):
    loads([100.0, 5.0, 5.0, 100.0])
    assert wait(60) == 0.0


def test_the_race_waits_until_others_are_done(loads):
    loads([0, 90.0, 90.0, 0], [0, 90.0, 0.0, 0], [0, 3.0, 0.0, 0])
    said = ["so far"]
    assert wait(60, said) == 0.0
    assert len(said) == 3


def test_a_machine_that_stays_busy_is_reported(loads):
    loads([0, 100.0, 50.0, 0])
    assert wait(-1) == 1.5


def test_a_quota_leaves_room_for_others(loads, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 1)
    loads([0, 90.0, 10.0, 0])
    assert wait(60) == 0.0
