"""`redline.why`: an exception of PyTorch in words, with the numbers of this very case."""

from __future__ import annotations

import ast
import collections
import re
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from redline import errors
from redline.capture import failures
from redline.corpus import ENTRIES, Entry
from redline.corpus_compilers import COMPILER_ENTRIES

_KEPT_LINES = 4000  # of a command's stderr
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
_COMPILERS = re.compile(
    r"torch[./](?:export|_export|onnx|_dynamo|_inductor|fx|_subclasses|_functorch|compile)\b"
)
_LAST = re.compile(r"^(?:[\w.]+(?:Error|Exception|Warning|Violation\w*|Hit|Interrupt|\w*)): ")


@dataclass(frozen=True)
class Why:
    """What an exception means; prints itself.

    Attributes:
        id: of the entry of the corpus, or of the class of export failure; "" for one that is in
            neither.
        what: what happened; why: the rule behind it; change: what to write instead.
        where: the user's innermost line.
        fault: whose it is: "your code", "the input", "the framework" or "the machine".
        details: what could be found out about this very case, one sentence each.
    """

    id: str
    what: str
    why: str
    change: str
    where: str
    fault: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.what]
        rows = (("where", self.where), ("why", self.why), ("change", self.change))
        for label, words in rows:
            lines += [_folded(label, words)] if words else []
        lines += [f"  {line}" for detail in self.details for line in detail.splitlines()]
        lines += [f"  fault: {self.fault}"] if self.fault else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from redline.layout.page import preformatted

        return preformatted(str(self))


def _folded(label: str, words: str) -> str:
    return textwrap.fill(
        words, 100, initial_indent=f"  {label}: ", subsequent_indent="    ",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def why(error: BaseException | Warning | str) -> Why:
    """What an exception of PyTorch means, whose it is, and what to change.

    Args:
        error: the exception as it was caught, so that the variables of its frames can be looked
            at; or a warning, or the text of a traceback, of which the words alone are left.

    Raises:
        InputError: neither.

    Example:
        >>> try:
        ...     torch.zeros(3, 4).t().view(12)
        ... except RuntimeError as error:
        ...     print(redline.why(error).details[0].splitlines()[0])
        view(12) of (4, 3) with strides (1, 4): not legal
    """
    if isinstance(error, str):
        return _of_text(error)
    if not isinstance(error, BaseException):
        raise errors.InputError(
            f"a {type(error).__name__} is no exception", hint="give what `except ... as e` caught"
        )
    if isinstance(error, errors.RedlineError):
        return Why("redline", error.what, "", error.hint, error.where, "")
    chain = failures.chain_of(error)
    text = "\n".join(f"{type(one).__name__}: {one}" for one in chain)
    found = _matched(text)
    where = _where(chain, text)
    if found is None:
        return _export(error, where)
    entry, groups = found
    details = tuple(_looked(entry, groups, _Case(error, chain, groups)))
    return replace(_filled(entry, groups), where=where, details=details)


def _of_text(text: str) -> Why:
    """From the words of a traceback or a log."""
    text = _ESCAPES.sub("", text)
    found = _matched(text)
    if found is None:
        return _export(RuntimeError(text), _where([], text))
    entry, groups = found
    details = tuple(_looked(entry, groups, _Case(None, [], groups)))
    return replace(_filled(entry, groups), where=_where([], text), details=details)


def _where(chain: list[BaseException], text: str) -> str:
    """The user's line; Dynamo writes the one that it traced into its words, not the traceback."""
    traced = text.rpartition("from user code:")[2] if "from user code:" in text else ""
    return failures.user_line([], traced) or failures.user_line(chain, text)


def _matched(text: str) -> tuple[Entry, dict[str, str]] | None:
    for entry in (*ENTRIES, *COMPILER_ENTRIES):
        match = re.search(entry.pattern, text, re.DOTALL)
        if match:
            groups = {name: value or "?" for name, value in match.groupdict().items()}
            return entry, groups
    return None


def _filled(entry: Entry, groups: dict[str, str]) -> Why:
    what, rule, change = (words.format(**groups) for words in (entry.what, entry.why, entry.change))
    return Why(entry.id, what, rule, change, "", entry.fault)


def _export(error: BaseException, where: str) -> Why:
    """A failure of export or of a compiler; else what the exception says itself."""
    id = failures.classify(error) if _from_compilers(error) else None
    if id is None:
        last = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
        words = next((line for line in reversed(last) if _LAST.match(line)), last[0]).strip()
        kind = "" if _LAST.match(words) else f"{type(error).__name__}: "
        hint = "redline.why does not know this one; the line above it is where to start"
        return Why("", f"{kind}{words}", "", hint, where, "")
    note = failures.explain(error, "export or compiling")
    return Why(id, note.what, "", note.hint, where or note.where, "your code")


def _from_compilers(error: BaseException) -> bool:
    """Whether export, a tracer or a compiler took part: their table's patterns are wide."""
    chain = failures.chain_of(error)
    modules = {type(one).__module__ for one in chain}
    files = {frame.filename for one in chain for frame in traceback.extract_tb(one.__traceback__)}
    texts = {str(one) for one in chain}
    return any(_COMPILERS.search(word) for word in modules | files | texts)


@dataclass(frozen=True)
class _Case:
    """One exception, with the frames that it went through."""

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


def _looked(entry: Entry, groups: dict[str, str], case: _Case) -> Iterator[str]:
    look = _LOOKS.get(entry.look)
    if look is not None:
        yield from look(case)


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(",") if one.strip())


def _look_view(case: _Case) -> Iterator[str]:
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


def _look_ddp(case: _Case) -> Iterator[str]:
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


def _look_stride(case: _Case) -> Iterator[str]:
    size, stride, expected = (int(case.groups[name]) for name in ("size", "stride", "expected"))
    if case.groups["size"] != case.groups["wanted"]:
        yield "the size differs too: it was compiled for another shape"
    elif size == 1:
        yield "the dim has size 1, so its stride addresses nothing; the check is on the number"
    elif stride == 1 or expected == 1:
        yield "stride 1 has moved to another dim: the memory format changed (channels_last or not)"


def _look_versions(case: _Case) -> Iterator[str]:
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


def _named_versions(case: _Case, shape: tuple[int, ...], now: int, node: str) -> Iterator[str]:
    import torch

    told = set()
    for frame, _ in case.frames():
        for name, value in frame.f_locals.items():
            if not isinstance(value, torch.Tensor) or tuple(value.shape) != shape:
                continue
            if value._version == now and name not in told:
                told.add(name)
                yield f"`{name}` has this shape and version ({now})"


def _look_module(case: _Case) -> Iterator[str]:
    yield from _modules(case, ("Linear", "Bilinear"), "in_features")


def _look_channels(case: _Case) -> Iterator[str]:
    shape, want = _ints(case.groups["shape"]), int(case.groups["want"])
    if want in shape[2:]:
        yield f"dim {shape.index(want, 2)} of the input has {want}: the channels come last"
    yield from _modules(case, ("Conv1d", "Conv2d", "Conv3d"), "in_channels")


def _modules(case: _Case, kinds: tuple[str, ...], attribute: str) -> Iterator[str]:
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


def _look_count(case: _Case) -> Iterator[str]:
    count, shape = int(case.groups["count"]), _ints(case.groups["shape"])
    known = 1
    for size in shape:
        known *= size if size != -1 else 1
    if known and -1 not in shape and count % known == 0:
        yield f"{count} = {count // known} x {known}: a dim of {count // known} is missing"
    elif known:
        share = f"{count} / {known} = {count / known:.4g}"
        yield f"the sizes that are written make {known}, and {share}"


def _look_devices(case: _Case) -> Iterator[str]:
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


def _look_keys(case: _Case) -> Iterator[str]:
    text = "\n".join(map(str, case.chain))
    for prefix in ("module.", "_orig_mod.", "model."):
        if re.search(rf'(?:Unexpected|Missing) key.*"{re.escape(prefix)}', text):
            yield f"the names differ by the prefix {prefix!r}"


def _look_recurrent(case: _Case) -> Iterator[str]:
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


_LOOKS = {
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


def run_and_explain(command: list[str]) -> tuple[int, Why | None]:
    """Run a command with its stderr passed on, and explain what it said there.

    Returns:
        Its exit status, and the explanation: of its failure, or of a known warning where it
        succeeded, or None.

    Raises:
        InputError: the command cannot be started.
    """
    said = collections.deque[bytes](maxlen=_KEPT_LINES)
    try:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
    except OSError as error:
        raise errors.InputError(
            f"{command[0]} cannot be started: {error.strerror}", hint="redline why -- python x.py"
        ) from error
    with process:  # waits for it, also after Ctrl-C, which it gets as well
        for line in process.stderr or ():
            said.append(line)
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
    status = process.returncode
    log = b"".join(said).decode(errors="replace")
    told = why_of_log(log)
    if status == 0 and (told is None or not told.id):
        return status, None
    return 128 - status if status < 0 else status, told


def why_of_log(log: str) -> Why | None:
    """Explain the last traceback in a log, or a known warning; None where it has neither."""
    log = _ESCAPES.sub("", log)
    start = log.rfind("Traceback (most recent call last):")
    if start >= 0:
        # A chain of exceptions is one story: begin with the first of those tied together.
        for tie in ("direct cause of the following exception", "another exception occurred"):
            while tie in log[:start] and log.rfind("Traceback", 0, start) >= 0:
                before = log.rfind("Traceback (most recent call last):", 0, start)
                if tie not in log[before:start]:
                    break
                start = before
        return why(log[start:])
    return why(log) if _matched(log) else None
