"""Claim: an epoch of fit() takes at most 2 % longer than the same epoch of a bare loop.

    python bench/fit_overhead.py        # about two minutes

Both train the same network on scikit-learn's digits in memory, eight times over, so that an epoch
has 180 steps; in turns; only the steps are timed.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from redline.measure.statistics import ratio
from redline.train import Recipe, fit, load_data, network
from redline.train.data import Data

ROUNDS, EPOCHS, BATCH, REPEAT = 9, 3, 64, 8
NETWORKS = {"resnet": 16, "mlp": 512}  # width


def digits() -> Data:
    """The digits, several times over."""
    data = load_data("digits")
    x, y = data.train.x.repeat(REPEAT, 1, 1, 1), data.train.y.repeat(REPEAT)
    return dataclasses.replace(data, train=type(data.train)(x, y))


def bare(name: str, width: int) -> float:
    """Seconds of an epoch, the median of a few; the loop that one would write."""
    data = digits()
    torch.manual_seed(0)
    net = network(name, data, width=width)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    x, y = data.train.x, data.train.y
    net.train()
    times = []
    for epoch in range(EPOCHS):
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
    return float(np.median(times))


def ours(name: str, width: int) -> float:
    """The same by fit()."""
    data = digits()
    torch.manual_seed(0)
    net = network(name, data, width=width)
    recipe = Recipe(
        epochs=EPOCHS, batch_size=BATCH, lr=1e-3, schedule="constant", device="cpu",
        features="float",  # the bare loop does not standardize either
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        done = fit(net, data, recipe, out=Path(folder) / "run", progress=False)
    return float(np.median([epoch["seconds"] for epoch in done.history]))


def main() -> None:
    print(
        "| network | bare loop, ms a step | fit, ms a step | over the bare loop |\n"
        "|---|---:|---:|---:|"
    )
    steps = -(-len(digits().train) // BATCH)
    for name, width in NETWORKS.items():
        bare(name, width), ours(name, width)
        pairs = [
            (bare(name, width), ours(name, width))
            if turn % 2
            else (ours(name, width), bare(name, width))[::-1]
            for turn in range(ROUNDS)
        ]
        loops, fits = ([pair[side] for pair in pairs] for side in (0, 1))
        middle, low, high = ratio(fits, loops)
        one, two = (np.median(times) / steps * 1e3 for times in (loops, fits))
        over = f"{middle:.3f}× ({low:.3f} to {high:.3f})"
        print(
            f"| {name} | {one:.3f} | {two:.3f} | {over} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
