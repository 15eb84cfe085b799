"""The demo: real digits, a network trained in seconds, its engine, and a proof that they agree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from redline import knobs
from redline.api import optimize
from redline.errors import InputError, MissingError, RunError
from redline.report import figures

_EPOCHS, _BATCH, _RATE = 12, 64, 4e-3
_HELD_OUT = 0.25  # of the 1797 digits

Tell = Callable[[Any], None]


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) from 0 to 1 with labels from 0 to 9, and those kept for the end."""

    images: np.ndarray
    labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray


@dataclass(frozen=True)
class Demo:
    """What came out.

    Attributes:
        torch_accuracy, engine_accuracy: on the held-out digits.
        disagreements: held-out digits that engine and network take for different ones.
        backend: what ran the engine in the fresh process.
        latency, eager_latency: seconds a digit, as optimize() measured them.
        speedup: eager over the engine, measured in turns; None where eager was not timed.
    """

    engine: str
    report: str
    torch_accuracy: float
    engine_accuracy: float
    held_out: int
    disagreements: int
    backend: str
    latency: float | None
    eager_latency: float | None
    speedup: float | None
    seconds: float


def run_demo(out: Path, *, budget: str = "45s", seed: int = 0, tell: Tell = print) -> Demo:
    """Train a network on digits, optimize it, and let a process without torch use the engine.

    Args:
        out: gets digits.redline, report.html, held_out.npz and classify.py.
        budget: what optimize() may take.
        tell: gets a line of text for every step, and the report when it is there.

    Raises:
        InputError: the folder cannot be made.
        MissingError: scikit-learn, whose digits these are, is not installed.
        RunError: the fresh process failed.

    Example:
        >>> run_demo(Path("demo-out")).disagreements
        0
    """
    start = time.monotonic()
    _make(out)
    digits = load_digits(seed)
    count, held_out = len(digits.images), len(digits.held_out_images)
    tell(f"1. Train a small CNN on {count} real digits (scikit-learn's, 8×8), {held_out} held out")
    model = train(digits, seed)
    guesses = _guesses(model, digits.held_out_images)
    accuracy = float((guesses == digits.held_out_labels).mean())
    tell(f"   trained in {time.monotonic() - start:.1f} s; {accuracy:.2%} right on held-out digits")

    tell(f"2. Optimize it for this machine, one digit at a time, within {budget}")
    example = torch.from_numpy(digits.images[:1])
    with optimize(model, example, budget=budget, seed=seed, name="digits") as engine:
        tell(engine.report)
        engine_file, report = engine.save(out / "digits.redline"), out / "report.html"
        engine.report.write_html(report)
        study = engine.report.study

    tell("3. Load the engine in a fresh process where torch cannot be imported, and classify")
    found = classify_apart(out, digits)
    won, eager = figures.winner(study), figures.eager(study)
    demo = Demo(
        engine=str(engine_file),
        report=str(report),
        torch_accuracy=accuracy,
        engine_accuracy=found["accuracy"],
        held_out=held_out,
        disagreements=int((np.array(found["guesses"]) != guesses).sum()),
        backend=found["backend"],
        latency=won.timing.median if won and won.timing else None,
        eager_latency=eager.timing.median if eager and eager.timing else None,
        speedup=figures.speedup(eager, won) if eager and won else None,
        seconds=time.monotonic() - start,
    )
    for line in _summary(demo):
        tell(line)
    return demo


def load_digits(seed: int) -> Digits:
    """Scikit-learn's digits, a quarter of each class held out.

    Raises:
        MissingError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise MissingError(
            "the demo's digits come with scikit-learn, which is not installed",
            hint='pip install "redline[train]"',
        ) from error
    found = datasets.load_digits()
    images = (found.images / 16).astype(np.float32)[:, None]
    parts = train_test_split(
        images, found.target, test_size=_HELD_OUT, stratify=found.target, random_state=seed
    )
    train_images, held_out_images, train_labels, held_out_labels = parts
    return Digits(train_images, train_labels, held_out_images, held_out_labels)


def network() -> nn.Sequential:
    """Three convolutions with batch norm, 8×8 pixels to 10 classes, 65 thousand weights."""

    def block(before: int, after: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *block(1, 32), *block(32, 64), nn.MaxPool2d(2), *block(64, 64), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 4, 10),
    )  # fmt: skip


def train(digits: Digits, seed: int) -> nn.Sequential:
    """The network after a few seconds of training; the same on every run with this seed."""
    torch.manual_seed(seed)
    model = network()
    images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.labels)
    steps = -(-len(images) // _BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, _EPOCHS * steps)
    with _bar() as bar:
        task = bar.add_task("training", total=_EPOCHS * steps)
        for epoch in range(_EPOCHS):
            for batch in torch.split(torch.randperm(len(images)), _BATCH):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                bar.advance(task)
            bar.update(task, description=f"training, epoch {epoch + 1}, loss {loss.item():.3f}")
    return model.eval()


def classify_apart(out: Path, digits: Digits) -> dict[str, Any]:
    """What classify.py says: a fresh process that has NumPy and the engine, and no torch.

    Raises:
        RunError: it failed; says what it printed.
    """
    np.savez(out / "held_out.npz", images=digits.held_out_images, labels=digits.held_out_labels)
    script = out / "classify.py"
    shutil.copyfile(Path(__file__).with_name("demo_classify.py"), script)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise RunError(
            f"the fresh process failed: {done.stderr.strip() or done.returncode}", where=str(script)
        )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "held_out.npz").touch()
    except OSError as error:
        raise InputError(
            f"the folder {out} cannot be used: {error.strerror}", hint="choose another with --out"
        ) from error


def _guesses(model: nn.Sequential, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(images)).argmax(1).numpy()  # type: ignore[no-any-return]


def _bar() -> Any:
    """Progress on stderr with the time left, where someone looks."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(bar_width=24), TimeRemainingColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    knob = knobs.text("REDLINE_PROGRESS")
    off = knob == "0" or (knob == "auto" and not console.is_terminal)
    return Progress(*columns, console=console, transient=True, disable=off)


def _summary(demo: Demo) -> list[str]:
    """The end of the story in four lines."""
    same = "the same answer on every digit"
    if demo.disagreements:
        same = f"another answer on {demo.disagreements} of {demo.held_out} digits"
    lines = [f"   {demo.engine_accuracy:.2%} right on {demo.backend}, without torch; {same}"]
    if demo.speedup and demo.latency and demo.eager_latency:
        lines.append(
            f"   {demo.speedup:.1f} times as fast as PyTorch: {demo.latency * 1e6:.0f} µs a digit, "
            f"eager {demo.eager_latency * 1e6:.0f} µs"
        )
    lines.append(f"Done in {demo.seconds:.0f} s. The engine: {demo.engine}; why: {demo.report}")
    return lines
