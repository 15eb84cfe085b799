import numpy as np

from redline.measure.record import Record, Timing
from redline.search.choose import Entry, choose, explain_losses
from redline.search.goal import Goal


def entry(name, seconds, rank, spread=0.0, outcome="ok", size=None, memory=None, seed=0):
    noise = np.random.default_rng(seed).normal(0, spread, 15) if spread else np.zeros(15)
    rounds = tuple((seconds * np.exp(noise)).tolist())
    timing = Timing(seconds, seconds * (1 - spread), seconds * (1 + spread), seconds, rounds)
    record = Record(name, name, outcome, timing=timing, size=size, peak_memory=memory)
    return Entry(record, rank, rounds)


def test_the_fastest_wins():
    field = [entry("eager", 2.0, 0), entry("fast", 1.0, 9)]
    assert choose(field, Goal()).record.id == "fast"


def test_a_tie_goes_to_the_simplest():
    field = [
        entry("eager", 1.0, 0, spread=0.1, seed=1),
        entry("fancy", 0.995, 9, spread=0.1, seed=2),
    ]
    winner = choose(field, Goal())
    assert winner.record.id == "eager"
    assert "a tie" in explain_losses(field, winner, Goal())["fancy"]


def test_a_gap_beyond_the_noise_is_no_tie():
    field = [
        entry("eager", 1.0, 0, spread=0.02, seed=1),
        entry("fancy", 0.8, 9, spread=0.02, seed=2),
    ]
    assert choose(field, Goal()).record.id == "fancy"


def test_a_tie_with_a_wavering_best_does_not_excuse_who_is_far_behind_another():
    wavering = np.array([1.0, 20.0] * 8)
    best = Entry(Record("best", "best", "ok", timing=Timing(1, 1, 20, 20, ())), 9, tuple(wavering))
    tied = Entry(Record("tied", "tied", "ok", timing=Timing(20, 1, 20, 20, ())), 0, (20.0,) * 16)
    steady = Entry(Record("steady", "steady", "ok", timing=Timing(2, 2, 2, 2, ())), 5, (2.0,) * 16)
    assert choose([best, tied], Goal()).record.id == "tied"
    assert choose([best, tied, steady], Goal()).record.id == "steady"


def test_only_the_verified_can_win():
    field = [entry("slow", 2.0, 0), entry("wrong", 0.1, 1, outcome="wrong result")]
    assert choose(field, Goal()).record.id == "slow"
    assert choose([field[1]], Goal()) is None


def test_constraints_come_before_speed():
    field = [entry("fast", 1.0, 0, size=90), entry("small", 2.0, 1, size=30)]
    goal = Goal(max_size=40)
    winner = choose(field, goal)
    assert winner.record.id == "small"
    assert "max_size" in explain_losses(field, winner, goal)["fast"]


def test_an_unreachable_goal_returns_the_nearest():
    field = [entry("a", 1.0, 0, size=90), entry("b", 2.0, 1, size=60)]
    goal = Goal(max_size=40)
    assert choose(field, goal).record.id == "b"
    assert "missed by 50 %" in goal.verdict(field[1].record)


def test_memory_and_size_can_be_the_objective():
    field = [entry("a", 1.0, 0, size=90, memory=10), entry("b", 2.0, 1, size=60, memory=20)]
    assert choose(field, Goal(minimize="size")).record.id == "b"
    assert choose(field, Goal(minimize="memory")).record.id == "a"


def test_someone_who_left_before_the_final_is_compared_by_intervals():
    gone = Entry(entry("gone", 5.0, 0).record, 0, ())
    field = [gone, entry("fast", 1.0, 9)]
    winner = choose(field, Goal())
    assert winner.record.id == "fast"
    assert "5.00×" in explain_losses(field, winner, Goal())["gone"]


def test_someone_who_left_before_the_final_does_not_win_by_a_wide_interval():
    """Four turns in a noisy minute: 0.9 to 2.1 s; the finalist took 0.8 to 1.3 s."""
    few, many = (0.9, 1.4, 1.6, 2.1), (0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
    gone = Entry(Record("gone", "gone", "ok", timing=Timing(1.5, 0.9, 2.1, 2.1, few)), 0, ())
    fast = Entry(Record("fast", "fast", "ok", timing=Timing(1.05, 0.8, 1.3, 1.3, many)), 9, many)
    winner = choose([gone, fast], Goal())
    assert winner.record.id == "fast"
    assert "left before the final" in explain_losses([gone, fast], winner, Goal())["gone"]
    slow = Entry(entry("eager", 5.0, 1).record, 1, (5.0,) * 6)  # the baseline always stays
    assert choose([gone, slow], Goal()).record.id == "gone"
