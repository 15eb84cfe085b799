import time

import numpy as np
import pytest

from redline.errors import CrashedError
from redline.search.race import FINALISTS, Lane, race


class Runner:
    """A contestant without a clock: it says how long its calls took."""

    def __init__(self, name, seconds, noise=0.002, seed=0, dies_at=None):
        self.name, self.seconds, self.noise, self.dies_at = name, seconds, noise, dies_at
        self.turns = []
        self.rng = np.random.default_rng(seed)

    def turn(self, log):
        def run(seconds):
            log.append(self.name)
            self.turns.append(seconds)
            if self.dies_at is not None and len(self.turns) >= self.dies_at:
                raise CrashedError("fell over")
            return (self.seconds * np.exp(self.rng.normal(0, self.noise, 5))).tolist()

        return run


@pytest.fixture(autouse=True)
def no_settling(monkeypatch):
    monkeypatch.setattr("redline.search.race._SETTLE", 0.0)


def run(runners, deadline=None, **options):
    log = []
    lanes = [Lane(one.name, one.turn(log)) for one in runners]
    finalists = race(lanes, deadline or time.monotonic() + 60, **options)
    return lanes, finalists, log


def test_the_fastest_comes_first_and_turns_go_there_and_back():
    _, finalists, log = run([Runner("a", 2.0), Runner("b", 1.0)])
    assert [lane.id for lane in finalists] == ["b", "a"]
    assert log[:4] == ["a", "b", "b", "a"]


def test_many_are_halved_and_the_baseline_stays():
    runners = [Runner(f"c{i}", 1.0 + 0.01 * i, seed=i) for i in range(12)] + [Runner("eager", 50.0)]
    lanes, finalists, _ = run(runners, keep=["eager"])
    names = {lane.id for lane in finalists}
    assert "c0" in names
    assert "eager" in names
    assert len(names) <= FINALISTS + 1
    assert all(lane.blocks for lane in lanes), "everybody is timed at least once"


def test_the_hopeless_leave_after_one_round():
    slow = Runner("slow", 100.0)
    run([Runner("fast", 1.0), slow])
    assert len(slow.turns) == 2


def test_a_contestant_that_dies_leaves_with_its_error():
    lanes, finalists, _ = run([Runner("good", 1.0), Runner("bad", 0.5, dies_at=5)])
    assert [lane.id for lane in finalists] == ["good"]
    assert isinstance(lanes[1].failure, CrashedError)


def test_past_the_deadline_one_round_is_still_run():
    _, finalists, log = run([Runner("a", 1.0), Runner("b", 2.0)], deadline=time.monotonic() - 10)
    assert finalists[0].id == "a"
    assert finalists[0].rounds
    assert len(log) == 8, "one round to sort, one in the final"


def test_a_clear_leader_ends_the_race_sooner_than_a_close_one():
    _, _, clear = run([Runner("a", 1.0, 0.001), Runner("b", 2.0, 0.001)])
    _, _, close = run([Runner("a", 1.0, 0.2), Runner("b", 1.001, 0.2, seed=5)])
    assert len(clear) < len(close)


def test_rounds_of_finalists_line_up():
    _, finalists, _ = run([Runner("a", 1.0), Runner("b", 1.1, seed=1), Runner("c", 1.2, seed=2)])
    assert len({len(lane.rounds) for lane in finalists}) == 1


def test_nobody_is_no_error():
    assert race([], time.monotonic() + 1) == []
