"""Squeeze and excitation without passes of its own over the image.

A network that weighs its channels reads the widened image twice more than it computes with it: once
to average it, once to scale it. Here the depthwise kernel adds up what it writes, and the
scales go into the weights of the 1x1 convolution that reads the image, which are fewer.
"""

from __future__ import annotations

import numpy as np

from redline.native.ir import Apply, Blocked, Load, No, Node, Program, Value


def squeeze(program: Program, lanes: int, threads: int) -> Program:
    """Averages that the kernel before them sums up, and scales folded into weights."""
    makers = {node.out: node for node in program.nodes}
    for node in program.nodes:
        maker = makers.get(node.ins[0]) if node.ins else None
        if maker and maker.kind in ("depthwise", "expand") and _averages(node, maker.out):
            _sums(node, maker, threads)
    uses = program.uses()
    for node in program.nodes:
        gate = makers.get(node.ins[0]) if node.ins else None
        if node.kind != "conv" or gate is None or not _scales(gate):
            continue
        try:
            _allowed(gate, node, uses, lanes)
        except No as reason:
            told = f"{'+'.join(gate.names)} is not folded into the weights of {node.names[-1]}"
            program.notes.append(f"{told}: {reason}")
            continue
        assert isinstance(gate.expr, Apply)
        node.ins = [load.value for load in _image_first(gate)]
        node.attrs["scaled"] = True
        node.names = gate.names + node.names
        program.nodes.remove(gate)
    return program


def _averages(node: Node, image: Value) -> bool:
    """A pool whose one window is the whole image."""
    whole = node.kind == "pool" and node.attrs["mode"] == "AveragePool"
    return whole and node.attrs["kernel"] == image.shape[2:] and not any(node.attrs["pads"])


def _sums(pool: Node, maker: Node, threads: int) -> None:
    """The maker writes a sum for each thread and channel; the pool divides their sum."""
    n, channels, height, width = maker.out.shape
    if "sums" not in maker.attrs:
        shape = (n, channels, 1, threads)
        name = f"sums of {maker.out.name}"
        maker.attrs["sums"] = Value(shape, np.dtype(np.float32), name, layout=Blocked())
    pool.ins = [maker.attrs["sums"]]
    pool.attrs |= {"kernel": (1, threads), "divisor": height * width}


def _scales(node: Node) -> bool:
    """A loop that multiplies an image by one number for each channel."""
    expr = node.expr
    if node.kind != "loop" or not isinstance(expr, Apply) or len(expr.args) != 2:
        return False
    if "".join(expr.form.split()) != "({0}*{1})" or len(node.out.shape) != 4 or node.out.base:
        return False
    if not all(isinstance(arg, Load) for arg in expr.args):
        return False
    image, scale = _image_first(node)
    n, channels, _, _ = node.out.shape
    whole = image.value.base is None and scale.value.base is None
    return (
        whole and image.value.shape == node.out.shape and scale.value.shape == (n, channels, 1, 1)
    )


def _image_first(node: Node) -> list[Load]:
    assert isinstance(node.expr, Apply)
    loads = [arg for arg in node.expr.args if isinstance(arg, Load)]
    return sorted(loads, key=lambda load: -load.value.size)


def _allowed(gate: Node, conv: Node, uses: dict[Value, int], lanes: int) -> None:
    """Raises No with the reason where the image's scales cannot be the weights'."""
    a = conv.attrs
    outs, ins, *window = a["weights"].shape
    n, _, height, width = gate.out.shape
    if uses[gate.out] != 1:
        raise No(f"the scaled image is read {uses[gate.out]} times")
    if a["groups"] != 1 or window != [1, 1] or any(a["pads"]):
        raise No("it is no 1x1 convolution")
    if n != 1 or ins < lanes:
        raise No(f"it has {n} images of {ins} channels")
    if outs >= height * width:
        raise No(f"{outs} rows of weights are more than the image's {height * width} pixels")
