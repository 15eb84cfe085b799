"""`copies`: hidden copies of a forward and a backward pass, and the change that removes each."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from redline.errors import InputError, ModelError
from redline.layout.causes import cause_of, tell
from redline.layout.trace import Place, Side, Write, line_in, trace

_RUNS = 3  # of which the median is told


@dataclass(frozen=True)
class Copy:
    """One copy.

    Attributes:
        bytes: written; the same number or more was read.
        seconds: of the copy itself; None where the work is not done at the call (meta, GPUs).
        place: the line of Python that led to it; in a backward pass, the line of the forward.
        cause: the id of its kind, why: what happened, change: what to write instead.
        path: the operators it happened in, the outermost first.
        inside: made inside a kernel, where a dispatch mode does not see it.
        backward: the autograd node, or "" in the forward pass.
        certain: False where the meta device takes another path than a real one.
        again: how many copies of the same tensor came before it.
    """

    bytes: int
    seconds: float | None
    place: Place
    cause: str
    why: str
    change: str
    path: tuple[str, ...]
    inside: bool
    backward: str
    source: Side
    certain: bool = True
    again: int = 0


@dataclass(frozen=True)
class Copies:
    """The copies of one pass, largest first when printed; iterates over them in order.

    Attributes:
        found: every copy, in the order in which they happened.
        device: where it ran; on "meta" the list is structural and an upper bound.
        seconds: of the pass without instruments; None on the meta device.
    """

    found: tuple[Copy, ...]
    device: str
    seconds: float | None

    def __iter__(self) -> Iterator[Copy]:
        return iter(self.found)

    def __len__(self) -> int:
        return len(self.found)

    @property
    def bytes(self) -> int:
        """Written by all copies together."""
        return sum(copy.bytes for copy in self.found)

    @property
    def copy_seconds(self) -> float | None:
        """Spent in all copies together; None where single copies have no time."""
        if not self.device.startswith("cpu"):
            return None
        return sum(copy.seconds or 0.0 for copy in self.found)

    def by_line(self) -> list[tuple[Copy, ...]]:
        """Copies of one line and cause together, the group with the most bytes first."""
        groups: dict[tuple[Any, ...], list[Copy]] = {}
        for copy in self.found:
            place = copy.place
            key = (place.file, place.line, copy.cause, bool(copy.backward))
            groups.setdefault(key, []).append(copy)
        return sorted(map(tuple, groups.values()), key=lambda group: -_bytes(group))

    def __str__(self) -> str:
        from redline.layout.listing import text

        return text(self)

    def html(self) -> str:
        """One HTML document; it asks the network for nothing."""
        from redline.layout.page import document

        return document("Hidden copies", self._repr_html_())

    def _repr_html_(self) -> str:
        from redline.layout.listing import fragment

        return fragment(self)


def _bytes(group: tuple[Copy, ...]) -> int:
    return sum(copy.bytes for copy in group)


def copies(
    model: torch.nn.Module | Callable[..., Any],
    inputs: Any,
    *,
    backward: bool = False,
    device: str | None = None,
) -> Copies:
    """Every copy that a model makes in one call, with its line, bytes, time, cause and cure.

    A dispatch mode and the profiler watch together, so copies inside kernels are found too. What
    no instrument sees: reorderings inside a library's own call (oneDNN, BLAS). Weights, gradients,
    buffers and random states are left as they were.

    Args:
        model: a module or a function, in the mode (train or eval) that is asked about.
        inputs: a tensor, a tuple of positionals, a dict of keywords, or (tuple, dict).
        backward: also run the backward pass, from dense gradients of ones.
        device: "meta" computes nothing and needs no memory, for models too big to run: the list is
            then an upper bound of the copies that a dispatch mode sees (attention takes its
            plain path there); copies inside kernels and recurrent layers are missing.

    Raises:
        InputError: inputs of another kind, another device than "meta", nothing to differentiate.
        ModelError: not something to call, or on "meta" a model that looks at values.

    Example:
        >>> found = copies(torch.nn.LSTM(4, 4, batch_first=True), torch.zeros(2, 5, 4))
        >>> [copy.cause for copy in found]
        ['recurrent-batch-first']
    """
    if not callable(model):
        raise ModelError(f"a {type(model).__name__} cannot be called", hint="give a module")
    if device not in (None, "meta"):
        raise InputError(
            f"device={device!r}, expected None or 'meta'",
            hint=f"model.to({device!r}) and its inputs, then leave device out",
        )
    module = model if isinstance(model, torch.nn.Module) else _Function(model)
    args, kwargs = _arguments(inputs)
    call: Callable[[], Any]
    if device == "meta":
        call = _on_meta(module, args, kwargs)
    else:

        def call() -> Any:
            return module(*args, **kwargs)

    run = _backward(call) if backward else _forward(call)
    with _kept(module), _fresh_gradients(module, args, kwargs) as forget:
        if device == "meta":
            writes, seconds = _structural(run, module), None
        else:
            run()  # what only a first call does is not asked about
            writes, seconds = _several(run, forget, module), _clock(run, forget)
    return Copies(_told(writes, module, device), device or _device(module, args), seconds)


class _Function(torch.nn.Module):
    """A function as a module, so that one path serves both."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    if isinstance(inputs, dict):
        return (), inputs
    if isinstance(inputs, tuple | list):
        if len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
            return inputs[0], inputs[1]
        return tuple(inputs), {}
    raise InputError(
        f"inputs are a {type(inputs).__name__}",
        hint="give a tensor, a tuple of positionals, a dict of keywords, or (tuple, dict)",
    )


def _forward(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            call()

    return run


def _backward(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with torch.enable_grad():
            outputs = [leaf for leaf in pytree.tree_leaves(call()) if _differentiable(leaf)]
            if not outputs:
                raise InputError(
                    "no output of the model needs a gradient",
                    hint="requires_grad_() of its parameters, or backward=False",
                )
            dense = [
                torch.ones(leaf.shape, dtype=leaf.dtype, device=leaf.device) for leaf in outputs
            ]
            torch.autograd.backward(outputs, dense)

    return run


def _differentiable(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


@contextlib.contextmanager
def _kept(module: torch.nn.Module) -> Iterator[None]:
    """Buffers (running means) and random states are put back afterwards."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                if not buffer.is_meta:
                    buffer.copy_(before)


@contextlib.contextmanager
def _fresh_gradients(
    module: torch.nn.Module, args: Any, kwargs: Any
) -> Iterator[Callable[[], None]]:
    """Gradients are the user's again afterwards; yields what makes them None, as zero_grad()."""
    leaves = [*module.parameters(), *pytree.tree_leaves((args, kwargs))]
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_leaf]
    before = [(leaf, leaf.grad) for leaf in tensors]

    def forget() -> None:
        for leaf, _ in before:
            leaf.grad = None

    try:
        forget()
        yield forget
    finally:
        for leaf, gradient in before:
            leaf.grad = gradient


def _on_meta(module: torch.nn.Module, args: Any, kwargs: Any) -> Callable[[], Any]:
    """The same call with tensors that have shapes and strides but no memory."""

    def shadow(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        made = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
        return made.requires_grad_(leaf.requires_grad)

    owned: list[tuple[str, torch.Tensor]] = [*module.named_parameters(remove_duplicate=False)]
    owned += module.named_buffers(remove_duplicate=False)
    once: dict[int, Any] = {}  # tied weights stay tied
    state = {name: once.setdefault(id(tensor), shadow(tensor)) for name, tensor in owned}
    meta_args, meta_kwargs = pytree.tree_map(shadow, (args, kwargs))

    def call() -> Any:
        with torch.device("meta"):
            return torch.func.functional_call(module, state, meta_args, meta_kwargs)

    return call


def _structural(run: Callable[[], None], module: torch.nn.Module) -> list[Write]:
    try:
        # What lies inside an operator is the meta device's own way to get at the strides.
        return [write for write in trace(run, module) if not write.inside]
    except (RuntimeError, NotImplementedError) as error:
        if "meta" not in str(error):
            raise
        raise ModelError(
            f"the model reads values, and tensors on the meta device have none: {error}",
            where=str(line_in(error)),
            hint="give the input that spares it the question (for transformers an attention_mask "
            "of 4 dims), or leave out device='meta'",
        ) from error


def _several(
    run: Callable[[], None], forget: Callable[[], None], module: torch.nn.Module
) -> list[Write]:
    """Copies with the median of their times; of the last run, should the runs differ."""
    runs = []
    for _ in range(_RUNS):
        forget()
        runs.append(trace(run, module))
    last = runs[-1]
    if any([write.path for write in one] != [write.path for write in last] for one in runs):
        return last
    times = zip(*([write.seconds for write in one] for one in runs), strict=True)
    return [
        dataclasses.replace(write, seconds=statistics.median(several))
        for write, several in zip(last, times, strict=True)
    ]


def _clock(run: Callable[[], None], forget: Callable[[], None]) -> float:
    """Seconds of one pass without instruments."""
    spent = []
    for _ in range(_RUNS):
        forget()
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def _device(module: torch.nn.Module, args: Any) -> str:
    tensors = [*module.parameters(), *pytree.tree_leaves(args)]
    found = (str(one.device) for one in tensors if isinstance(one, torch.Tensor))
    return next(found, "cpu")


def _told(writes: list[Write], module: torch.nn.Module, device: str | None) -> tuple[Copy, ...]:
    """Writes with their causes, without copies of nothing and without an operator's own work."""
    times_copied: dict[tuple[int, int], int] = {}
    weights = {one.untyped_storage().data_ptr() for one in module.parameters()} - {0}
    found = []
    for write in writes:
        if not write.bytes:
            continue
        write = dataclasses.replace(write, is_parameter=write.storage in weights)
        cause = cause_of(write)
        if not cause.counted:
            continue
        why, change = tell(write, cause)
        tensor = (write.address, write.bytes)
        again = times_copied.get(tensor, 0) if write.address else 0
        times_copied[tensor] = again + 1
        found.append(
            Copy(
                bytes=write.bytes,
                seconds=write.seconds if write.target.device == "cpu" else None,
                place=write.place,
                cause=cause.id,
                why=why,
                change=change,
                path=write.path,
                inside=write.inside,
                backward=write.backward,
                source=write.source,
                certain=not (device == "meta" and cause.uncertain_on_meta),
                again=again,
            )
        )
    return tuple(found)
