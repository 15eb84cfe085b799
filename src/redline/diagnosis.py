"""`redline.why`: an exception of PyTorch in words, with the numbers of this very case."""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace

from redline import errors
from redline.capture import failures
from redline.corpus import ENTRIES, Entry
from redline.corpus_compilers import COMPILER_ENTRIES
from redline.diagnosis_case import LOOKS, Case

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
    details = tuple(_looked(entry, groups, Case(error, chain, groups)))
    return replace(_filled(entry, groups), where=where, details=details)


def _of_text(text: str) -> Why:
    """From the words of a traceback or a log."""
    text = _ESCAPES.sub("", text)
    found = _matched(text)
    if found is None:
        return _export(RuntimeError(text), _where([], text))
    entry, groups = found
    details = tuple(_looked(entry, groups, Case(None, [], groups)))
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


def _looked(entry: Entry, groups: dict[str, str], case: Case) -> Iterator[str]:
    look = LOOKS.get(entry.look)
    if look is not None:
        yield from look(case)


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
