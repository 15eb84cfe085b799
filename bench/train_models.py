"""Claim: `redline train` reaches useful accuracy in minutes on two cores.

    python bench/train_models.py --images cifar10.zip --text tinyshakespeare.txt

scikit-learn's digits always; a folder or zip of images in classes (train/ and test/), and a text,
where given. The minutes of a row hold loading the data, training and testing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from redline.train import fit, load_data, network

RECIPES: dict[str, tuple[str, dict[str, int], dict[str, Any]]] = {
    "digits": ("resnet", {}, {"epochs": 20, "batch_size": 32, "lr": 0.01, "augment": "crop:1"}),
    "images": (
        "resnet",
        {"width": 16},
        {
            "epochs": 14, "batch_size": 128, "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4,
            "augment": ("flip", "crop:4"), "label_smoothing": 0.1, "channels_last": True,
        },
    ),
    "text": (
        "gpt",
        {},
        {"max_steps": 1600, "epochs": 100, "batch_size": 32, "lr": 2e-3, "clip": 1.0},
    ),
}  # fmt: skip


def train(name: str, source: str, changes: dict[str, Any], out: Path) -> dict[str, Any]:
    """One row of the table."""
    kind, sizes, recipe = RECIPES[name]
    recipe = {**recipe, **changes}
    start = time.monotonic()
    data = load_data(source)
    torch.manual_seed(0)
    done = fit(network(kind, data, **sizes), data, **recipe, out=out)
    return {
        "data": name, "network": kind, **sizes, "recipe": recipe, "metrics": dict(done.metrics),
        "steps": done.steps, "stopped": done.stopped, "minutes": (time.monotonic() - start) / 60,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", help="a folder or zip of images in class folders")
    parser.add_argument("--text", help="a text file")
    parser.add_argument("--only", choices=list(RECIPES))
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE, for trying")
    parser.add_argument("--out", type=Path, help="keep the runs here")
    args = parser.parse_args()
    from redline.train.command import parse_choices

    sources = {"digits": "digits", "images": args.images, "text": args.text}
    home = args.out or Path(tempfile.mkdtemp())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name, source in sources.items():
        if source and args.only in (None, name):
            row = train(name, source, parse_choices(args.set), home / name)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
