"""tune() from end to end, on times that are made up where the decision is tested, and on real
small loops for what it names and what it leaves untouched."""

import json
import random
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from redline.errors import InputError, ModelError, UnknownNameError
from redline.search import race as races
from redline.train import Loop, tune
from redline.train.tuning.loop import setup_of
from redline.train.tuning.rig import PHASES, Rig
from redline.train.tuning.setup import Setup

ALL = ("input", "loop", "optimizer", "precision", "layout", "threads", "compile", "batch", "lr")


def only(*stages):
    return [name for name in ALL if name not in stages]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(races, "_SETTLE", 0.0)


def made_up(cost, phases=None, real_phases=False):
    """A meter whose steps take what `cost(setup)` says; everything else is real."""

    class Meter(Rig):
        def turn(self, seconds):
            return [cost(self.setup)]

        def phases(self, least=20, seconds=3.0):
            if real_phases:
                return super().phases(5, 0.5)
            spread = phases(self.setup) if phases else {"forward": cost(self.setup)}
            return dict.fromkeys(PHASES, 0.0) | spread

    return Meter


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))


def loop(model=None, loader=None, fused=False, **habits):
    model = model or net()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused, foreach=False)
    data = TensorDataset(torch.randn(64, 8), torch.randint(0, 2, (64,)))
    loader = loader or DataLoader(data, batch_size=16, shuffle=True)
    return Loop(model, optimizer, nn.CrossEntropyLoss(), loader, **habits)


def images(last_weights=False):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    if last_weights:
        model = model.to(memory_format=torch.channels_last)
    data = TensorDataset(torch.randn(32, 3, 8, 8), torch.randint(0, 2, (32,)))
    return loop(model, DataLoader(data, batch_size=8))


def names(found):
    return [fault.name for fault in found.faults]


def outcomes(found):
    return {trial.change: trial.outcome for trial in found.trials}


def test_what_gains_is_kept_with_its_line_and_the_rest_is_not():
    def cost(setup):
        return (
            1.0 * (0.5 if setup.kernel == "fused" else 1) * (2 if setup.kernel == "foreach" else 1)
        )

    found = tune(loop(), skip=only("optimizer", "threads"), meter=made_up(cost))
    assert found.setup.kernel == "fused"
    assert found.gain == (2.0, 2.0, 2.0)
    assert outcomes(found)["fused=True"] == "kept"
    assert outcomes(found)["foreach=True"] in ("slower", "behind")
    assert any("fused=True" in edit.new for edit in found.edits)
    assert found.drift < 1e-5


def test_bfloat16_without_the_arithmetic_is_named_and_taken_out(monkeypatch):
    monkeypatch.setattr("redline.machine.isa_flags", lambda: frozenset({"avx2"}))
    meter = made_up(lambda setup: 9.0 if setup.autocast else 1.0)
    found = tune(loop(autocast="bfloat16"), skip=only("precision"), meter=meter)
    assert [fault.name for fault in found.faults] == ["bfloat16 autocast without the arithmetic"]
    assert outcomes(found)["no autocast"] == "kept"
    assert found.setup.autocast == ""
    assert found.gain == (9.0, 9.0, 9.0)
    assert "outside of torch.autocast" in " ".join(edit.new for edit in found.edits)


def test_a_good_loop_is_left_as_it_is_and_told_so(monkeypatch):
    monkeypatch.setattr("redline.machine.isa_flags", lambda: frozenset({"avx512_bf16"}))
    found = tune(
        loop(fused=True, autocast="bfloat16", log_every=50, log=lambda step, loss: None),
        skip=("compile", "batch", "lr"), meter=made_up(lambda setup: 1.0),
    )  # fmt: skip
    assert found.setup == found.original
    assert not found.edits
    assert not found.kept
    assert found.gain is None
    assert "leave the loop as it is" in " ".join(str(found).split())
    assert not found.faults


def test_a_change_that_changes_the_loss_is_refused(monkeypatch):
    class Sharp(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(8, 2)

        def forward(self, x):
            broken = torch.is_autocast_enabled("cpu")
            return self.line(x) * (100.0 if broken else 1.0)

    monkeypatch.setattr("redline.machine.isa_flags", lambda: frozenset({"avx512_bf16"}))
    meter = made_up(lambda setup: 0.1 if setup.autocast else 1.0)
    found = tune(loop(Sharp()), skip=only("precision"), meter=meter)
    assert outcomes(found)["bfloat16 autocast"] == "changes the loss"
    assert found.setup == found.original


def test_workers_are_swept_when_data_is_what_is_waited_for(monkeypatch):
    monkeypatch.setattr("redline.machine.usable_cores", lambda: 2)

    def phases(setup):
        return {"input": 1.0 / (1 + setup.workers), "forward": 0.01}

    class Noisy(Dataset):
        def __len__(self):
            return 32

        def __getitem__(self, index):
            return torch.randn(8), index % 2

    meter = made_up(lambda setup: sum(phases(setup).values()), phases)
    found = tune(
        loop(loader=DataLoader(Noisy(), batch_size=8)), skip=only("input"), meter=meter, budget=20
    )
    assert found.bound.name == "input"
    assert found.setup.workers == 2
    assert any(trial.why.startswith("dataset[0] is random") for trial in found.trials)
    assert "DataLoader(..., num_workers=2, persistent_workers=True)" in {e.new for e in found.edits}


def test_what_gains_alone_and_not_together_is_taken_back():
    calls = []

    class Meter(made_up(lambda setup: 1.0)):
        def __init__(self, loop, setup, batches=None):
            super().__init__(loop, setup, batches)
            calls.append(batches)

        def turn(self, seconds):  # quick on kept batches, and no quicker on the loader
            kept = self.feed.source.__class__.__name__ == "Kept"
            return [0.5 if kept and self.setup.kernel == "fused" else 1.0]

    found = tune(loop(), skip=only("optimizer"), meter=Meter)
    assert found.setup == found.original
    assert outcomes(found)["fused=True"] == "no gain"


def test_no_time_left_is_a_list_of_what_was_not_tried():
    found = tune(loop(), budget=0.001, meter=made_up(lambda setup: 1.0))
    tried = {trial.outcome for trial in found.trials}
    assert tried == {"not tried"}
    assert "larger budget" in str(found)


class Slow(Dataset):
    """Each sample takes five milliseconds in one function."""

    def __init__(self):
        self.x = torch.randn(32, 8)

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return dawdle(self.x[index]), index % 2


def dawdle(x):
    time.sleep(0.005)
    return x * 2


def test_a_slow_transform_is_named_by_function_and_line():
    meter = made_up(lambda setup: 0.1 if setup.feed == "memory" else 1.0, real_phases=True)
    found = tune(loop(loader=DataLoader(Slow(), batch_size=8)), skip=only("input"), meter=meter)
    assert names(found)[0] == "slow transform in the dataset"
    assert "dawdle (test_tune.py:" in found.faults[0].evidence
    assert found.bound.name == "input"
    assert found.setup.feed == "memory"
    assert any("for i in range(len(dataset))" in edit.new for edit in found.edits)


def test_formats_that_do_not_match_are_named():
    nothing = made_up(lambda setup: 1.0)
    assert "memory formats do not match" in names(tune(images(True), skip=ALL, meter=nothing))
    assert names(tune(images(), skip=ALL, meter=nothing)) == []
    found = tune(
        images(True),
        skip=only("layout"),
        meter=made_up(lambda s: 1.0 - 0.5 * (s.layout != "as it is")),
    )
    assert found.setup.layout == "contiguous"
    assert "a forward before, 0 B now" in found.kept[0].why


def test_a_format_that_makes_hidden_copies_is_taken_back():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 2)

        def forward(self, x):
            return self.head(self.convolution(x).reshape(len(x), -1))

    data = TensorDataset(torch.randn(32, 3, 8, 8), torch.randint(0, 2, (32,)))
    meter = made_up(lambda setup: 0.5 if setup.layout == "channels_last" else 1.0)
    given = loop(Turned(), DataLoader(data, batch_size=8))
    found = tune(given, skip=only("layout"), meter=meter)
    assert outcomes(found)["channels_last weights and input"] == "hidden copies"
    assert found.setup == found.original


def test_habits_of_the_loop_are_named():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)), nn.Linear(8, 2))
    given = loop(model, log=lambda step, loss: time.sleep(0.003), set_to_none=False)
    meter = made_up(lambda setup: 1.0 if setup.log_every == 1 else 0.5, real_phases=True)
    found = tune(given, skip=only("loop"), meter=meter)
    assert {
        "logging every step", "zero_grad(set_to_none=False)", "optimizer without foreach or fused",
    } <= set(names(found))  # fmt: skip
    assert found.setup.log_every == 50


def test_nothing_of_the_users_is_touched():
    given = loop(log=lambda step, loss: print(loss.item()))
    given.model[0].eval()
    given.loader.generator = torch.Generator().manual_seed(3)
    given.model[0].weight.grad = held = torch.ones_like(given.model[0].weight)
    weights = [p.clone() for p in given.model.parameters()]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)

    def state():
        return (
            torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate(),
            given.loader.generator.get_state().tolist(), torch.get_num_threads(),
            [m.training for m in given.model.modules()], str(given.optimizer.state_dict()),
            given.loader.num_workers,
        )  # fmt: skip

    before = state()
    tune(given, budget=6, skip=("compile", "batch"))
    assert state() == before
    assert given.model[0].weight.grad is held
    assert all(torch.equal(p, q) for p, q in zip(given.model.parameters(), weights, strict=True))


def test_a_loss_that_holds_the_users_own_model_and_writes_to_it_is_found():
    model = net()

    def compute(copied, batch):
        with torch.no_grad():
            model[0].weight.add_(0.0)
        return copied(batch[0]).square().mean()

    with pytest.raises(InputError, match="tensors of your model were written to"):
        tune(loop(model, compute=compute), skip=ALL)


def test_a_kernel_keeps_the_optimizers_state():
    given = loop()
    for _ in range(3):
        given.model(torch.ones(2, 8)).sum().backward()
        given.optimizer.step()
        given.optimizer.zero_grad()
    batches = [next(iter(given.loader))]
    plain, fused = (
        Rig(given, Setup(threads=1, kernel=kernel), batches).losses(batches, 4, 0)
        for kernel in ("as it is", "fused")
    )
    assert plain == pytest.approx(fused, rel=1e-5)


@pytest.mark.parametrize(
    "setup",
    [Setup(), Setup(feed="slices"), Setup(feed="memory"), Setup(workers=1, persistent=True)],
    ids=lambda setup: f"{setup.feed}-{setup.workers}",
)
def test_every_feed_gives_the_same_samples_in_the_same_order(setup):
    from redline.train.tuning import feeds

    given = loop()
    seen = []
    for one in (Setup(), setup):
        torch.manual_seed(7)
        feed = feeds.make(given, one)
        seen.append([feed.next()[0] for _ in range(4)])
        feed.close()
    for ours, theirs in zip(*seen, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_an_epoch_with_persistent_workers_is_not_charged_their_start():
    given = loop()
    rig = Rig(given, Setup(workers=1, persistent=True))
    rig.warm_up()
    began = rig.feed.source._iterator._workers[0].pid
    assert len(rig.feed.restarts) >= 1
    rig.feed.start_over()
    assert rig.restart_share() == 0.0
    rig.turn(0.0)
    assert rig.feed.source._iterator._workers[0].pid == began
    rig.close()


def test_batch_sizes_are_run_in_a_child():
    from redline.train.tuning import batch, feeds

    given = loop()
    batches = feeds.first_batches(given, setup_of(given))
    offer = batch.offer(given, setup_of(given), batches, 30.0)
    assert dict(offer.rates)[16] > 0
    assert offer.size is None or dict(offer.rates)[offer.size] > 0


def test_the_page_the_text_and_the_json_tell_the_same():
    found = tune(
        loop(), skip=only("optimizer"), meter=made_up(lambda s: 1 + (s.kernel == "as it is"))
    )
    data = json.loads(found.json())
    assert data["setup"]["kernel"] == found.setup.kernel
    page = found.html()
    for words in ("Tried", "Lines to change", "Where a step's time goes", "fused=True"):
        assert words in page.replace("&#39;", "'")
    assert "http" not in page.split("</head>")[1]


def test_bad_input_is_one_clear_error():
    given = loop()
    with pytest.raises(UnknownNameError, match="did you mean 'compile'"):
        tune(given, skip=["compil"])
    with pytest.raises(InputError, match="cannot be iterated twice"):
        Loop(given.model, given.optimizer, given.loss, iter(given.loader))
    with pytest.raises(InputError, match="none of the model's parameters"):
        Loop(net(), given.optimizer, given.loss, given.loader)
    with pytest.raises(ModelError, match="expected an nn"):
        tune("model", given.optimizer, given.loss, given.loader)
    with pytest.raises(InputError, match="optimizer and loader"):
        tune(given.model)
    with pytest.raises(InputError, match="unexpected keyword"):
        tune(given.model, given.optimizer, given.loss, given.loader, epoch=3)
