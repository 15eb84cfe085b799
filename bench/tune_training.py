"""The tuner of the training step on three loops with a planted fault each, and on a good one.

python bench/tune_training.py            # the table of docs/benchmarks.md; about six minutes
python bench/tune_training.py transform  # one loop, with its whole report

Every loop runs as its user would write it; the gain is the tuner's own last race, the tuned loop
against the loop as it was, in turns, both reading their loaders. One thread, so that what else the
machine does costs both lanes the same.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile

import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from redline.train import Loop, tune
from redline.train.tuning.faults import has_arithmetic


class SlowPhotos(Dataset):
    """Photos that are normalised pixel row by pixel row, in Python."""

    def __init__(self, count: int = 512) -> None:
        self.pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
        self.labels = torch.randint(0, 10, (count,))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return slow_transform(self.pixels[index]), self.labels[index]


def slow_transform(pixels: torch.Tensor) -> torch.Tensor:
    rows = [[(row.float() / 255 - 0.5) / 0.25 for row in plane] for plane in pixels]
    return torch.stack([torch.stack(plane) for plane in rows])


class Towers(nn.Module):
    """Parallel branches over one feature map: with formats that differ, each copies it."""

    def __init__(self, towers: int = 6, width: int = 8) -> None:
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, width, 3, stride=4, padding=1), nn.ReLU())
            for _ in range(towers)
        )
        self.head = nn.Linear(towers * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([tower(x).mean((2, 3)) for tower in self.towers], 1))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def transform() -> Loop:
    model = small_cnn()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loader = DataLoader(SlowPhotos(), batch_size=64, shuffle=True)
    return Loop(model, optimizer, nn.CrossEntropyLoss(), loader)


def formats() -> Loop:
    model = Towers().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    data = TensorDataset(torch.randn(64, 64, 64, 64), torch.randint(0, 10, (64,)))
    return Loop(model, optimizer, nn.CrossEntropyLoss(), _slices(data, 16))


def logging() -> Loop:
    layers = [layer for _ in range(60) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    data = TensorDataset(torch.randn(4096, 64), torch.randint(0, 10, (4096,)))
    history = torch.rand(2000).tolist()  # of the epochs before
    file = tempfile.TemporaryFile("w")  # noqa: SIM115 - lives as long as the loop

    def log(step: int, loss: torch.Tensor) -> None:
        """The whole curve is written again every step, as scripts do that plot it later."""
        history.append(loss.item())
        file.seek(0)
        json.dump(history[-2000:], file)
        file.flush()
        print(f"step {step}: loss {loss.item():.4f}, mean {statistics.fmean(history[-100:]):.4f}")

    return Loop(
        model, optimizer, nn.CrossEntropyLoss(), _slices(data, 32), log=log, set_to_none=False
    )


def emulated() -> Loop:
    """The good loop with bfloat16, wherever it runs: a fault where the processor lacks it."""
    return dataclasses.replace(good(), autocast="bfloat16")


def good() -> Loop:
    """Slices of tensors in memory, large products, a fused optimizer, a rare log.

    And bfloat16, where the processor has it.
    """
    model = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2048))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    data = TensorDataset(torch.randn(2048, 2048), torch.randn(2048, 2048))

    def log(step: int, loss: torch.Tensor) -> None:
        print(f"step {step}: {loss.item():.4f}")

    return Loop(
        model, optimizer, nn.MSELoss(), _slices(data, 512), log=log, log_every=50,
        autocast="bfloat16" if has_arithmetic("bfloat16", torch.device("cpu")) else "",
    )  # fmt: skip


def _slices(data: TensorDataset, size: int) -> DataLoader:
    return DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), size, False))


def words(gain: tuple[float, float, float] | None) -> str:
    if gain is None:
        return "nothing changed"
    return f"{gain[0]:.2f}× ({gain[1]:.2f} to {gain[2]:.2f})"


LOOPS = {"transform": transform, "formats": formats, "logging": logging, "good": good}
if not has_arithmetic("bfloat16", torch.device("cpu")):
    LOOPS["emulated"] = emulated


def main() -> None:
    torch.set_num_threads(1)
    names = sys.argv[1:] or list(LOOPS)
    print("| loop | bound | named | kept | a step | then | gain |\n|---|---|---|---|---|---|---|")
    for name in names:
        torch.manual_seed(0)
        found = tune(LOOPS[name](), budget="60s", skip=("threads", "batch", "lr"))
        gain = words(found.gain)
        named = "; ".join(fault.name for fault in found.faults) or "nothing"
        kept = "; ".join(trial.change for trial in found.kept) or "nothing"
        print(
            f"| {name} | {found.bound.name} | {named} | {kept} | {found.before * 1e3:.2f} ms | "
            f"{found.after * 1e3:.2f} ms | {gain} |",
            flush=True,
        )
        if len(names) == 1:
            print(found)


if __name__ == "__main__":
    main()
