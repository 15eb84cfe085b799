"""Whether a change is kept, how far a batch grows, which learning rate: pure decisions."""

import time

import pytest

from redline.errors import OutOfMemoryError, RunError
from redline.search.race import Lane
from redline.train.tuning.batch import climb
from redline.train.tuning.bounds import Peaks, Work, judge
from redline.train.tuning.decide import decide
from redline.train.tuning.rates import combine, suggest


def lane(name, *rounds, failure=None):
    blocks = [[one] for one in rounds]
    return Lane(name, lambda seconds: [1.0], blocks, list(rounds), failure)


NOW = (1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.0)


def scaled(factor, noise=0.0):
    return [one * factor + noise * (-1) ** place for place, one in enumerate(NOW)]


def outcome(*rivals, finalists=None):
    now = lane("now", *NOW)
    kept, verdicts = decide(now, rivals, [now, *rivals] if finalists is None else finalists)
    return kept, {name: one.outcome for name, one in verdicts.items()}


def test_a_clear_gain_is_kept():
    assert outcome(lane("two", *scaled(0.5))) == ("two", {"two": "kept"})


def test_a_gain_within_noise_is_not_kept():
    assert outcome(lane("noisy", *scaled(0.9, noise=0.4))) == (None, {"noisy": "no gain"})


def test_a_sure_gain_below_two_percent_is_not_worth_a_line():
    assert outcome(lane("tiny", *scaled(0.99))) == (None, {"tiny": "no gain"})


def test_what_is_slower_is_told_as_slower():
    assert outcome(lane("worse", *scaled(1.3))) == (None, {"worse": "slower"})


def test_of_two_that_tie_the_simpler_one_is_kept():
    simple, other = lane("simple", *scaled(0.5, 0.01)), lane("other", *scaled(0.499, -0.01))
    kept, outcomes = outcome(simple, other)
    assert kept == "simple"
    assert outcomes["other"] == "behind"


def test_the_quicker_of_two_is_kept_when_it_is_clearly_so():
    assert outcome(lane("half", *scaled(0.5)), lane("third", *scaled(0.33)))[0] == "third"


def test_a_failure_is_a_row_with_its_reason():
    now, bad = lane("now", *NOW), lane("bad", failure=RunError("no such kernel"))
    kept, verdicts = decide(now, [bad], [now])
    assert kept is None
    assert verdicts["bad"].why == "no such kernel"


def test_a_rival_that_left_before_the_final_is_told_so():
    now, slow = lane("now", *NOW), lane("slow", 5.0)
    assert decide(now, [slow], [now])[1]["slow"].why.startswith("5.")


@pytest.mark.parametrize(
    ("phases", "work", "bound"),
    [
        ({"input": 9, "forward": 1}, Work(1, 1, 1), "input"),
        ({"copy": 9, "forward": 1}, Work(1, 1, 1), "copy"),
        ({"forward": 4, "backward": 6}, Work(100, 1, 1), "compute"),
        ({"forward": 4, "backward": 6}, Work(1, 100, 1), "memory"),
        ({"forward": 4, "backward": 6}, Work(1, 1, 900), "launch"),
        ({"forward": 4, "log": 6}, Work(9, 1, 1), "launch"),
    ],
)
def test_what_bounds_a_step(phases, work, bound):
    found = judge(phases, work, Peaks(flops=1.0, bandwidth=1.0, overhead=0.01))
    assert found.name == bound
    assert sum(found.seconds.values()) == pytest.approx(sum(phases.values()))


def device(rate, holds):
    def measure(size):
        if size > holds:
            raise OutOfMemoryError("no memory left")
        return rate(size)

    return measure


def test_a_batch_grows_until_it_stops_paying():
    size, rates = climb(8, device(lambda n: min(n, 32), 1000), 1000, time.monotonic() + 60)
    assert size == 32
    assert set(rates) == {8, 16, 32, 64}


def test_a_batch_is_bisected_below_out_of_memory_and_only_run_sizes_are_offered():
    size, rates = climb(8, device(float, 100), 10_000, time.monotonic() + 60)
    assert size == 96
    assert rates[128] == 0.0
    assert rates[size] > 0


def test_a_batch_never_grows_beyond_the_data():
    size, rates = climb(8, device(float, 10_000), 20, time.monotonic() + 60)
    assert size == 16
    assert max(rates) == 16


RATES = [10.0 ** (-6 + 0.25 * n) for n in range(28)]


def valley(least):
    return [2.3 if r < least / 100 else 2.3 - 1.8 * min(1, (r / least)) if r < 3 * least else 9.0
            for r in RATES]  # fmt: skip


def test_a_learning_rate_lies_where_the_loss_falls():
    value, why = suggest(RATES, valley(1e-2))
    assert not why
    assert 1e-4 < value <= 3e-2


def test_no_learning_rate_from_a_flat_curve_or_one_that_explodes():
    assert suggest(RATES, [1.0] * 28) == (None, "flat: the loss fell by 0 %")
    assert suggest(RATES, [1.0, float("inf")] + [float("nan")] * 26)[1] == "it diverges at once"
    assert suggest(RATES, [1.0] * 20 + [50.0] * 8)[1] == "it diverges before it falls"


def test_seeds_that_agree_give_confidence_and_one_refusal_refuses():
    assert combine([(1e-3, ""), (1.5e-3, ""), (2e-3, "")]).confidence == "high"
    assert combine([(1e-4, ""), (1e-3, ""), (1e-2, "")]).confidence == "low"
    refused = combine([(1e-3, ""), (None, "flat: the loss fell by 1 %"), (1e-3, "")])
    assert refused.value is None
    assert "1 seeds of 3" in refused.why
