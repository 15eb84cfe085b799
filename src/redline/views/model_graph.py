"""What `graph_view()` gives: a module's tree with shapes, parameters, FLOPs and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redline.report import units
from redline.views import picture
from redline.views.calls import Call
from redline.views.page import Page, Row, View


@dataclass(frozen=True)
class Module:
    """One module. Figures include the modules inside it; bytes and FLOPs are of all its calls.

    made: bytes of new tensors that its forward makes (views share, and count once).
    saved: bytes that its forward leaves to the backward, without parameters and model inputs.
    container: it has no forward of its own, like a ModuleList, and so is never called.
    A weight that two modules share is given to both, and to what holds both once.
    """

    path: str
    kind: str
    calls: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int
    trainable: int
    parameter_bytes: int
    flops: int
    backward_flops: int
    made: int
    saved: int
    container: bool = False

    @property
    def depth(self) -> int:
        """Levels below the model, which is 0."""
        return self.path.count(".") + 1 if self.path else 0


@dataclass(frozen=True)
class GraphView(View):
    """What graph_view() found; print it, or write_html() it. `modules[0]` is the model.

    saved_inputs: bytes of the model's own inputs that the backward needs.
    peak_inference, peak_training: the most that is alive at once, in bytes, without parameters and
    inputs: in a forward without gradients, and in a forward and backward (gradients included).
    measured: the model ran on real values; else its operators only told shapes.
    """

    model: str
    device: str
    mode: str
    inputs: tuple[str, ...]
    modules: tuple[Module, ...]
    saved_inputs: int
    peak_inference: int
    peak_training: int
    order: tuple[tuple[str, int, int], ...]
    measured: bool = False
    notes: tuple[str, ...] = ()

    def module(self, path: str) -> Module:
        """The module with this path; "" is the model.

        Raises:
            KeyError: there is none.
        """
        for module in self.modules:
            if module.path == path:
                return module
        raise KeyError(path)

    def page(self) -> Page:
        """The page that is printed."""
        root = self.modules[0]
        return Page(
            what="graph view",
            title=self.model,
            lead=(", ".join(self.inputs), f"{self.device}, {self.mode}", self._how()),
            tiles=_tiles(self),
            columns=("output", "params", "forward", "backward", "makes", "saves"),
            rows=_rows(self.modules, max(root.saved, 1)),
            figure=picture.strip(self.order),
            figure_title="In the order in which they run",
            caption="Each step is a module without parts, or what a module does itself: its "
            "forward FLOPs above the line, the bytes that it saves for the backward below.",
            notes=self.notes,
        )

    def _how(self) -> str:
        return "measured on real values" if self.measured else "no value was computed"

    def __repr__(self) -> str:
        root = self.modules[0]
        return f"GraphView({self.model!r}: {units.flops(root.flops)}, {len(self.modules)} modules)"


def _tiles(view: GraphView) -> tuple[tuple[str, str, str], ...]:
    root = view.modules[0]
    frozen = root.parameters - root.trainable
    kept = f"and {units.size(view.saved_inputs)} of inputs" if view.saved_inputs else ""
    return (
        (
            "parameters",
            units.count(root.parameters),
            units.size(root.parameter_bytes)
            + (f", {units.count(frozen)} frozen" if frozen else ""),
        ),
        ("forward", units.flops(root.flops), "a multiply-add is 2"),
        ("backward", units.flops(root.backward_flops), ""),
        ("saved for backward", units.size(root.saved), kept),
        ("peak, inference", units.size(view.peak_inference), "besides weights and inputs"),
        ("peak, training", units.size(view.peak_training), "gradients included"),
    )


def _rows(modules: tuple[Module, ...], whole: int) -> tuple[Row, ...]:
    """The tree: each module under the one whose path it extends."""
    children: dict[str, list[Module]] = {}
    for module in modules[1:]:
        children.setdefault(module.path.rpartition(".")[0], []).append(module)

    def row(module: Module) -> Row:
        name = module.path.rpartition(".")[2] or "model"
        inner = tuple(row(child) for child in children.get(module.path, ()))
        called = module.calls or module.container or any(child.tone != "muted" for child in inner)
        kind = module.kind if module.calls < 2 else f"{module.kind} ×{module.calls}"
        cells = _cells(module, bool(called))
        return Row(name, kind, cells, module.saved / whole, "" if called else "muted", inner)

    return (row(modules[0]),)


def _cells(module: Module, called: bool) -> tuple[str, ...]:
    if not called:
        return ("not called", _count(module.parameters), "", "", "", "")
    more = f" +{len(module.outputs) - 1}" if len(module.outputs) > 1 else ""
    return (
        module.outputs[0].removesuffix(" float32") + more if module.outputs else "",
        _count(module.parameters),
        units.flops(module.flops) if module.flops else "",
        units.flops(module.backward_flops) if module.backward_flops else "",
        units.size(module.made) if module.made else "",
        units.size(module.saved) if module.saved else "",
    )


def _count(parameters: int) -> str:
    return units.count(parameters) if parameters else ""


def table(
    model: torch.nn.Module, calls: list[Call], backward: dict[str, int]
) -> tuple[Module, ...]:
    """One Module for every part of a model, from its calls and the FLOPs of each part's backward.

    `calls` hold their own share in made, saved and flops; here each is added to all that hold it.
    """
    by_path: dict[str, list[Call]] = {}
    sums = {path: [0, 0, 0, 0] for path, _ in model.named_modules()}
    for call in calls:
        by_path.setdefault(call.path, []).append(call)
        for path in prefixes(call.path):
            sums[path][0] += call.flops
            sums[path][2] += call.made
            sums[path][3] += call.saved
    for owner, flops in backward.items():
        for path in prefixes(owner):
            sums[path][1] += flops
    rows = []
    for path, module in model.named_modules():
        mine = by_path.get(path, [])
        parameters, trainable, size = _parameters(module)
        flops, backward_flops, made, saved = sums[path]
        rows.append(
            Module(
                path=path,
                kind=type(module).__name__,
                calls=len(mine),
                inputs=mine[0].inputs if mine else (),
                outputs=mine[0].outputs if mine else (),
                parameters=parameters,
                trainable=trainable,
                parameter_bytes=size,
                flops=flops,
                backward_flops=backward_flops,
                made=made,
                saved=saved,
                container=type(module).forward is torch.nn.Module.forward,
            )
        )
    return tuple(rows)


def prefixes(path: str) -> list[str]:
    """A path and all that hold it, the model ("") first.

    Example:
        >>> prefixes("a.0.b")
        ['', 'a', 'a.0', 'a.0.b']
    """
    parts = path.split(".") if path else []
    return ["", *(".".join(parts[: end + 1]) for end in range(len(parts)))]


def _parameters(module: torch.nn.Module) -> tuple[int, int, int]:
    """(elements, of them trainable, bytes) of a module and all inside it."""
    held = list(module.parameters())
    return (
        sum(one.numel() for one in held),
        sum(one.numel() for one in held if one.requires_grad),
        sum(one.numel() * one.element_size() for one in held),
    )


def order(calls: list[Call]) -> tuple[tuple[str, int, int], ...]:
    """(path, own FLOPs, own saved bytes) of every call that has some, in the order of running."""
    return tuple((call.path, call.flops, call.saved) for call in calls if call.flops or call.saved)
