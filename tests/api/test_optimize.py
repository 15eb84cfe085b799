import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import redline
from redline.backends.base import Candidate
from redline.backends.eager import EagerBackend
from redline.errors import (
    GoalError,
    InputError,
    ModelError,
    SaveError,
    SignatureError,
    UnknownNameError,
)

QUICK = ["eager", "onnxruntime"]


def row(engine, word):
    return next(record for record in engine.report.records if word in record.id)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """One engine for the tests that only look at it."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(288, 10),
    ]
    net = torch.nn.Sequential(*layers).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDLINE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("REDLINE_CONFIG_DIR", str(tmp_path_factory.mktemp("config")))
        engine = redline.optimize(net, torch.randn(1, 3, 8, 8), backends=QUICK, budget="40s")
        engine.net = net
        yield engine


def test_the_engine_answers_like_the_model_and_in_kind(engine):
    x = torch.randn(1, 3, 8, 8)
    y = engine(x)
    assert isinstance(y, torch.Tensor)
    torch.testing.assert_close(y, engine.net(x).detach(), rtol=1e-4, atol=1e-5)
    z = engine(x.numpy())
    assert isinstance(z, np.ndarray)
    np.testing.assert_allclose(z, y.numpy(), rtol=1e-5, atol=1e-6)


def test_every_candidate_is_a_row_and_one_is_the_winner(engine):
    records = engine.report.records
    assert sum(record.winner for record in records) == 1
    assert {record.backend for record in records} == set(QUICK)
    for record in records:
        assert record.outcome == "ok", record
        assert record.error <= record.tolerance
        assert record.timing.low <= record.timing.median <= record.timing.high
        assert record.peak_memory > 1 << 20
        assert record.winner or record.reason
    assert engine.report.winner.backend == engine.backend


def test_wrong_input_to_the_engine_is_refused_by_name(engine):
    with pytest.raises(SignatureError, match="float64"):
        engine(np.zeros((1, 3, 8, 8)))
    with pytest.raises(SignatureError, match=r"\(1, 3, 9, 8\)"):
        engine(np.zeros((1, 3, 9, 8), np.float32))


def test_save_and_load_in_a_fresh_process_without_torch(engine, tmp_path):
    path = engine.save(tmp_path / "net.redline")
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np, redline\n"
        f"engine = redline.load({str(path)!r})\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, engine(np.load({str(tmp_path / 'x.npy')!r})))\n"
        "print(engine.report.winner.id)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == engine.report.winner.id
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), engine(x), rtol=1e-4, atol=1e-5)


def test_saving_where_nothing_can_be_written_says_so(engine, tmp_path):
    with pytest.raises(SaveError):
        engine.save(tmp_path / "no such folder" / "net.redline")


@pytest.mark.parametrize(
    ("plan", "outcomes"),
    [
        ("Crash", {"crashed"}),
        ("NotANumber", {"not a number"}),
        ("Wrong", {"wrong result"}),
        ("Fails", {"failed"}),
    ],
)
def test_a_planted_failure_is_a_row_with_its_reason(plant, net, image, plan, outcomes):
    plant(plan)
    engine = redline.optimize(net, image, backends=["eager", "null"], budget="30s")
    rows = [record for record in engine.report.records if record.backend == "null"]
    assert {record.outcome for record in rows} == outcomes
    assert all(record.reason for record in rows)
    assert engine.backend == "eager"


def test_a_wrong_result_shows_its_error(plant, net, image):
    plant("Wrong")
    engine = redline.optimize(net, image, backends=["eager", "null"], budget="30s")
    wrong = row(engine, "null")
    assert wrong.error > wrong.tolerance
    assert "above the allowed" in wrong.reason


def test_a_candidate_without_end_is_out_of_memory(plant, net, image, monkeypatch):
    monkeypatch.setenv("REDLINE_MEMORY_LIMIT", str(3 << 30))
    plant("Memory")
    engine = redline.optimize(net, image, backends=["eager", "null"], budget="30s")
    assert row(engine, "null").outcome == "out of memory"


def test_a_hang_costs_no_more_than_the_budget(plant, net, image):
    plant("Hang")
    start = time.monotonic()
    engine = redline.optimize(net, image, backends=["eager", "null"], budget="12s")
    assert {record.outcome for record in engine.report.records if record.backend == "null"} <= {
        "timed out",
        "skipped",
    }
    assert time.monotonic() - start < 60, "a hang must not hold up the search for ever"
    assert engine.backend == "eager"


def test_the_second_time_comes_from_the_cache(net, image):
    first = redline.optimize(net, image, backends=QUICK, budget="40s")
    second = redline.optimize(net, image, backends=QUICK, budget="40s")
    assert not any(record.from_cache for record in first.report.records)
    assert all(record.from_cache for record in second.report.records)
    assert second.report.winner.id == first.report.winner.id
    assert second.report.study.seconds < first.report.study.seconds


SEEN = []


class Probe(torch.nn.Module):
    """Notes the memory format and the thread count that it is run with."""

    def forward(self, x):
        last = x.is_contiguous(memory_format=torch.channels_last)
        SEEN.append((last, torch.get_num_threads()))
        return x * 2


def test_an_in_framework_winner_runs_as_it_was_timed(monkeypatch):
    setting = {"memory_format": "channels_last", "threads": 1}
    monkeypatch.setattr(EagerBackend, "candidates", lambda *_: [Candidate("eager", setting)])
    x, before = torch.randn(1, 3, 4, 4), torch.get_num_threads()
    engine = redline.optimize(Probe().eval(), x, backends=["eager"], budget="20s")
    SEEN.clear()
    torch.testing.assert_close(engine(x), x * 2)
    np.testing.assert_array_equal(engine(x.numpy()), x.numpy() * 2)
    assert SEEN == [(True, 1)] * 2
    assert torch.get_num_threads() == before, "the caller's own count is put back"
    with pytest.raises(SignatureError, match="float64"):
        engine(x.double())


def test_other_weights_are_another_model_for_the_cache(net, image):
    redline.optimize(net, image, backends=["onnxruntime"], budget="40s")
    with torch.no_grad():
        net[0].weight.mul_(1.5)
    again = redline.optimize(net, image, backends=["onnxruntime"], budget="40s")
    assert not any(record.from_cache for record in again.report.records)


def test_an_unreachable_goal_returns_the_nearest_and_says_by_how_much(net, image):
    goal = redline.Goal(max_latency="1ns")
    engine = redline.optimize(net, image, backends=QUICK, goal=goal, budget="40s")
    assert "missed by" in engine.report.study.verdict


def test_an_evaluation_that_drops_too_far_is_refused(net, image):
    scores = iter([0.9, 0.1, 0.9])
    engine = redline.optimize(
        net,
        image,
        backends=QUICK,
        goal=redline.Goal(max_drop=0.01),
        evaluate=lambda call: (call(image), next(scores))[1],
        budget="40s",
    )
    struck = [record for record in engine.report.records if "max_drop" in record.reason]
    assert len(struck) == 1
    assert engine.report.winner.accuracy == 0.9


def test_dynamic_batch(net):
    engine = redline.optimize(
        net,
        torch.randn(4, 3, 8, 8),
        dynamic={"batch": (1, 4, 16)},
        backends=["onnxruntime"],
        budget="40s",
    )
    for size in (1, 3, 16):
        x = torch.randn(size, 3, 8, 8)
        torch.testing.assert_close(engine(x), net(x).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(SignatureError):
        engine(torch.randn(17, 3, 8, 8))


def test_nothing_exportable_still_gets_an_engine_with_the_reason(image):
    class Branch(torch.nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x + 1
            return x - 1

    engine = redline.optimize(Branch().eval(), image, backends=QUICK, budget="30s")
    assert engine.backend == "eager"
    torch.testing.assert_close(engine(image), Branch()(image))
    assert any(
        "torch.where" in hint or "torch.cond" in hint for *_, hint in engine.report.study.notes
    )
    assert row(engine, "onnxruntime").outcome == "refused"
    with pytest.raises(SaveError, match="eager"):
        engine.save("never.redline")


@pytest.mark.parametrize("budget", [0, "0s", -1, "soon"])
def test_an_impossible_budget_is_refused(net, image, budget):
    with pytest.raises(GoalError, match="budget"):
        redline.optimize(net, image, budget=budget)


def test_unknown_names_say_did_you_mean(net, image):
    with pytest.raises(UnknownNameError, match="did you mean 'onnxruntime'"):
        redline.optimize(net, image, backends=["onxruntime"])
    with pytest.raises(UnknownNameError, match="did you mean 'int8'"):
        redline.optimize(net, image, precisions=["int9"])


def test_a_model_in_training_mode_is_refused_with_the_fix(net, image):
    with pytest.raises(ModelError, match="eval"):
        redline.optimize(net.train(), image, backends=["eager"])


def test_a_goal_for_a_batch_needs_that_dim(net, image):
    with pytest.raises(GoalError, match="dynamic"):
        redline.optimize(net, image, goal=redline.Goal(batch=8))


def test_something_else_is_not_a_model():
    with pytest.raises(InputError):
        redline.optimize(object(), torch.zeros(1))
