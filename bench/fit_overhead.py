"""Claim: an epoch of fit() takes at most 2 % longer than the same epoch of a bare loop.

    python bench/fit_overhead.py        # about four minutes

Both train the same network with the same fused AdamW on scikit-learn's digits in memory, eight
times over, so that an epoch has 180 steps; in turns of some epochs, of which the fastest counts;
only the steps are timed. The last row holds fit() with optimizer="adamw" against a loop with
torch.optim.AdamW as it comes.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from redline.measure.statistics import ratio
from redline.train import Recipe, fit, load_data, network
from redline.train.data import Data

ROUNDS, BATCH, REPEAT = 21, 64, 8
NETWORKS = {"mlp": (512, 4), "resnet": (16, 1)}  # width, epochs


def fused(parameters: Any, lr: float = 1e-3, weight_decay: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)


def usual(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def digits() -> Data:
    """The digits, several times over."""
    data = load_data("digits")
    x, y = data.train.x.repeat(REPEAT, 1, 1, 1), data.train.y.repeat(REPEAT)
    return dataclasses.replace(data, train=type(data.train)(x, y))


def bare(name: str, make: Any) -> float:
    """Seconds of an epoch, the least of a few; the loop that one would write."""
    data, (width, epochs) = digits(), NETWORKS[name]
    torch.manual_seed(0)
    net = network(name, data, width=width)
    optimizer = make(net.parameters())
    x, y = data.train.x, data.train.y
    net.train()
    times = []
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        start = time.perf_counter()
        total = torch.zeros((), dtype=torch.float64)
        for rows in order.split(BATCH):
            loss = cross_entropy(net(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += loss.detach() * len(rows)
        times.append(time.perf_counter() - start)
    return min(times)


def ours(name: str, make: Any) -> float:
    """The same by fit()."""
    data, (width, epochs) = digits(), NETWORKS[name]
    torch.manual_seed(0)
    net = network(name, data, width=width)
    recipe = Recipe(
        epochs=epochs, batch_size=BATCH, lr=1e-3, schedule="constant", device="cpu", optimizer=make,
        features="float",  # the bare loop does not standardize either
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = fit(net, data, recipe, out=Path(folder) / "run", progress=False)
    return float(min(epoch["seconds"] for epoch in done.history))


def main() -> None:
    print(
        "| network | bare loop, ms a step | fit, ms a step | over the bare loop |\n"
        "|---|---:|---:|---:|"
    )
    steps = -(-len(digits().train) // BATCH)
    rows = [(name, name, fused, fused) for name in NETWORKS]
    rows.append(("mlp, AdamW as it comes", "mlp", usual, "adamw"))
    for row, name, theirs, own in rows:
        bare(name, theirs), ours(name, own)
        pairs = [
            (bare(name, theirs), ours(name, own))
            if turn % 2
            else (ours(name, own), bare(name, theirs))[::-1]
            for turn in range(ROUNDS)
        ]
        loops, fits = ([pair[side] for pair in pairs] for side in (0, 1))
        middle, low, high = ratio(fits, loops)
        one, two = (np.median(times) / steps * 1e3 for times in (loops, fits))
        print(
            f"| {row} | {one:.3f} | {two:.3f} | {middle:.3f}× ({low:.3f} to {high:.3f}) |",
            flush=True,
        )


if __name__ == "__main__":
    main()
