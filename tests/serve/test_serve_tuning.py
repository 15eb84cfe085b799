"""The tuner: a batch wins where it must and loses where it must; arrivals are read as they are."""

import asyncio
import json
import time

import numpy as np
import pytest
import serve_models
from typer.testing import CliRunner

from redline.cli.main import app
from redline.cli.serve_tune import write_config
from redline.errors import InputError
from redline.serve import tuning
from redline.serve.arrivals import Arrivals, bursty, poisson, read_arrivals
from redline.serve.batcher import Queueing
from redline.serve.config import parse_config, read_config
from redline.serve.tuning import Setting, Tried, replay, settings_to_try, tune


def inputs(rows):
    return [np.zeros((rows, 2), np.float32)]


def model(fixed, each):
    """A run that takes so many seconds, and so many more for each row."""

    def run(arrays):
        time.sleep(fixed + each * len(arrays[0]))
        return [arrays[0] + 1]

    return run


def best(run, rate, goal):
    grid = [Setting(1, 1, 0.0), Setting(1, 16, 0.0), Setting(1, 16, 0.05)]
    arrivals = poisson(rate, 0.6)
    return asyncio.run(tune([run], inputs, Queueing(), arrivals, goal, grid)).best


def test_batches_win_where_a_run_costs_the_same_whatever_its_rows():
    """20 ms a run and 200 requests a second: one by one the queue grows without end."""
    found = best(model(0.02, 0.0), 200, 0.4)
    assert found is not None
    assert found.setting.batch == 16


def test_waiting_for_more_loses_where_rows_cost_what_they_cost():
    found = best(model(0.0, 0.002), 20, 0.4)
    assert found is not None
    assert found.setting.delay == 0.0


@pytest.mark.parametrize(
    ("plain", "batch"), [((0.021, 0.024, 0.020), 1), ((0.030, 0.045, 0.031), 4)]
)
def test_the_plainest_wins_what_cannot_be_told_apart(monkeypatch, plain, batch):
    """A batch of 4 has the lower p99 in both; in the second it is lower in every turn."""
    p99 = {Setting(1, 1, 0.0): iter(plain), Setting(1, 4, 0.0): iter((0.019, 0.022, 0.020))}

    async def scripted(runs, inputs, queueing, arrivals, goal, setting):
        return Tried(setting, 0.01, next(p99[setting]), 60.0, 0, False)

    monkeypatch.setattr(tuning, "replay", scripted)
    found = asyncio.run(tune([], inputs, Queueing(), poisson(60, 0.2), 0.4, list(p99))).best
    assert found.setting == Setting(1, batch, 0.0)


def test_without_a_setting_that_reaches_the_goal_there_is_no_best():
    assert best(model(0.03, 0.0), 100, 0.001) is None


def test_latency_counts_from_when_a_request_was_due():
    """Ten at once, 20 ms each, one by one: the last takes all of it, not its own 20 ms."""
    arrivals = Arrivals(np.zeros(10), np.ones(10, np.int64))
    found = asyncio.run(replay([model(0.02, 0)], inputs, Queueing(), arrivals, 9.0, Setting()))
    assert found.p99 >= 0.2
    assert found.failed == 0


def test_a_request_that_the_queue_refuses_is_not_forgotten():
    arrivals = Arrivals(np.zeros(50), np.ones(50, np.int64))
    found = asyncio.run(
        replay([model(0.02, 0)], inputs, Queueing(size=2), arrivals, 9.0, Setting())
    )
    assert found.failed > 0
    assert found.stopped


def test_the_grid_holds_the_largest_request_and_delays_below_half_the_goal():
    grid = settings_to_try(32, 0.005, least=5)
    assert {setting.batch for setting in grid} == {16, 32}
    assert {setting.delay for setting in grid} == {0.0, 5e-4, 2e-3}


def test_bursts_have_the_rate_that_was_asked():
    found = bursty(1000, 20.0)
    assert 0.7e3 < found.rate < 1.4e3
    assert np.mean(np.diff(found.at) == 0) > 0.8


def test_recorded_arrivals_and_the_servers_own_log(tmp_path):
    path = tmp_path / "arrivals.jsonl"
    path.write_text('{"at": 2.5, "rows": 3}\n\n{"at": 2.0}\n')
    found = read_arrivals(path, "m")
    assert found.at.tolist() == [0.0, 0.5]
    assert found.rows.tolist() == [1, 3]
    path.write_text(
        '{"time": "2026-01-01T00:00:01.000+00:00", "model": "m", "ms": 500}\n'
        '{"time": "2026-01-01T00:00:01.000+00:00", "model": "m", "ms": 250}\n'
        '{"time": "2026-01-01T00:00:01.000+00:00", "model": "other", "ms": 1}\n'
        '{"time": "2026-01-01T00:00:01.000+00:00", "message": "ending"}\n'
    )
    assert read_arrivals(path, "m").at == pytest.approx([0.0, 0.25])


@pytest.mark.parametrize(
    "line", ["[]", "{}", '{"at": "x"}', '{"at": 1, "rows": 0}', "nonsense", '{"time": 1}', ""]
)
def test_a_line_that_is_no_arrival_is_an_error(tmp_path, line):
    path = tmp_path / "arrivals.jsonl"
    path.write_text(line + "\n")
    if line == '{"time": 1}':  # a record of a log, of no request
        line = ""
    with pytest.raises(InputError, match=r"no arrival|no request"):
        read_arrivals(path, "m")


def test_what_is_written_is_what_the_server_reads(tmp_path):
    path = write_config(tmp_path, Setting(2, 16, 0.002))
    assert path.name == "config.pbtxt"
    found = parse_config(read_config(tmp_path))
    assert (found.max_batch_size, found.delay, found.instances) == (16, 0.002, 2)
    with pytest.raises(InputError, match="already"):
        write_config(tmp_path, Setting())
    path.unlink()
    (tmp_path / "config.json").write_text('{"dynamic_batching": {"priority_levels": 3}}')
    write_config(tmp_path, Setting(1, 8, 0.0))
    found = parse_config(read_config(tmp_path))
    assert (found.max_batch_size, found.levels, found.instances) == (8, 3, 1)


def test_a_setting_without_batches_keeps_what_a_model_says_of_its_queue(tmp_path):
    queue = {"default_queue_policy": {"max_queue_size": 7}, "priority_levels": 3}
    batches = {"preferred_batch_size": [4], "max_queue_delay_microseconds": 500}
    given = {"dynamic_batching": queue | batches, "max_batch_size": 4, "parameters": {"a": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(given))
    write_config(tmp_path, Setting(2, 1, 0.0))
    written = read_config(tmp_path)
    assert written["dynamic_batching"] == queue
    found = parse_config(written)
    assert (found.max_batch_size, found.queue_size, found.levels) == (0, 7, 3)
    assert (found.instances, found.preferred, found.delay) == (2, (), None)
    assert written["parameters"] == {"a": "b"}


def test_the_command_prints_the_table_as_json_and_writes_only_when_asked(tmp_path):
    serve_models.save(tmp_path / "mlp/1/model.onnx", serve_models.mlp())
    recorded = tmp_path / "arrivals.jsonl"
    recorded.write_text("".join(json.dumps({"at": i * 0.005}) + "\n" for i in range(20)))
    command = ["serve", str(tmp_path), "--tune", "mlp", "--tune-arrivals", str(recorded)]
    command += ["--max-batch", "4", "--tune-p99-ms", "4000", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["best"] in told["tried"]
    assert not (tmp_path / "mlp/config.pbtxt").exists()
    result = CliRunner().invoke(app, [*command, "--tune-write"])
    assert result.exit_code == 0, result.output
    best = json.loads(result.stdout)["best"]
    assert parse_config(read_config(tmp_path / "mlp")).instances == best["instances"]
