"""`grad_report()`: after a backward, which gradients are missing, too large, too small, or dead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from redline.errors import InputError
from redline.views import picture
from redline.views.model_graph import prefixes
from redline.views.page import Item, Page, Row, View
from redline.views.watch import Watch, as_watch

EXPLODING = 100.0  # ‖gradient‖ / ‖weights‖: at a learning rate of 0.01 one step replaces the layer
VANISHING = (
    2**-23
)  # float32's rounding: even at a learning rate of 1 a step changes next to nothing
SPREAD = 1e4  # so many times below the median layer is vanishing too
_UNITS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


@dataclass(frozen=True)
class Parameter:
    """One parameter. state: "ok", "frozen", "none" (.grad is None), "zero" or "not finite".

    norms are L2. why: the reason of "frozen" and "none".
    """

    name: str
    shape: tuple[int, ...]
    state: str
    why: str
    grad_norm: float
    weight_norm: float


@dataclass(frozen=True)
class Layer:
    """The parameters that a module holds itself. verdict: "ok", "exploding", "vanishing",
    "not finite", "zero", "none" or "frozen".

    ratio: ‖gradient‖ / ‖weights‖; None without a gradient, or where the weights are all zero.
    dead: the numbers of output units of a Linear or Conv whose gradient is exactly zero while
    others' is not; units: how many there are, 0 where that does not apply.
    """

    path: str
    kind: str
    verdict: str
    grad_norm: float
    weight_norm: float
    ratio: float | None
    dead: tuple[int, ...]
    units: int


@dataclass(frozen=True)
class GradReport(View):
    """What grad_report() found; print it, or write_html() it.

    relus: (module, units, dead) of every ReLU with dead units, known only with a watch.
    """

    model: str
    parameters: tuple[Parameter, ...]
    layers: tuple[Layer, ...]
    relus: tuple[tuple[str, int, tuple[int, ...]], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every parameter that is to be trained has a gradient of sound size."""
        return all(layer.verdict in ("ok", "frozen") for layer in self.layers) and not any(
            parameter.state == "none" for parameter in self.parameters
        )

    def layer(self, path: str) -> Layer:
        """The layer with this path.

        Raises:
            KeyError: there is none that holds parameters.
        """
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(path)

    def page(self) -> Page:
        """The page that is printed."""
        return Page(
            what="gradient report",
            title=self.model,
            lead=("L2 norms of what is in .grad now",),
            tiles=_tiles(self),
            columns=("gradient", "weights", "ratio", "dead", "verdict"),
            rows=_tree(self),
            figure=picture.levels(
                [(layer.path, layer.ratio, layer.verdict) for layer in self.layers if layer.ratio]
            ),
            figure_title="Gradient over weights, layer by layer",
            caption="‖gradient‖ / ‖weights‖ on a logarithmic scale, in the order of the model.",
            lists=(
                ("What is wrong", tuple(_findings(self))),
                ("Parameters without a gradient", tuple(_missing(self))),
                ("Dead units", tuple(_dead(self))),
            ),
            notes=self.notes,
        )

    def __repr__(self) -> str:
        bad = sum(layer.verdict not in ("ok", "frozen") for layer in self.layers)
        return f"GradReport({self.model!r}: {bad} of {len(self.layers)} layers need a look)"


def grad_report(of: torch.nn.Module | Watch, *, exploding: float = EXPLODING) -> GradReport:
    """Gradients after a backward: missing ones and why, norms by layer, dead units.

    A layer is exploding when ‖gradient‖ is over `exploding` times ‖weights‖, vanishing when it is
    under float32's rounding of ‖weights‖ (even a step with learning rate 1 would hardly change
    them), or 10,000 times under the median layer.

    Args:
        of: the model, after backward(); or the Watch that saw its forward, with which the report
            says why a gradient is missing, and finds dead ReLUs by what came out of them.
        exploding: the limit, as a ratio.

    Raises:
        InputError: neither, or a model on the meta device.

    Example:
        >>> net = torch.nn.Linear(2, 2)
        >>> net(torch.ones(1, 2)).sum().backward()
        >>> grad_report(net).ok
        True
    """
    model, watch = as_watch(of)
    if model is None:
        raise InputError("got None, expected a model or a Watch")
    named = list(model.named_parameters())
    if meta := [name for name, one in named if one.is_meta]:
        raise InputError(f"{meta[0]} is on the meta device: it has no gradient to look at")
    backward = any(one.grad is not None for _, one in named)
    parameters = tuple(_parameter(name, one, watch, backward) for name, one in named)
    layers = _judge(
        [layer for path, part in model.named_modules() if (layer := _layer(path, part))], exploding
    )
    relus = watch.relus if watch else ()
    notes = [] if backward else ["no gradient at all: no backward has run since zero_grad()"]
    if watch is None and any(one.state == "none" for one in parameters) and backward:
        notes.append("why a gradient is missing is told by grad_report(watch), see redline.watch")
    return GradReport(
        type(model).__name__,
        parameters,
        layers,
        tuple((relu.path, relu.units, relu.dead) for relu in relus if relu.dead),
        tuple(notes),
    )


def absence(parameter: torch.Tensor, watch: Watch | None, backward: bool) -> str:
    """Why a parameter gets no gradient, as exactly as is known."""
    if not parameter.requires_grad:
        return "frozen: its requires_grad is False"
    if not backward:
        return "no backward has run"
    if watch is None:
        return "not part of the loss: unused, or cut off by detach() or no_grad"
    if not watch.calls:
        return "the watch saw no forward of this model"
    uses = watch.uses.get(id(parameter), [])
    cuts = [cut for cut in watch.cuts if id(parameter) in cut.parameters]
    if not uses and not cuts:
        return "never used in the forward"
    if cuts and (not uses or not any(use.grad for use in uses)):
        return f"used only without gradients ({cuts[0].kind}), {cuts[0].where}"
    if cuts:
        return f"its result is cut off by {cuts[0].kind}, {cuts[0].where}"
    if not any(use.grad for use in uses):
        return f"used only without gradients, {uses[0].where}"
    return f"used, {uses[0].where}, but the result does not reach the loss"


def _parameter(
    name: str, one: torch.nn.Parameter, watch: Watch | None, backward: bool
) -> Parameter:
    size, weight = _norm(one.grad), _norm(one)
    if one.grad is None:
        state = "none" if one.requires_grad else "frozen"
        why = absence(one, watch, backward)
    else:
        state, why = ("zero" if size == 0 else "ok" if math.isfinite(size) else "not finite"), ""
    return Parameter(name, tuple(one.shape), state, why, size, weight)


def _norm(tensor: torch.Tensor | None) -> float:
    """L2, in float64 so that a large float16 gradient does not overflow here."""
    if tensor is None:
        return 0.0
    held = tensor.detach()
    held = held.coalesce().values() if held.is_sparse else held
    kind = torch.complex128 if held.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(held.to(kind)))


def _layer(path: str, module: torch.nn.Module) -> Layer | None:
    """What a module holds itself, before it is judged; None if that is nothing."""
    held = list(module.parameters(recurse=False))
    if not held:
        return None
    size = math.hypot(*(_norm(one.grad) for one in held))
    weight = math.hypot(*(_norm(one) for one in held if one.grad is not None))
    if all(one.grad is None for one in held):
        verdict = "none" if any(one.requires_grad for one in held) else "frozen"
    else:
        verdict = "zero" if size == 0 else "ok" if math.isfinite(size) else "not finite"
    ratio = size / weight if verdict == "ok" and weight else None
    dead, count = _dead_units(module) if verdict == "ok" else ((), 0)
    return Layer(path, type(module).__name__, verdict, size, weight, ratio, dead, count)


def _dead_units(module: torch.nn.Module) -> tuple[tuple[int, ...], int]:
    """Output units whose row of the weight, and bias, got a gradient of exactly zero."""
    if not isinstance(module, _UNITS) or module.weight.grad is None:
        return (), 0
    alive = (module.weight.grad != 0).flatten(1).any(1)
    if module.bias is not None and module.bias.grad is not None:
        alive = alive | (module.bias.grad != 0)
    return tuple((~alive).nonzero().flatten().tolist()), len(alive)


def _judge(layers: Sequence[Layer], exploding: float) -> tuple[Layer, ...]:
    """Give each layer with a gradient its verdict, by its own ratio and against the median."""
    ratios = [layer.ratio for layer in layers if layer.ratio is not None]
    middle = median(ratios) if ratios else 0.0
    judged = []
    for layer in layers:
        verdict = layer.verdict
        if layer.ratio is not None:
            if layer.ratio > exploding:
                verdict = "exploding"
            elif layer.ratio < max(VANISHING, min(middle, 1.0) / SPREAD):
                verdict = "vanishing"
        judged.append(
            Layer(
                layer.path, layer.kind, verdict, layer.grad_norm, layer.weight_norm, layer.ratio,
                layer.dead, layer.units,
            )
        )  # fmt: skip
    return tuple(judged)


def _tiles(report: GradReport) -> tuple[tuple[str, str, str], ...]:
    def count(*verdicts: str) -> int:
        return sum(layer.verdict in verdicts for layer in report.layers)

    missing = sum(one.state == "none" for one in report.parameters)
    dead = sum(len(layer.dead) for layer in report.layers)
    whole = math.hypot(*(one.grad_norm for one in report.parameters))
    return (
        ("gradient norm", _short(whole), "all parameters together"),
        ("layers", str(len(report.layers)), f"{count('frozen')} frozen" if count("frozen") else ""),
        ("without gradient", str(missing), "parameters that should have one"),
        ("exploding", str(count("exploding", "not finite")), "layers"),
        ("vanishing", str(count("vanishing", "zero")), "layers"),
        ("dead units", str(dead), "of Linear and Conv layers"),
    )


def _tree(report: GradReport) -> tuple[Row, ...]:
    members: dict[str, list[Layer]] = {}
    for layer in report.layers:
        for path in prefixes(layer.path):
            members.setdefault(path, []).append(layer)
    children: dict[str, list[str]] = {}
    for path in members:
        if path:
            children.setdefault(path.rpartition(".")[0], []).append(path)
    kinds = {layer.path: layer.kind for layer in report.layers}
    whole = math.hypot(*(layer.grad_norm for layer in report.layers))

    def row(path: str) -> Row:
        inner = tuple(row(child) for child in children.get(path, ()))
        name = path.rpartition(".")[2] or "model"
        return _row(name, kinds.get(path, ""), members[path], whole, inner)

    return (row(""),) if members else ()


def _row(
    name: str, kind: str, layers: Sequence[Layer], whole: float, inner: tuple[Row, ...]
) -> Row:
    size = math.hypot(*(layer.grad_norm for layer in layers))
    weight = math.hypot(*(layer.weight_norm for layer in layers))
    dead, count = sum(len(layer.dead) for layer in layers), sum(layer.units for layer in layers)
    bad = [layer.verdict for layer in layers if layer.verdict not in ("ok", "frozen")]
    if len(layers) == 1:
        verdict = layers[0].verdict
    else:
        verdict = ", ".join(f"{bad.count(one)} {one}" for one in dict.fromkeys(bad)) or "ok"
    cells = (
        _short(size) if size else "",
        _short(weight) if weight else "",
        _short(size / weight) if weight and size else "",
        f"{dead} of {count}" if dead else "",
        verdict,
    )
    share = size / whole if whole and math.isfinite(whole) else 0.0
    return Row(name, kind, cells, share, "bad" if bad and not inner else "", inner)


def _short(value: float) -> str:
    return f"{value:.3g}"


def _findings(report: GradReport) -> list[Item]:
    helps = {
        "exploding": "clip it (torch.nn.utils.clip_grad_norm_), lower the learning rate, normalize",
        "vanishing": "residual connections, normalization, ReLU in place of sigmoid or tanh",
        "not finite": "torch.autograd.set_detect_anomaly(True) names the operator that made it",
        "zero": "a zero factor above it, such as a gate that starts at zero, or dead units",
    }
    items = []
    for verdict, hint in helps.items():
        found = [layer for layer in report.layers if layer.verdict == verdict]
        if found:
            shown = ", ".join(
                f"{layer.path or 'model'}"
                + (f" ({_short(layer.ratio)}× its weights)" if layer.ratio else "")
                for layer in found[:4]
            )
            more = f" and {len(found) - 4} more" if len(found) > 4 else ""
            items.append(Item(verdict, shown + more, hint, "bad"))
    return items


def _missing(report: GradReport) -> list[Item]:
    """One entry for each module and reason; frozen ones last."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in report.parameters:
        if one.why:
            owner, _, last = one.name.rpartition(".")
            groups.setdefault((one.state, owner, one.why), []).append(last)
    return [
        Item(f"{owner}." * bool(owner) + ", ".join(names), why, "", _tone(state))
        for (state, owner, why), names in sorted(groups.items(), key=lambda g: g[0][0] == "frozen")
    ]


def _tone(state: str) -> str:
    return "muted" if state == "frozen" else "warn"


def _dead(report: GradReport) -> list[Item]:
    items = [
        Item(
            layer.path or "model",
            f"{len(layer.dead)} of {layer.units} output units got a gradient of exactly zero: "
            + _numbers(layer.dead),
            "",
            "warn",
        )
        for layer in report.layers
        if layer.dead
    ]
    return items + [
        Item(path or "model", f"ReLU: {len(dead)} of {count} units gave zero for every sample: "
             + _numbers(dead), "", "warn")
        for path, count, dead in report.relus
    ]  # fmt: skip


def _numbers(found: Sequence[int]) -> str:
    return ", ".join(map(str, found[:12])) + (", …" if len(found) > 12 else "")
