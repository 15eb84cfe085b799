"""fit(): what it reaches, that an interruption changes no bit, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import redline
from redline.errors import InputError, RedlineError, RunError, UnknownNameError, UnsafeError
from redline.train import Recipe, checkpoint, fit, load_data, load_weights, search_recipe

pytest.importorskip("accelerate")
QUICK = Recipe(epochs=2, batch_size=128, device="cpu", lr=3e-3)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 10)
    )


def test_digits_are_learned_and_become_an_engine(tmp_path):
    done = fit("mlp", "digits", epochs=25, batch_size=64, device="cpu", seed=1, out=tmp_path / "r")
    assert done.stopped == "epochs"
    assert done.metrics["accuracy"] >= 0.97
    assert len(done.history) == 25
    assert done.score is not None
    assert done.score(done.model) == pytest.approx(done.metrics["accuracy"])
    with torch.no_grad():
        assert done.model(done.example).shape[-1] == 10
    lines = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line.get("kind") == "epoch"] == list(range(1, 26))
    with redline.optimize(done.model, done.example, backends=["eager"], budget=20) as engine:
        got = engine(done.example)
    assert torch.allclose(torch.as_tensor(got), done.model(done.example), atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop", [5, 12, 17])
def test_an_interruption_in_mid_epoch_changes_no_bit(tmp_path, optimizer, stop):
    """12 batches an epoch: the stop lies in the first epoch, at its end, and in the second."""
    recipe = QUICK.changed(optimizer=optimizer, augment=("noise:0.1",), schedule="cosine", clip=1.0)
    straight = fit(network(), "digits", recipe, out=tmp_path / "straight")
    first = fit(network(), "digits", recipe.changed(max_steps=0, checkpoint_every=stop),
                out=tmp_path / "cut", trackers=[_Stop(stop)])  # fmt: skip
    assert first.stopped == "interrupted"
    again = fit(network(), "digits", recipe, out=tmp_path / "cut", resume=True)
    assert again.steps == straight.steps
    assert same(state(again.model), state(straight.model))
    assert [h["train_loss"] for h in again.history] == [h["train_loss"] for h in straight.history]


class _Stop:
    """Presses Ctrl-C when the given checkpoint has been written."""

    def __init__(self, step):
        self.step, self.done = step, False

    def start(self, out, recipe):
        module = sys.modules["redline.train.fit"]
        write, self.module = module.checkpoint.write, module

        def counted(folder, name, weights, kept):
            found = write(folder, name, weights, kept)
            if not self.done:
                self.done = True
                signal.raise_signal(signal.SIGINT)
            return found

        self.old, module.checkpoint.write = write, counted

    def log(self, record):
        pass

    def close(self):
        self.module.checkpoint.write = self.old


def test_a_failed_write_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    weights = {"w": torch.ones(3)}
    checkpoint.write(tmp_path, "best", weights, {"step": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_sync", full)
    with pytest.raises(RedlineError, match="No space left"):
        checkpoint.write(tmp_path, "best", {"w": torch.zeros(3)}, {"step": 2})
    held, told = checkpoint.read(tmp_path / "best")
    assert torch.equal(held["w"], weights["w"])
    assert told == {"step": 1}


def test_only_the_last_checkpoints_and_the_best_stay(tmp_path):
    fit("mlp", "digits", QUICK.changed(epochs=5, keep=2), out=tmp_path / "r")
    names = sorted(path.name for path in (tmp_path / "r" / "checkpoints").iterdir())
    assert "best" in names
    assert len([name for name in names if name.startswith("epoch-")]) == 2


class Evil:
    def __reduce__(self):
        return (os.system, ("true",))


def test_a_pickle_that_runs_code_is_refused_with_its_globals(tmp_path):
    torch.save(network(), tmp_path / "whole.pt")
    with pytest.raises(UnsafeError, match=r"torch\.nn\.modules\.container\.Sequential"):
        load_weights(tmp_path / "whole.pt")
    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UnsafeError, match="system"):
        load_weights(tmp_path / "evil.pt")
    torch.save(network().state_dict(), tmp_path / "state.pt")
    assert same(load_weights(tmp_path / "state.pt"), state(network()))


def test_a_loss_that_is_not_finite_names_the_module(tmp_path):
    net = network()
    with torch.no_grad():
        net[1].weight[0, 0] = float("nan")
    with pytest.raises(RunError, match="loss is nan") as caught:
        fit(net, "digits", QUICK, out=tmp_path / "r")
    assert "1.weight" in caught.value.where


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "expected an nn.Module"),
        ({"data": 3}, "expected a Dataset"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"data": "no/such/images.zip"}, "no such file or folder: no/such/images.zip"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epoch": 3}, "epochs"),
        ({"precision": "fp16"}, "fp16 does not train on a cpu"),
        ({"device": "cuda:1"}, "takes the first GPU"),
        ({"device": "tpu"}, "tpu"),
        ({"optimizer": "adamv"}, "adamw"),
        ({"monitor": "speed"}, "monitor 'speed'"),
    ],
)
def test_bad_choices_are_one_clear_error(tmp_path, change, message):
    given = {"model": "mlp", "data": "digits", "device": "cpu", "epochs": 1} | change
    with pytest.raises((InputError, UnknownNameError), match=message) as caught:
        fit(given.pop("model"), given.pop("data"), out=tmp_path / "r", **given)
    assert isinstance(caught.value, RedlineError)


def test_a_run_is_not_written_over(tmp_path):
    fit("mlp", "digits", QUICK.changed(epochs=1), out=tmp_path / "r")
    with pytest.raises(InputError, match="holds a run already"):
        fit("mlp", "digits", QUICK, out=tmp_path / "r")


def test_early_stopping_ends_with_the_best_weights(tmp_path):
    done = fit("mlp", "digits", QUICK.changed(epochs=60, lr=0.05, early_stop=3), out=tmp_path / "r")
    assert done.stopped == "early_stop"
    best = max(h["metrics"]["accuracy"] for h in done.history)
    assert done.metrics["accuracy"] == pytest.approx(best)
    assert done.history[done.best_epoch - 1]["metrics"]["accuracy"] == pytest.approx(best)


def in_two_processes(tmp_path, calls: str, port: int, **environment: str) -> list[str]:
    """What both ranks tell of a script that trains `done` and then `total`s its weights."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import torch
            from redline.train import Recipe, fit
            out = {str(tmp_path / "r")!r}
            recipe = Recipe(epochs=3, batch_size=64, device="cpu", schedule="constant")
            {calls}
            import torch.distributed as dist
            total = sum(p.double().sum() for p in done.model.parameters())
            sums = [torch.zeros((), dtype=torch.float64) for _ in range(2)]
            dist.all_gather(sums, total)
            assert torch.equal(*sums), sums
            told = f"{{done.steps}} {{done.metrics['accuracy']}} {{total.item():.9f}}"
            open({str(tmp_path)!r} + f"/rank{{dist.get_rank()}}", "w").write(told)
            dist.barrier()
            dist.destroy_process_group()
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    given = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | environment
    told = subprocess.run(
        [*command, f"--master-port={port}", str(script)], capture_output=True, text=True,
        env=given, timeout=110, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr[-2000:]
    return [(tmp_path / f"rank{rank}").read_text() for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    ranks = in_two_processes(tmp_path, 'done = fit("mlp", "digits", recipe, out=out)', 29533)
    assert ranks[0] == ranks[1]
    assert ranks[0].startswith("36 ")  # 1438 samples, two processes, batches of 64, three epochs


@pytest.mark.slow
def test_shards_train_as_whole_weights_do(tmp_path):
    whole, shards, again = (tmp_path / name for name in ("whole", "shards", "again"))
    for folder in (whole, shards, again):
        folder.mkdir()
    plain = in_two_processes(whole, 'done = fit("mlp", "digits", recipe, out=out)', 29534)
    asked = {"ACCELERATE_USE_FSDP": "true"}
    split = in_two_processes(shards, 'done = fit("mlp", "digits", recipe, out=out)', 29535, **asked)
    broken = (
        'fit("mlp", "digits", recipe, shard=True, max_steps=17, out=out); '
        'done = fit("mlp", "digits", recipe, shard=True, out=out, resume=True)'
    )
    resumed = in_two_processes(again, broken, 29536)
    assert split[0] == split[1]
    one, two = (told[0].split() for told in (plain, split))
    assert one[0] == two[0] == "36"
    assert float(one[1]) == pytest.approx(float(two[1]), abs=0.01)
    assert float(one[2]) == pytest.approx(float(two[2]), abs=1e-3)
    assert resumed == split


@pytest.mark.slow
def test_trials_go_on_where_they_ended(tmp_path):
    pytest.importorskip("optuna")
    data = load_data("digits")
    recipe = QUICK.changed(epochs=1)
    space = ("lr=1e-4:1e-2", "optimizer=sgd,adamw")
    two = search_recipe("mlp", data, recipe, trials=2, space=space, out=tmp_path)
    four = search_recipe("mlp", data, recipe, trials=4, space=space, out=tmp_path)
    assert len(two.rows) == 2
    assert [row["lr"] for row in four.rows[:2]] == [row["lr"] for row in two.rows]
    assert len(four.rows) == 4
    assert four.value >= two.value
    assert 1e-4 <= four.recipe.lr <= 1e-2


def test_a_trial_that_is_cut_is_made_up_for(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    module, real = sys.modules["redline.train.trials"], fit
    made = []

    def once_cut(model, data, recipe, **given):
        made.append(recipe.lr)
        if len(made) == 2:
            given["trackers"] = [*given["trackers"], _Ctrl()]
        return real(model, data, recipe, **given)

    monkeypatch.setattr(module, "fit", once_cut)
    recipe, space = QUICK.changed(epochs=1), ("lr=1e-3:1e-2",)
    cut = search_recipe("mlp", "digits", recipe, trials=3, space=space, out=tmp_path)
    assert cut.interrupted
    assert [row["state"] for row in cut.rows] == ["complete", "pruned"]
    whole = search_recipe("mlp", "digits", recipe, trials=3, space=space, out=tmp_path)
    assert not whole.interrupted
    assert [row["state"] for row in whole.rows] == ["complete", "pruned", "complete", "complete"]


class _Ctrl:
    """Presses Ctrl-C before the first step."""

    def start(self, out, recipe):
        self.out = out

    def log(self, record):
        if record["kind"] == "epoch":
            signal.raise_signal(signal.SIGINT)

    def close(self):
        pass


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = fit("mlp", "digits", QUICK, out=tmp_path / "r", trackers=["tensorboard"])
    held = EventAccumulator(str(tmp_path / "r" / "tensorboard")).Reload()
    told = [event.value for event in held.Scalars("epoch/accuracy")]
    assert told == pytest.approx([epoch["metrics"]["accuracy"] for epoch in done.history])


def test_a_missing_tensorboard_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RedlineError, match="pip install tensorboard"):
        fit("mlp", "digits", QUICK, out=tmp_path / "r", trackers=["tensorboard"])


def test_the_log_has_steps_with_their_loss_and_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["redline.train.loop"], "_LOG_EVERY", 0.0)
    fit("mlp", "digits", QUICK.changed(epochs=1), out=tmp_path / "r")
    lines = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert all(line["loss"] > 0 and line["samples_per_s"] > 0 for line in steps)


def test_any_dataset_and_loader_is_taken(tmp_path):
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, x[:, :1] * 2 - x[:, 1:2])
    net = nn.Linear(6, 1)
    loader = torch.utils.data.DataLoader(data, batch_size=20, shuffle=True)
    done = fit(net, loader, epochs=30, lr=0.05, device="cpu", out=tmp_path / "r", split=0)
    assert done.history[-1]["train_loss"] < 0.01
    assert np.isfinite(done.history[-1]["train_loss"])


def test_an_unknown_gpu_is_refused_and_auto_takes_what_is_there():
    from redline.train.processes import begin

    for name in ("cuda", "mps"):
        if not getattr(torch, "cuda" if name == "cuda" else "mps").is_available():
            with pytest.raises(InputError, match=f"device '{name}': torch sees no such GPU"):
                begin(Recipe(device=name))
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    accelerator, _ = begin(Recipe(device="auto"))
    assert accelerator.device.type == (here.type if here else "cpu")


def test_sums_are_kept_in_the_widest_floats_of_the_device():
    from redline.train.loop import widest

    assert widest(torch.device("cpu")) is torch.float64
    assert widest(torch.device("mps")) is torch.float32


@pytest.mark.parametrize("name", ["onecycle", "cosine", "linear", "step", "constant"])
def test_schedules_are_those_of_lambdalr_and_read_its_state(name):
    from redline.train import parts

    net, recipe = nn.Linear(2, 2), Recipe(lr=0.1, schedule=name)
    made = [parts.optimizer(recipe, net) for _ in range(3)]
    ours = parts.schedule(recipe, made[0], 20)
    torchs = torch.optim.lr_scheduler.LambdaLR(made[1], ours.factor)
    again = parts.schedule(recipe, made[2], 20)
    for step in range(25):
        told = [one.param_groups[1]["lr"] for one in made[:2]]
        assert told[0] == pytest.approx(told[1])
        if step == 10:
            held = {k: v for k, v in torchs.state_dict().items() if k != "lr_lambdas"}
            again.load_state_dict(held)
        ours.step()
        made[1].step()
        torchs.step()
        if step >= 10:
            again.step()
            assert made[2].param_groups[0]["lr"] == made[0].param_groups[0]["lr"]
