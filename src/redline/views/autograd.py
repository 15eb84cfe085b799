"""`autograd_view()`: the graph that a backward will walk, and what it keeps in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from redline.errors import InputError
from redline.report import units
from redline.views import autograd_nodes, picture
from redline.views.gradients import absence
from redline.views.model_graph import prefixes
from redline.views.page import Item, Page, Row, View
from redline.views.storage import key, keys, spell
from redline.views.watch import Watch, as_watch

_FREED = "a backward has freed what was saved; look before it, or use backward(retain_graph=True)"
_PACKED = (
    "of {} saved tensors only what a hook packed is there (checkpointing, offloading): their size "
    "is not known, and they are not unpacked for it"
)
_UNNAMED = "give the model too, autograd_view(loss, model), to have names and to fold by module"
_ESTIMATED = (
    "nobody watched the forward, so which module an operator without parameters belongs to is "
    "inferred from its neighbours; with redline.watch(model) it is exact"
)


@dataclass(frozen=True)
class Saved:
    """A tensor that a node keeps. role: "activation", "parameter", "buffer", "input" or "leaf".

    bytes: of the memory kept alive by it, which is more than its elements' when it is a view;
    0 where another node before holds the same memory.
    """

    name: str
    tensor: str
    role: str
    bytes: int


@dataclass(frozen=True)
class Node:
    """One node. `inputs` are the nodes that it passes gradients to, by their number; `stops` is how
    many of its inputs need none. `leaf` names the tensor whose .grad it fills, if it is a leaf.
    """

    name: str
    path: str
    saved: tuple[Saved, ...]
    inputs: tuple[int, ...]
    stops: int
    leaf: str = ""

    @property
    def activation_bytes(self) -> int:
        """What it keeps alive that would else be gone."""
        return sum(one.bytes for one in self.saved if one.role == "activation")


@dataclass(frozen=True)
class AutogradView(View):
    """What autograd_view() found; print it, or write_html() it, or take its svg().

    nodes: in the order of the forward, leaves last. folding: "watched" (exact), "estimated" (by
    neighbours) or "none". cuts: (kind, module, where, tensor, times) for what was detached or run
    under no_grad, known only with a watch. unreached: (parameter, why) for the model's parameters
    that get no gradient from this loss.
    """

    model: str
    loss: str
    nodes: tuple[Node, ...]
    folding: str
    cuts: tuple[tuple[str, str, str, str, int], ...] = ()
    unreached: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for the backward alone: no parameters, buffers or inputs."""
        return sum(node.activation_bytes for node in self.nodes)

    @property
    def leaves(self) -> tuple[str, ...]:
        """The tensors that get a gradient."""
        return tuple(node.leaf for node in self.nodes if node.leaf)

    def svg(self, depth: int | None = None) -> str:
        """The picture alone, one SVG. Nodes are folded `depth` levels of modules deep (None: as
        deep as 60 rows allow).
        """
        return picture.graph(self.nodes, depth)

    def page(self) -> Page:
        """The page that is printed."""
        return Page(
            what="autograd view",
            title=self.model or "a loss",
            lead=(f"loss: {self.loss}", self._how()),
            tiles=_tiles(self),
            columns=("operators", "nodes", "leaves", "saves"),
            rows=_tree(self.nodes, self.folding),
            tree_title="Modules" if self.folding != "none" else "Operators",
            figure=self.svg(),
            figure_title="The graph",
            figure_in_full=picture.graph_in_full(self.nodes),
            caption="Forward goes down, gradients go up. A line beside the rows skips those that "
            "it passes. The bar is what a row saves for the backward.",
            lists=(
                ("Gradients stop here", tuple(_cut_items(self))),
                ("Parameters that get no gradient", tuple(_unreached_items(self))),
                ("Largest saved tensors", tuple(_largest(self.nodes))),
            ),
            notes=self.notes,
        )

    def _how(self) -> str:
        told = {"watched": "folded by the modules that ran", "estimated": "folded by neighbours"}
        return told.get(self.folding, "not folded: no model was given")

    def __repr__(self) -> str:
        return f"AutogradView({len(self.nodes)} nodes, {units.size(self.saved_bytes)} saved)"


def autograd_view(loss: torch.Tensor, of: torch.nn.Module | Watch | None = None) -> AutogradView:
    """The autograd graph of a tensor: operators, saved tensors and their bytes, leaves, cuts.

    Look before backward(), which frees what was saved. Nothing is run or changed.

    Args:
        loss: the tensor that backward() would be called on; any shape.
        of: the model, which gives names and folds by module; or the Watch that saw the forward,
            with which the folding is exact and detached and no_grad parts are found.

    Raises:
        InputError: not a tensor, or one without a graph.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> view = autograd_view((x * x).sum())
        >>> [node.name for node in view.nodes], view.leaves
        (['MulBackward0', 'SumBackward0', 'AccumulateGrad'], ('tensor 2 float32',))
    """
    model, watch = as_watch(of)
    raw = sorted(autograd_nodes.walk([_root(loss)]), key=autograd_nodes.number)
    paths = _paths(raw, model, watch)
    census = _Census(raw, model, watch)
    numbers = {node: index for index, node in enumerate(raw)}
    nodes = tuple(
        Node(
            autograd_nodes.name(node),
            paths[index],
            census.saved(node),
            tuple(numbers[other] for other, _ in node.next_functions if other is not None),
            sum(other is None for other, _ in node.next_functions),
            census.leaf(node),
        )
        for index, node in enumerate(raw)
    )
    reached = {id(node.variable) for node in raw if autograd_nodes.is_leaf(node)}
    return AutogradView(
        type(model).__name__ if model is not None else "",
        spell(loss),
        nodes,
        "watched" if watch else "estimated" if model is not None else "none",
        tuple((c.kind, c.path, c.where, c.tensor, c.times) for c in (watch.cuts if watch else ())),
        tuple(
            (name, absence(one, watch, True))
            for name, one in (model.named_parameters() if model is not None else ())
            if id(one) not in reached
        ),
        tuple(_notes(census, model, watch)),
    )


def _root(loss: object) -> Any:
    if not isinstance(loss, torch.Tensor):
        raise InputError(
            f"got a {type(loss).__qualname__}, expected the loss as a tensor",
            hint="give the tensor that backward() is called on",
        )
    if not loss.requires_grad:
        raise InputError(
            "this tensor has no autograd graph: it does not require a gradient",
            where=f"a tensor of {spell(loss)}",
            hint="it was made under no_grad, detached, from .item() or NumPy, or from tensors that "
            "all have requires_grad=False; redline.watch(model) around the forward says where",
        )
    return autograd_nodes.root_of(loss)


def _paths(raw: Sequence[Any], model: Any, watch: Watch | None) -> dict[int, str]:
    """Number of a node -> the module it belongs to; a leaf belongs to its parameter's."""
    names = {} if model is None else {id(one): name for name, one in model.named_parameters()}
    owners = {identity: name.rpartition(".")[0] for identity, name in names.items()}
    if watch is None:
        inner = [node for node in raw if not autograd_nodes.is_leaf(node)]
        paths = autograd_nodes.estimated_paths(inner, owners)
    else:
        paths = {}
    for index, node in enumerate(raw):
        if autograd_nodes.is_leaf(node):
            paths[index] = owners.get(id(node.variable), "")
        elif watch is not None:
            paths[index] = watch.modules.path_of(node._sequence_nr()) or ""
    return paths


class _Census:
    """Gives every saved tensor its role, and counts memory that several hold once."""

    def __init__(self, raw: Sequence[Any], model: Any, watch: Watch | None) -> None:
        leaves = [node.variable for node in raw if autograd_nodes.is_leaf(node)]
        self.names = {} if model is None else {id(p): name for name, p in model.named_parameters()}
        self.roles = dict.fromkeys(keys(leaves), "leaf")
        if watch is not None:
            self.roles |= dict.fromkeys(watch.modules.inputs, "input")
        if model is not None:
            self.roles |= dict.fromkeys(keys(model.buffers()), "buffer")
            self.roles |= dict.fromkeys(keys(model.parameters()), "parameter")
        self.seen: set[int] = set()
        self.freed = self.packed = 0

    def saved(self, node: Any) -> tuple[Saved, ...]:
        found = []
        for name, one in autograd_nodes.saved(node):
            if isinstance(one, torch.Tensor):
                identity, size = key(one)
                role = self.roles.get(identity, "activation")
                found.append(Saved(name, spell(one), role, 0 if identity in self.seen else size))
                self.seen.add(identity)
            else:
                self.freed += one is None
                self.packed += one is not None
        return tuple(found)

    def leaf(self, node: Any) -> str:
        if not autograd_nodes.is_leaf(node):
            return ""
        tensor = node.variable
        known: str = self.names.get(id(tensor), f"tensor {spell(tensor)}")
        return known


def _notes(census: _Census, model: Any, watch: Watch | None) -> list[str]:
    said = []
    if census.freed and not census.seen:
        said.append(_FREED)
    if census.packed:
        said.append(_PACKED.format(census.packed))
    if model is None:
        said.append(_UNNAMED)
    elif watch is None:
        said.append(_ESTIMATED)
    return said


def _tiles(view: AutogradView) -> tuple[tuple[str, str, str], ...]:
    inner = [node for node in view.nodes if not node.leaf]
    roles = Counter[str]()
    for node in view.nodes:
        for one in node.saved:
            roles[one.role] += one.bytes
    words = {"parameter": "parameters", "buffer": "buffers", "input": "inputs", "leaf": "leaves"}
    besides = ", ".join(
        f"{units.size(roles[role])} of {word}" for role, word in words.items() if roles[role]
    )
    edges = sum(node.stops for node in view.nodes)
    return (
        ("operators", str(len(inner)), f"{len({node.name for node in inner})} kinds"),
        ("leaves", str(len(view.leaves)), "tensors that get a gradient"),
        (
            "saved for backward",
            units.size(view.saved_bytes),
            f"besides {besides}" if besides else "",
        ),
        ("inputs without gradient", str(edges), "where requires_grad ends"),
    )


def _tree(nodes: Sequence[Node], folding: str) -> tuple[Row, ...]:
    """By module; without a model, by kind of operator."""
    whole = max(sum(node.activation_bytes for node in nodes), 1)
    if folding == "none":
        kinds = dict.fromkeys(node.name for node in nodes)
        groups = [(kind, [node for node in nodes if node.name == kind]) for kind in kinds]
        return tuple(_row(kind, "", group, whole) for kind, group in groups)
    members: dict[str, list[Node]] = {}
    for node in nodes:
        for path in prefixes(node.path):
            members.setdefault(path, []).append(node)
    children: dict[str, list[str]] = {}
    for path in members:
        if path:
            children.setdefault(path.rpartition(".")[0], []).append(path)

    def row(path: str) -> Row:
        inner = tuple(row(child) for child in children.get(path, ()))
        return _row(path.rpartition(".")[2] or "model", "", members[path], whole, inner)

    return (row(""),)


def _row(
    name: str, kind: str, nodes: Sequence[Node], whole: int, inner: tuple[Row, ...] = ()
) -> Row:
    operators = Counter(picture.operator(node.name) for node in nodes if not node.leaf)
    leaves = sum(bool(node.leaf) for node in nodes)
    size = sum(node.activation_bytes for node in nodes)
    told = [f"{one} ×{n}" if n > 1 else one for one, n in operators.most_common(2)]
    more = f" +{len(operators) - 2}" if len(operators) > 2 else ""
    cells = (
        ", ".join(told) + more,
        str(len(nodes) - leaves) if len(nodes) > leaves else "",
        str(leaves) if leaves else "",
        units.size(size) if size else "",
    )
    return Row(name, kind, cells, size / whole, "", inner)


def _cut_items(view: AutogradView) -> list[Item]:
    items = []
    for kind, path, where, tensor, times in view.cuts:
        often = f", {times} times" if times > 1 else ""
        items.append(Item(kind, f"{tensor} in {path or 'the model'}, {where}{often}", "", "warn"))
    return items


def _unreached_items(view: AutogradView) -> list[Item]:
    """One entry for each module and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, why in view.unreached:
        owner, _, last = name.rpartition(".")
        groups.setdefault((owner, why), []).append(last)
    return [
        Item(f"{owner}." * bool(owner) + ", ".join(names), why, "", "warn")
        for (owner, why), names in groups.items()
    ]


def _largest(nodes: Sequence[Node]) -> list[Item]:
    found = [
        (one.bytes, node, one)
        for node in nodes
        for one in node.saved
        if one.role == "activation" and one.bytes
    ]
    found.sort(key=lambda entry: -entry[0])
    return [
        Item(units.size(size), f"{one.tensor}, {one.name} of {node.name} in {node.path or 'model'}")
        for size, node, one in found[:5]
    ]
