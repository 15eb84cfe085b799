"""The autograd graph as torch holds it: its nodes, and what each keeps for the backward."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from redline.views.calls import common

_LEAF_NUMBER = 2**64 - 1  # AccumulateGrad has no place in the order of the forward
_RAW = "_raw_saved_"


def walk(roots: Iterable[Any]) -> list[Any]:
    """Every node that can be reached from these, each once; without recursion, however deep.

    Leaves (AccumulateGrad) are among them. In no order that means anything.
    """
    found = dict.fromkeys(roots)
    waiting = list(found)
    while waiting:
        for follower, _ in waiting.pop().next_functions:
            if follower is not None and follower not in found:
                found[follower] = None
                waiting.append(follower)
    return list(found)


def is_leaf(node: Any) -> bool:
    """Whether a node is where a gradient ends in a tensor's .grad."""
    return hasattr(node, "variable")


def number(node: Any) -> int:
    """Its place in the order of the forward; leaves come last."""
    return _LEAF_NUMBER if is_leaf(node) else int(node._sequence_nr())


def name(node: Any) -> str:
    """Its name without namespaces: "ConvolutionBackward0", "AccumulateGrad"."""
    return str(node.name()).rpartition("::")[2]


def saved(node: Any) -> Iterator[tuple[str, Any]]:
    """(name, tensor) for all that a node keeps; None for one that was freed, and the object that a
    hook packed in place of one. Nothing is unpacked, so a checkpoint does not run again.
    """
    for attribute in dir(node):
        if attribute.startswith(_RAW):
            try:
                held = getattr(node, attribute)
            except RuntimeError:  # freed: what a custom Function or a list says
                yield attribute.removeprefix(_RAW), None
                continue
            several = held if isinstance(held, Sequence) else [held]
            for index, one in enumerate(several):
                suffix = f"[{index}]" if isinstance(held, Sequence) else ""
                yield attribute.removeprefix(_RAW) + suffix, _data(one)


def _data(one: Any) -> Any:
    try:
        return one.data
    except RuntimeError:
        return None


def estimated_paths(nodes: Sequence[Any], owners: dict[int, str]) -> dict[int, str]:
    """Index of a node -> module, where nobody watched the forward.

    A node that takes a parameter in belongs to the parameter's module; one that takes none, to the
    module that holds both the one before and the one after it that do.

    Args:
        nodes: in the order of the forward.
        owners: id(parameter) -> the path of its module.
    """
    anchors = {index: path for index, node in enumerate(nodes) if (path := _anchor(node, owners))}
    places = sorted(anchors)
    paths = {}
    for index in range(len(nodes)):
        before = [anchors[place] for place in places if place <= index][-1:]
        after = [anchors[place] for place in places if place >= index][:1]
        paths[index] = common([*before, *after]) if before and after else ""
    return paths


def _anchor(node: Any, owners: dict[int, str]) -> str:
    leaves = [next_node for next_node, _ in node.next_functions if next_node and is_leaf(next_node)]
    paths = [owners[id(leaf.variable)] for leaf in leaves if id(leaf.variable) in owners]
    return common(paths) if paths else ""


def root_of(loss: torch.Tensor) -> Any:
    """The node that made a tensor; for a leaf that requires a gradient, its AccumulateGrad."""
    if loss.grad_fn is not None:
        return loss.grad_fn
    return torch.autograd.graph.get_gradient_edge(loss).node
