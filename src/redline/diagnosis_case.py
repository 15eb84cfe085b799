"""What the frames of an exception add to its words: the tensor on the line, the layer, the writes.

Each function in LOOKS yields sentences about one case; a row of the corpus names the one it wants.
Nothing is run again: variables are read, and of the line only views are worked out.
"""

from __future__ import annotations

import ast
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from redline import errors


@dataclass(frozen=True)
class Case:
    """One exception, with the frames that it went through and the groups of its pattern.

    `error` is None and `chain` empty where only the words are left.
    """

    error: BaseException | None
    chain: list[BaseException]
    groups: dict[str, str]

    def frames(self) -> Iterator[tuple[FrameType, int]]:
        """The innermost first, with the line that was running in each."""
        for error in reversed(self.chain):
            yield from reversed(list(traceback.walk_tb(error.__traceback__)))

    def statement(self, frame: FrameType, line: int) -> ast.AST | None:
        """The parsed statement at a line; None where the source is not there or reads otherwise."""
        code = traceback.FrameSummary(frame.f_code.co_filename, line, frame.f_code.co_name).line
        for text in (code or "", f"{code} pass", f"({code})"):
            try:
                return ast.parse(text.strip())
            except SyntaxError:
                continue
        return None


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(",") if one.strip())


def _look_view(case: Case) -> Iterator[str]:
    """The view call on the line, with its tensor taken from the frame's variables."""
    from redline.layout.expression import value_of
    from redline.layout.view import explain_view

    for frame, line in case.frames():
        tree = case.statement(frame, line)
        for node in ast.walk(tree) if tree else ():
            named = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if not named or node.func.attr not in ("view", "view_as"):  # type: ignore[attr-defined]
                continue
            names = _variables(frame)
            try:
                tensor = value_of(node.func.value, names)  # type: ignore[attr-defined]
                sizes = [value_of(one, names) for one in node.args]  # type: ignore[attr-defined]
            except errors.InputError:
                continue  # calls of the user's own functions are not repeated
            if hasattr(sizes[0], "shape"):  # view_as
                sizes = [tuple(sizes[0].shape)]
            told = explain_view(
                tensor, sizes[0] if isinstance(sizes[0], tuple | list) else tuple(sizes)
            )
            if not told.legal:
                yield str(told)
                return


def _variables(frame: FrameType) -> dict[str, Any]:
    """Tensors and numbers of a frame, and of its `self` as they are written: "self.x"."""
    import numpy as np
    import torch

    kinds = (torch.Tensor, np.ndarray, int, float, tuple, list)
    found = {**frame.f_globals, **frame.f_locals}
    return {name: value for name, value in found.items() if isinstance(value, kinds)}


def _look_ddp(case: Case) -> Iterator[str]:
    sizes, grad, bucket = (_ints(case.groups[name]) for name in ("sizes", "grad", "bucket"))
    triples = enumerate(zip(sizes, grad, bucket, strict=True))
    differ = [(dim, size) for dim, (size, a, b) in triples if a != b]
    ones = [dim for dim, size in differ if size == 1]
    dims = ", ".join(str(dim) for dim, _ in differ)
    if len(ones) == len(differ):
        yield (
            f"they differ in dim {dims} only, of size 1, whose stride addresses nothing: the bytes "
            "are the same, and the copy is wasted"
        )
    else:
        yield f"they differ in dim {dims}: the elements lie in another order"


def _look_stride(case: Case) -> Iterator[str]:
    size, stride, expected = (int(case.groups[name]) for name in ("size", "stride", "expected"))
    if case.groups["size"] != case.groups["wanted"]:
        yield "the size differs too: it was compiled for another shape"
    elif size == 1:
        yield "the dim has size 1, so its stride addresses nothing; the check is on the number"
    elif stride == 1 or expected == 1:
        yield "stride 1 has moved to another dim: the memory format changed (channels_last or not)"


def _look_versions(case: Case) -> Iterator[str]:
    """The variable that was written to, and each write if they were recorded."""
    from redline.layout.history import record_of

    shape, now = _ints(case.groups["sizes"]), int(case.groups["now"])
    node = case.groups["node"]
    yield from _named_versions(case, shape, now, node)
    record = next((one for one in map(record_of, case.chain) if one is not None), None)
    if record is None:
        yield "to see each write: with redline.layout.writes(): around forward and backward"
        return
    maker = re.sub(r"Backward\d*$", "", node).lower()
    maker = maker if any(one.maker.strip("_") == maker for one in record.log) else ""
    for number, one in enumerate(record.of(shape, maker), 1):
        yield f"write {number}: {one.operator} at {one.place}: {one.place.code}"


def _named_versions(case: Case, shape: tuple[int, ...], now: int, node: str) -> Iterator[str]:
    import torch

    told = set()
    for frame, _ in case.frames():
        for name, value in frame.f_locals.items():
            if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
                continue
            if value._version == now and name not in told:
                told.add(name)
                yield f"`{name}` has this shape and version ({now})"


def _look_module(case: Case) -> Iterator[str]:
    yield from _modules(case, ("Linear", "Bilinear"), "in_features")


def _look_channels(case: Case) -> Iterator[str]:
    shape, want = _ints(case.groups["shape"]), int(case.groups["want"])
    if want in shape[2:]:
        yield f"dim {shape.index(want, 2)} of the input has {want}: the channels come last"
    yield from _modules(case, ("Conv1d", "Conv2d", "Conv3d"), "in_channels")


def _modules(case: Case, kinds: tuple[str, ...], attribute: str) -> Iterator[str]:
    """The layer that failed, by its name in the model."""
    import torch

    owners = [frame.f_locals.get("self") for frame, _ in case.frames()]
    modules = [one for one in owners if isinstance(one, torch.nn.Module)]
    layer = next((one for one in modules if type(one).__name__ in kinds), None)
    if layer is None:
        return
    outermost = modules[-1]
    name = next((name for name, one in outermost.named_modules() if one is layer), "")
    yield f"the layer is {name or 'the model itself'}: {layer} ({attribute})"


def _look_count(case: Case) -> Iterator[str]:
    count, shape = int(case.groups["count"]), _ints(case.groups["shape"])
    known = 1
    for size in shape:
        known *= size if size != -1 else 1
    if known and -1 not in shape and count % known == 0:
        yield f"{count} = {count // known} x {known}: a dim of {count // known} is missing"
    elif known:
        share = f"{count} / {known} = {count / known:.4g}"
        yield f"the sizes that are written make {known}, and {share}"


def _look_devices(case: Case) -> Iterator[str]:
    """Which parameters and buffers of the modules on the way are where."""
    import torch

    for frame, _ in reversed(list(case.frames())):
        owner = frame.f_locals.get("self")
        if isinstance(owner, torch.nn.Module) and next(owner.parameters(), None) is not None:
            where: dict[str, list[str]] = {}
            for name, one in [*owner.named_parameters(), *owner.named_buffers()]:
                where.setdefault(str(one.device), []).append(name)
            places = (f"{device}: {', '.join(names[:4])}" for device, names in where.items())
            yield f"in {type(owner).__name__}: " + "; ".join(places)
            return


def _look_keys(case: Case) -> Iterator[str]:
    text = "\n".join(map(str, case.chain))
    for prefix in ("module.", "_orig_mod.", "model."):
        if re.search(rf'(?:Unexpected|Missing) key.*"{re.escape(prefix)}', text):
            yield f"the names differ by the prefix {prefix!r}"


def _look_recurrent(case: Case) -> Iterator[str]:
    """Export fixes the length of a sequence where an LSTM, GRU or RNN reads it."""
    import torch

    for frame, _ in case.frames():
        for value in frame.f_locals.values():
            if isinstance(value, torch.nn.Module):
                layers = dict(value.named_modules())
                names = [n for n, one in layers.items() if isinstance(one, torch.nn.RNNBase)]
                if names:
                    yield f"one of the layers is recurrent: {', '.join(names)}"
                    return


LOOKS = {
    "recurrent": _look_recurrent,
    "view": _look_view,
    "ddp": _look_ddp,
    "stride": _look_stride,
    "versions": _look_versions,
    "module": _look_module,
    "channels": _look_channels,
    "count": _look_count,
    "devices": _look_devices,
    "keys": _look_keys,
}
