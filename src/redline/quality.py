"""How good a compressed model is: by the caller's own metric, or by what it agrees on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redline import machine
from redline.compress.scheme import Calibration
from redline.engine.manifest import Part
from redline.engine.store import FolderStore
from redline.errors import InputError
from redline.runtime.runner import open_part
from redline.runtime.session import Session
from redline.signature import Signature

Evaluate = Callable[[Callable[..., Any]], float]
MAX_DROP = 0.01  # where the goal names none
_NOISE = 0.5  # error energy over output energy (3 dB): above it no metric can speak for a graph
_GLANCE = 32  # batches that this is looked at on


@dataclass(frozen=True)
class Judge:
    """What a model of lower precision is held to.

    Attributes:
        max_drop: how much `evaluate` may fall; without it the share of samples that may get
            another class or, where the outputs are no class scores, the energy of the error
            over the energy of the outputs (0.01 is 20 dB).
        wanted: the score of the model as it is; None without `evaluate`.
        batches, expected: inputs, and what the model as it is gives for them. With `evaluate` they
            only tell noise from outputs: a metric that sees nothing must not let garbage pass.
        how: in words, for the report.
    """

    max_drop: float
    how: str
    evaluate: Evaluate | None = None
    wanted: float | None = None
    batches: Sequence[tuple[np.ndarray, ...]] = ()
    expected: Sequence[Sequence[np.ndarray]] = ()

    def drop(self, session: Session) -> float:
        """How much is lost; more than max_drop is too much, infinite where it is not a number.

        Raises:
            InputError: `evaluate` raises, or gives no finite number.
        """
        if self.evaluate is not None:
            assert self.wanted is not None
            found = [session.run(list(batch)) for batch in self.batches]
            if _energy(found, self.expected) > _NOISE:  # before code of the caller's is run
                return math.inf
            return self.wanted - score(self.evaluate, session)
        return _disagreement([session.run(list(b)) for b in self.batches], self.expected)

    def allows(self, drop: float) -> bool:
        """Whether so much may be lost; a rounding error of the metric does not count."""
        return drop <= self.max_drop + 1e-9


def score(evaluate: Evaluate, model: Callable[..., Any]) -> float:
    """The caller's metric of a model.

    Raises:
        InputError: it raises, or gives no finite number.
    """
    try:
        value = float(evaluate(model))
    except Exception as error:  # the caller's code
        raise InputError(
            f"evaluate raised {type(error).__name__}: {error}",
            hint="it is called with the model, and with engines that are called like it",
        ) from error
    if not math.isfinite(value):
        raise InputError(f"evaluate gave {value}, expected a finite number, higher is better")
    return value


def judge(
    max_drop: float | None, evaluate: Evaluate | None, module: Any, graph: Path,
    signature: Signature, calibration: Calibration | None, cases: Sequence[tuple[np.ndarray, ...]],
) -> Judge:  # fmt: skip
    """What the model as it is scores or computes."""
    plain = opened(graph, signature)
    try:
        limit = MAX_DROP if max_drop is None else max_drop
        if evaluate is not None:
            wanted = score(evaluate, module if module is not None else plain)
            glance = list(calibration.batches if calibration else cases)[:_GLANCE]
            known = [plain.run(list(batch)) for batch in glance]
            how = f"evaluate, {wanted:.4f} in fp32"
            return Judge(limit, how, evaluate, wanted, glance, known)
        batches = calibration.batches if calibration else cases
        expected = [plain.run(list(batch)) for batch in batches]
        where = calibration.source if calibration else f"{len(cases)} sets of inputs like yours"
        kind = "class" if _scores(expected) else "output"
        how = f"no metric was given: {kind} agreement with fp32 on {where}"
        return Judge(limit, how, batches=batches, expected=expected)
    finally:
        plain.close()


def opened(graph: Path, signature: Signature, threads: int = 0) -> Session:
    """A graph in ONNX Runtime, called like the model; with every usable core where not told."""
    setting: dict[str, Any] = {"threads": threads or machine.usable_cores(), "level": "all"}
    part = Part("onnxruntime", setting, uses_graph=True)
    return Session(open_part(part, FolderStore(graph.parent, graph=graph), signature), signature)


def _scores(outputs: Sequence[Sequence[np.ndarray]]) -> bool:
    """Outputs that are class scores: one array of (samples, classes)."""
    return (
        all(
            len(ys) == 1 and ys[0].ndim == 2 and ys[0].shape[1] > 1 and ys[0].dtype.kind == "f"
            for ys in outputs
        )
        and sum(len(ys[0]) for ys in outputs) >= 20
    )


def _energy(got: Sequence[Sequence[np.ndarray]], expected: Sequence[Sequence[np.ndarray]]) -> float:
    """Energy of the error over that of the outputs; infinite where shapes or finiteness differ."""
    noise = signal = 0.0
    pairs = [(y, ref) for ys, refs in zip(got, expected, strict=True)
             for y, ref in zip(ys, refs, strict=True)]  # fmt: skip
    for y, ref in pairs:
        if y.shape != ref.shape:
            return math.inf
        if y.dtype.kind == "f" and not np.isfinite(y[np.isfinite(ref)]).all():
            return math.inf
        finite = np.isfinite(ref) if ref.dtype.kind == "f" else np.ones(ref.shape, bool)
        noise += float(np.sum(np.square(y[finite].astype(np.float64) - ref[finite])))
        signal += float(np.sum(np.square(ref[finite].astype(np.float64))))
    return noise / signal if signal else float(noise > 0)


def _disagreement(
    got: Sequence[Sequence[np.ndarray]], expected: Sequence[Sequence[np.ndarray]]
) -> float:
    energy = _energy(got, expected)
    if not _scores(expected) or not math.isfinite(energy):
        return energy
    pairs = [(y, ref) for ys, refs in zip(got, expected, strict=True)
             for y, ref in zip(ys, refs, strict=True)]  # fmt: skip
    other = [np.argmax(y, 1) != np.argmax(ref, 1) for y, ref in pairs]
    return max(float(np.mean(np.concatenate(other))), energy if energy > _NOISE else 0.0)
