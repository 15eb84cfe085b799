"""What tune() found, to be read: on a terminal, in a notebook, as HTML and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from markupsafe import escape

from redline.report import units
from redline.train.tuning.batch import BatchOffer
from redline.train.tuning.bounds import Bound, Memory, Peaks, Work
from redline.train.tuning.faults import Fault
from redline.train.tuning.rates import LearningRate
from redline.train.tuning.rig import PHASES
from redline.train.tuning.setup import Setup
from redline.train.tuning.source import Edit
from redline.views.page import Item, Page, Row, View

_TONES = {
    "kept": "good",
    "failed": "bad",
    "changes the loss": "bad",
    "hidden copies": "bad",
    "not tried": "muted",
}
_COLOURS = ("#0062b1", "#5b8db8", "#b45100", "#d98e4a", "#0b6e4f", "#a8201a", "#59636e")


@dataclass(frozen=True)
class Trial:
    """One row: what was tried, how it ended, times faster than without it (median, low, high), why.

    `outcome` is "kept", "no gain", "slower", "behind", "failed", "changes the loss", "hidden
    copies" or "not tried"; `drift` the relative difference of the first losses.
    """

    change: str
    outcome: str
    gain: tuple[float, float, float] | None
    why: str
    drift: float | None = None


@dataclass(frozen=True)
class Tuning(View):
    """The answer to "why is my training step slow, and which lines do I change?".

    Attributes:
        bound: what bounds the step as it was.
        phases: median seconds of each phase of a step, before and after.
        samples: samples of a batch, 0 if not known.
        before, after: seconds a step; gain: before over after with its 95 % interval, from steps
            of both in turns, or None when nothing was kept.
        faults: what is wrong with the loop as it was; trials: all that was tried or was not.
        edits: the lines to change; setup: what they amount to.
        drift: largest relative difference of the first losses, all changes together.
        batch, rate: offers that change the training itself and are never made by themselves.

    Example:
        >>> print(redline.train.tune(model, optimizer, loss, loader))
    """

    model: str
    device: str
    bound: Bound
    phases: Mapping[str, float]
    phases_after: Mapping[str, float]
    work: Work
    peaks: Peaks
    memory: Memory
    samples: int
    before: float
    after: float
    gain: tuple[float, float, float] | None
    faults: tuple[Fault, ...]
    trials: tuple[Trial, ...]
    edits: tuple[Edit, ...]
    original: Setup
    setup: Setup
    drift: float | None = None
    compile_seconds: float = 0.0
    batch: BatchOffer | None = None
    rate: LearningRate | None = None
    seconds: float = 0.0
    budget: float = 0.0
    notes: tuple[str, ...] = field(default=())

    @property
    def kept(self) -> tuple[Trial, ...]:
        """The changes that are worth their lines."""
        return tuple(one for one in self.trials if one.outcome == "kept")

    @property
    def verdict(self) -> str:
        """One sentence."""
        bound = f"{self.bound.name}-bound ({self.bound.share:.0%} of a step)"
        if self.gain is None:
            return f"{bound}; nothing that was tried gains beyond noise: leave the loop as it is"
        low, high = self.gain[1:]
        lines = f"{len(self.edits)} place{'s' if len(self.edits) != 1 else ''} to change"
        return f"{bound}; {self.gain[0]:.2f}× faster ({low:.2f} to {high:.2f}) with {lines}"

    def page(self) -> Page:
        """What there is to show."""
        return Page(
            what="training step",
            title=self.model,
            lead=(
                self.verdict,
                f"on {self.device}",
                f"took {units.seconds(self.seconds)} of {units.seconds(self.budget)}",
            ),
            tiles=self._tiles(),
            columns=("outcome", "gain", "drift of the loss"),
            rows=tuple(_row(trial) for trial in self.trials if trial.outcome != "not tried"),
            tree_title="Tried",
            figure=_picture((("before", self.phases), ("after", self.phases_after))),
            figure_title="Where a step's time goes",
            lists=self._lists(),
            notes=self.notes,
        )

    def _tiles(self) -> tuple[tuple[str, str, str], ...]:
        phases = ", ".join(
            f"{name} {units.seconds(spent)}" for name, spent in self.phases.items() if spent > 1e-6
        )
        rate = f"{self.samples / self.before:.4g} samples/s" if self.samples else ""
        memory = self.memory
        parts = (
            f"parameters {units.size(memory.parameters)}, gradients {units.size(memory.gradients)},"
            f" optimizer {units.size(memory.optimizer)}, activations"
            f" {units.size(memory.activations)}"
        )
        found = [
            ("bound by", self.bound.name, f"{self.bound.share:.0%} of a step"),
            ("a step", units.seconds(self.before), ", ".join(filter(None, (rate, phases)))),
        ]
        if self.gain:
            rate = f"{self.samples / self.after:.4g} samples/s" if self.samples else ""
            found.append(("then", units.seconds(self.after), rate))
            spread = f"{self.gain[1]:.2f} to {self.gain[2]:.2f}, 95 % interval"
            found.append(("faster", f"{self.gain[0]:.2f}×", spread))
        if self.drift is not None:
            small = "largest relative difference of the first losses, same seed and batches"
            found.append(("loss", f"{self.drift:.1e}", small))
        found.append(("memory", units.size(memory.total), parts))
        return tuple(found)

    def _lists(self) -> tuple[tuple[str, tuple[Item, ...]], ...]:
        faults = tuple(Item(one.name, one.evidence, one.remedy, "bad") for one in self.faults)
        edits = tuple(
            Item(one.where, f"{one.old}  →" if one.old else one.why, one.new, "good")
            for one in self.edits
        )
        why = tuple(
            Item(one.change, f"{one.outcome}: {one.why}", "", _TONES.get(one.outcome, ""))
            for one in self.trials if one.outcome != "not tried"
        )  # fmt: skip
        untried = tuple(
            Item(one.change, one.why, "", "muted")
            for one in self.trials if one.outcome == "not tried"
        )  # fmt: skip
        return (
            ("Found", faults),
            ("Lines to change", edits),
            ("Tried, and why", why),
            ("Not tried", untried),
            ("Offered: these change the training itself", self._offers()),
        )

    def _offers(self) -> tuple[Item, ...]:
        found = []
        if self.batch is not None:
            rates = ", ".join(
                f"{size}: {f'{rate:.4g}/s' if rate else 'out of memory'}"
                for size, rate in self.batch.rates
            )
            head = f"batch {self.batch.size}" if self.batch.size else "batch size: keep it"
            found.append(Item(head, self.batch.why, rates))
        if self.rate is not None:
            if self.rate.value is None:
                found.append(Item("learning rate: no advice", self.rate.why))
            else:
                text = (
                    f"{self.rate.low:.1e} to {self.rate.high:.1e}, confidence"
                    f" {self.rate.confidence}: {self.rate.why}"
                )
                found.append(Item(f"learning rate {self.rate.value:.1e}", text))
        return tuple(found)


def _row(trial: Trial) -> Row:
    gain = f"{trial.gain[0]:.2f}×" if trial.gain else ""
    drift = f"{trial.drift:.1e}" if trial.drift is not None else ""
    tone = _TONES.get(trial.outcome, "")
    return Row(trial.change, "", (trial.outcome, gain, drift), tone=tone)


def _picture(bars: tuple[tuple[str, Mapping[str, float]], ...]) -> str:
    """Two stacked bars on one scale, as SVG."""
    longest = max((sum(phases.values()) for _, phases in bars), default=0.0) or 1.0
    parts, y = [], 4
    for name, phases in bars:
        total = sum(phases.values())
        parts.append(f'<text x="0" y="{y + 15}">{escape(name)} {units.seconds(total)}</text>')
        x = 130.0
        for phase, colour in zip(PHASES, _COLOURS, strict=True):
            width = 560 * phases.get(phase, 0.0) / longest
            label = escape(f"{phase} {units.seconds(phases.get(phase, 0.0))}")
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="20" fill="{colour}">'
                f"<title>{label}</title></rect>"
            )
            x += width
        y += 28
    for place, (phase, colour) in enumerate(zip(PHASES, _COLOURS, strict=True)):
        parts.append(
            f'<rect x="{130 + 80 * place}" y="{y + 4}" width="10" height="10" fill="{colour}"/>'
            f'<text x="{144 + 80 * place}" y="{y + 13}">{phase}</text>'
        )
    body = "".join(parts)
    return (
        '<svg viewBox="0 0 700 84" width="700" height="84" font-size="12" fill="currentColor" '
        f'role="img" aria-label="Seconds of each phase of a step">{body}</svg>'
    )
