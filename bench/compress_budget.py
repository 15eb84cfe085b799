"""Claim: the accuracy budget holds on data that optimize() never saw; more of it is never slower.

    python bench/compress_budget.py [--digits] [--budget 90s] [--backend onnxruntime]

A CNN is trained on MNIST (../shared/data/mnist-10k) or, with --digits, on scikit-learn's digits;
its test data are halved. optimize() sees one half through `evaluate`; the drop is then measured on
the other. For each max_drop the drop there must stay within the bound plus two standard errors of
the difference of two accuracies on the same items (McNemar), and a larger budget must not
give a slower engine: the four engines are timed in turns at the end. --outliers 100 makes the
network one that int8 spoils, so that layers must stay in float.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import redline

DROPS = (0.0, 0.002, 0.005, 0.02)
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist-10k"
BATCH = 50


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)


def mnist() -> tuple[torch.Tensor, torch.Tensor]:
    """The 10 000 images of the IDX files in the folder."""
    arrays = {}
    for path in sorted(DATA.iterdir()):
        for kind, skip in (("images", 16), ("labels", 8)):
            if kind in path.name and "ubyte" in path.name:
                read = gzip.open if path.suffix == ".gz" else open
                with read(path, "rb") as file:
                    arrays[kind] = np.frombuffer(file.read(), np.uint8, offset=skip)
    if set(arrays) != {"images", "labels"}:
        raise SystemExit(f"{DATA} holds no IDX files of images and labels")
    images = torch.tensor(arrays["images"].reshape(-1, 1, 28, 28) / 255, dtype=torch.float32)
    return images, torch.tensor(arrays["labels"], dtype=torch.int64)


def network(size: int) -> torch.nn.Sequential:
    torch.manual_seed(0)
    side = size // 4
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64 * side * side, 10),
    )


def train(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    rule = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(2 if len(images) > 2000 else 12):
        for part in torch.randperm(len(images)).split(64):
            rule.zero_grad()
            torch.nn.functional.cross_entropy(net(images[part]), labels[part]).backward()
            rule.step()


def trained(kept: Path | None, images: torch.Tensor, labels: torch.Tensor) -> torch.nn.Sequential:
    """The network, with its weights from an earlier run if they were kept."""
    net = network(images.shape[-1])
    if kept and kept.exists():
        net.load_state_dict(load_file(kept))
    else:
        train(net, images, labels)
        if kept:
            save_file(net.state_dict(), kept)
    return net.eval()


def with_outliers(net: torch.nn.Sequential, factor: float) -> None:
    """One channel in eight of the first layer times a factor that the next layer takes back: the
    same function, but hard to round, as one range must hold all channels.
    """
    with torch.no_grad():
        for tensor in (net[1].weight, net[1].bias):
            tensor[::8] *= factor
        net[4].weight[:, ::8] /= factor


def correct(call, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One boolean an item."""
    with torch.no_grad():
        found = [call(images[i : i + BATCH]).argmax(1) for i in range(0, len(images), BATCH)]
    return torch.cat(found) == labels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--digits", action="store_true")
    parser.add_argument("--budget", default="90s", help="of each optimize()")
    parser.add_argument("--backend", action="append", help="only this one; can be given again")
    parser.add_argument("--outliers", type=float, default=1.0, help="how much larger some are")
    parser.add_argument("--weights", type=Path, help="a file to keep the trained network in")
    args = parser.parse_args()
    images, labels = digits() if args.digits else mnist()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    half = (len(labels) // 4) // BATCH * BATCH
    rest = len(labels) - 2 * half
    net = trained(args.weights, images[:rest], labels[:rest])
    with_outliers(net, args.outliers)
    seen = (images[rest : rest + half], labels[rest : rest + half])
    unseen = (images[rest + half :], labels[rest + half :])
    loader = [(images[i : i + BATCH], labels[i : i + BATCH]) for i in range(0, 500, BATCH)]
    before = correct(net, *unseen)
    failed, paths = [], []
    home = tempfile.TemporaryDirectory()
    print("| max_drop | winner | drop seen | drop unseen | 2 standard errors |")
    print("|---|---|---|---|---|")
    for drop in DROPS:
        engine = redline.optimize(
            net,
            images[:BATCH],
            precisions=("fp32", "int8"),
            calibration=loader,
            evaluate=lambda call: float(correct(call, *seen).float().mean()),
            goal=redline.Goal(max_drop=drop),
            budget=args.budget,
            backends=args.backend,
            use_cache=False,
            progress=False,
        )
        after = correct(engine, *unseen)
        winner = engine.report.winner
        lost = float((before.float() - after.float()).mean())
        margin = 2 * float((before != after).float().mean().sqrt()) / len(after) ** 0.5
        own = float(correct(net, *seen).float().mean()) - (winner.accuracy or 0.0)
        print(f"| {drop} | {winner.id} | {own:.4f} | {lost:.4f} | {margin:.4f} |", flush=True)
        if lost > drop + margin:
            failed.append(f"max_drop {drop}: {lost:.4f} on unseen data")
        with engine:
            paths.append(engine.save(Path(home.name) / f"{drop}.redline"))
    failed += slower(paths, images[:BATCH], args.budget)
    home.cleanup()
    sys.exit("; ".join(failed) or 0)


def slower(paths: list[Path], images: torch.Tensor, budget: str) -> list[str]:
    """Every engine in turns, and which are slower than one of a smaller max_drop."""
    records = {one.id: one for one in redline.compare(paths, images, budget=budget).records}
    found = [records[str(path)].timing for path in paths]
    for path, timing in zip(paths, found, strict=True):
        low, middle, high = (1e6 * t for t in (timing.low, timing.median, timing.high))
        print(f"{path.stem}: {middle:.0f} us a call ({low:.0f} to {high:.0f})")
    return [
        f"max_drop {path.stem} is slower than {before.stem}"
        for (before, one), (path, other) in pairwise(zip(paths, found, strict=True))
        if other.low > one.high
    ]


if __name__ == "__main__":
    main()
