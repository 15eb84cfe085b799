import pytest

from redline.errors import GoalError, UnknownNameError
from redline.measure.record import Record, Timing
from redline.search.goal import Goal, quantity


def record(name="a", median=0.01, memory=100e6, size=50e6, throughput=100.0):
    timing = Timing(median, median, median, median, (median,))
    return Record(
        name,
        name,
        "ok",
        timing=timing,
        peak_memory=int(memory),
        size=int(size),
        throughput=throughput,
    )


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("5ms", "time", 0.005),
        ("90s", "time", 90),
        ("3m", "time", 180),
        ("250us", "time", 250e-6),
        (2, "time", 2.0),
        ("40MB", "bytes", 40e6),
        ("64 MiB", "bytes", 64 * 2**20),
        ("1e-3s", "time", 0.001),
    ],
)
def test_quantities_are_read(text, kind, value):
    assert quantity(text, kind, "x") == pytest.approx(value)


@pytest.mark.parametrize(
    "text", ["", "fast", "5 parsecs", "-3s", "0s", 0, -1, float("inf"), "1.2.3s", True]
)
def test_what_is_no_quantity_is_refused_with_an_example(text):
    with pytest.raises(GoalError, match=r"budget is .*\n.*hint: .*90s"):
        quantity(text, "time", "budget")


def test_unknown_objective_says_did_you_mean():
    with pytest.raises(UnknownNameError, match="did you mean 'latency'"):
        Goal(minimize="latncy")


@pytest.mark.parametrize("bad", [{"max_drop": 1.5}, {"max_drop": -0.1}, {"batch": 0}])
def test_impossible_goals_are_refused(bad):
    with pytest.raises(GoalError):
        Goal(**bad)


def test_a_missed_goal_says_by_how_much():
    verdict = Goal(max_latency="5ms", max_size="100MB").verdict(record(median=0.0075))
    assert "max_latency 5 ms is missed by 50 %" in verdict
    assert "max_size" not in verdict


def test_a_met_goal_is_met():
    assert Goal(max_latency="20ms").verdict(record()) == "met"


def test_throughput_wants_more():
    goal = Goal(minimize="throughput")
    assert goal.cost(record(throughput=200.0)) < goal.cost(record(throughput=100.0))
    assert str(goal).startswith("maximize throughput")
