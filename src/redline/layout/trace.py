"""One run of a model under two instruments: every copy, with what asked for it.

A TorchDispatchMode sees each operator with the line of Python that called it, but not the copies
inside a kernel; the profiler sees those, but no line. So the mode gives each operator a number, and
names a range of the profiler by it: a copy belongs to the number that it lies under. A node of the
backward pass has the sequence number that the mode saw when its operator ran, and so has its line.
"""

from __future__ import annotations

import linecache
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.autograd.profiler import profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from redline import knobs

_MARK = "redline.copy#"
# With the separator, or torchvision would be taken for torch.
_TORCH = str(Path(torch.__file__).resolve().parent) + os.sep
_OURS = str(Path(__file__).resolve().parent) + os.sep
# Whatever moves or converts elements writes through it, on every device.
_WRITES = "aten::copy_"


@dataclass(frozen=True)
class Place:
    """A line of Python, and the module whose forward it is in; for .grad, the parameter's name."""

    file: str
    line: int
    function: str
    module: str = ""

    @property
    def code(self) -> str:
        """The text of the line, without its indent."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        if not self.file:
            return f"the gradient of {self.module}" if self.module else "unknown"
        return f"{Path(self.file).name}:{self.line} in {self.function}"


@dataclass(frozen=True)
class Side:
    """One side of a copy: shape, strides, dtype and device as the kernel saw them."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    device: str


@dataclass(frozen=True)
class Write:
    """One copy as it happened.

    Attributes:
        source, target: what was read and written.
        path: the operators it happened in, the outermost first: what the line called stands at
            the front, e.g. ("reshape", "clone", "copy_").
        inside: it was made inside a kernel, where no dispatch mode sees it.
        backward: the name of the autograd node, or "" in the forward pass.
        sizes: shapes and strides of the outermost operator's tensor inputs.
        to_shape: the shape that the outermost view asked for, where one did.
        storage: of what was read; address: of its operator's operand there (0 where there is no
            memory), to tell that one tensor is copied again and again.
    """

    source: Side
    target: Side
    path: tuple[str, ...]
    inside: bool
    backward: str
    place: Place
    bytes: int
    seconds: float
    sizes: tuple[Side, ...]
    to_shape: tuple[int, ...] | None
    storage: int
    address: int = 0
    is_parameter: bool = False


@dataclass(frozen=True)
class _Seen:
    """What the mode knew when an operator was called."""

    place: Place
    operands: tuple[tuple[int, int], ...]  # (storage, address) of each tensor
    shape: tuple[int, ...] | None = None  # of its result


class _Numbering(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Numbers every operator, and remembers the line that called it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules = {id(module): name for name, module in model.named_modules()}
        self.parameters = {id(one): name for name, one in model.named_parameters()}
        self.seen: list[_Seen] = []
        self.nodes: dict[int, Place] = {}  # sequence number of an autograd node -> its line

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        node: Any = torch._C._current_autograd_node()  # None in the forward pass
        if node is None:
            place = _place(sys._getframe(1), self.modules)
            # The node that this operator's result will have was made just before.
            self.nodes.setdefault(torch._C._autograd._get_sequence_nr() - 1, place)
        else:
            place = self._made_at(node)
        number = len(self.seen)
        self.seen.append(_Seen(place, _operands(args)))
        with record_function(f"{_MARK}{number}"):
            result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            known = self.seen[number]
            self.seen[number] = replace(known, shape=tuple(result.shape))
        return result

    def _made_at(self, node: Any) -> Place:
        """The line of the forward pass that made a node; for a parameter's .grad, its name."""
        owner = getattr(node, "variable", None)
        if owner is not None:
            return Place("", 0, "", self.parameters.get(id(owner), ""))
        return self.nodes.get(node._sequence_nr(), Place("", 0, ""))


def _operands(args: tuple[Any, ...]) -> tuple[tuple[int, int], ...]:
    found = []
    for one in args:
        for tensor in one if isinstance(one, list | tuple) else (one,):
            strided = isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
            if strided and (storage := _pointer(tensor)):
                found.append((storage, tensor.data_ptr()))
    return tuple(found)


def _pointer(tensor: torch.Tensor) -> int:
    """Where its storage lies; 0 without memory of its own (meta, fake, some subclasses)."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return 0


def trace(call: Callable[[], Any], model: torch.nn.Module) -> list[Write]:
    """Run `call` once and list its copies in the order in which they happened."""
    numbering = _Numbering(model)
    with knobs.quiet_profiler(), profile(record_shapes=True) as profiler, numbering:
        call()
    assert profiler.kineto_results is not None  # it was entered
    roots = profiler.kineto_results.experimental_event_tree()
    events = sorted(_flat(roots), key=lambda pair: pair[0].start_time_ns)
    return [_write(event, above, numbering.seen) for event, above in events]


def _place(frame: FrameType | None, names: dict[int, str]) -> Place:
    """The innermost line outside torch and this package, and the innermost module around it."""
    found, module = None, ""
    while frame is not None:
        file = frame.f_code.co_filename
        if found is None and not file.startswith((_TORCH, _OURS)) and not file.startswith("<"):
            found = (file, frame.f_lineno, frame.f_code.co_name)
        owner = frame.f_locals.get("self") if frame.f_code.co_name == "forward" else None
        if not module and owner is not None and id(owner) in names:
            module = names[id(owner)]
        if found and module:
            break
        frame = frame.f_back
    return Place(*(found or ("", 0, "")), module)


def line_of(frame: FrameType | None) -> Place:
    """The innermost line outside torch and this package, from a frame inside."""
    return _place(frame, {})


def line_in(error: BaseException) -> Place:
    """The innermost line outside torch and this package that an exception went through."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_TORCH, _OURS, "<")):
            return Place(frame.filename, frame.lineno or 0, frame.name)
    return Place("", 0, "")


def _flat(roots: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Every copy with the events above it, the outermost first. No recursion: trees are deep."""
    stack: list[tuple[Any, list[Any]]] = [(root, []) for root in roots]
    while stack:
        event, above = stack.pop()
        if event.name == _WRITES and not any(one.name == _WRITES for one in above):
            if len(_tensors(event)) >= 2:
                yield event, above
        else:
            stack += [(child, [*above, event]) for child in event.children]


def _tensors(event: Any) -> list[Any]:
    """Metadata of its tensor inputs, one level of lists opened."""
    inputs = getattr(event.extra_fields, "inputs", None) or []
    flat: list[Any] = []
    for one in inputs:
        flat += one if isinstance(one, list) else [one]
    return [one for one in flat if isinstance(one, torch._C._profiler._TensorMetadata)]


def _side(metadata: Any) -> Side:
    dtype = str(metadata.dtype).removeprefix("torch.")
    return Side(tuple(metadata.sizes), tuple(metadata.strides), dtype, str(metadata.device))


def _write(event: Any, above: list[Any], seen: list[_Seen]) -> Write:
    marks = [place for place, one in enumerate(above) if one.name.startswith(_MARK)]
    known = seen[int(above[marks[-1]].name.removeprefix(_MARK))] if marks else None
    below = above[marks[-1] + 1 :] if marks else above
    # An explicit copy is what the mode was called for: clone, _to_copy or copy_ itself.
    inside = (
        bool(marks)
        and bool(below)
        and below[0].name not in ("aten::clone", "aten::_to_copy", _WRITES)
    )
    target, source = _tensors(event)[:2]
    numbers = [one for one in above if one.name.startswith("aten::")]
    place = known.place if known else _beside(above, seen)
    path = _path([one.name for one in (*numbers, event)])
    backward = next((one.name for one in reversed(above) if _is_node(one.name)), "")
    sides = tuple(_side(one) for one in (_tensors(numbers[0]) if numbers else []))
    written = _side(target)
    storage = int(source.storage_data_ptr or 0)
    return Write(
        source=_side(source),
        target=written,
        path=path,
        inside=inside,
        backward=backward,
        place=place,
        bytes=math.prod(written.shape) * target.dtype.itemsize,
        seconds=event.duration_time_ns * 1e-9,
        sizes=sides,
        to_shape=_asked(numbers, seen),
        storage=storage,
        address=dict(reversed(known.operands)).get(storage, storage) if known else storage,
    )


def _beside(above: list[Any], seen: list[_Seen]) -> Place:
    """For a copy that the mode did not see: the place of another operator of the same node."""
    node = next((one for one in reversed(above) if _is_node(one.name)), None)
    marks = _marks(node) if node is not None else []
    return seen[min(marks)].place if marks else Place("", 0, "")


def _marks(event: Any) -> list[int]:
    """The numbers of the outermost operators that the mode saw below an event."""
    found, stack = [], list(event.children)
    while stack:
        one = stack.pop()
        if one.name.startswith(_MARK):
            found.append(int(one.name.removeprefix(_MARK)))
        else:
            stack += one.children
    return found


def _path(names: list[str]) -> tuple[str, ...]:
    """Without the namespace, and without the repetitions that the mode's redispatch makes."""
    short = [name.removeprefix("aten::") for name in names]
    return tuple(name for name, before in zip(short, [""] + short, strict=False) if name != before)


def _is_node(name: str) -> bool:
    return name.startswith("torch::autograd::") or bool(re.fullmatch(r"\w+Backward\d*", name))


def _asked(numbers: list[Any], seen: list[_Seen]) -> tuple[int, ...] | None:
    """The shape that the innermost reshape around the copy asked for: that of its last operator."""
    around = [one for one in numbers if one.name in ("aten::reshape", "aten::flatten")]
    if not around:
        return None
    marks = _marks(around[-1])
    return seen[max(marks)].shape if marks else None
