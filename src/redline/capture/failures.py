"""Why export failed, in words: which line of the user's model, and what to write instead.

The table is data. Its patterns match the text of the whole chain of exceptions, and the first match
wins; its ids are stable names for tests and docs.
"""

from __future__ import annotations

import linecache
import re
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from redline.graph.model import Note

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_LIBRARIES = re.compile(
    r"site-packages|dist-packages|/lib/python3|<frozen|<string>|<eval_with_key>"
)
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_NODE = re.compile(r"target=torch\.ops\.([\w.]+)\.\w+\]")  # what the exporter stumbled over
_OURS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Failure:
    """One class of failure: how it reads, what it means, and what to write instead."""

    id: str
    pattern: str
    what: str
    hint: str


FAILURES = (
    Failure(
        "missing-operator",
        r"No ONNX function found for <OpOverload\(op='(?P<op>[\w.:]+)'|"
        r"No decompositions? registered for.*?(?P<op2>[\w]+::[\w.]+)",
        "ONNX has no translation for the operator {op}",
        "write it with other operators, or give torch.onnx.export a translation for it",
    ),
    Failure(
        "data-dependent-branch",
        r"Could not guard on data-dependent expression (?P<op>(Eq|Ne|Gt|Lt|Ge|Le)\(.*?\))",
        "an `if` or a check in forward depends on the values in a tensor ({op})",
        "use torch.where(condition, a, b), or torch.cond for two whole branches; "
        "move mere checks to torch._check",
    ),
    Failure(
        "data-dependent-size",
        r"Could not (extract specialized integer from|guard on) data-dependent expression "
        r"(?P<op>(?!zuf)\S+)|"  # zuf: torch's name for a float
        r"failed to unpack the object at pos \d+ .*got FakeTensor",
        "a size, slice or loop count in forward depends on the values in a tensor ({op})",
        "keep the size an integer tensor and bound it with torch._check, or mask a fixed size",
    ),
    Failure(
        "data-dependent-other",
        r"data.dependent|DataDependentOutputException|aten\._local_scalar_dense|\.item\(\)",
        "forward turns a tensor's value into a Python number",
        "keep it a tensor: torch.where in the place of if, masks in the place of slices",
    ),
    Failure(
        "constraints-violated",
        r"Constraints violated \((?P<op>[^)]*)\)",
        "the dim {op} was asked to change, but the model's code fixes it or ties it to another",
        "replace numbers in view, reshape and range by sizes taken from the input",
    ),
    Failure(
        "range-too-wide",
        r"Expected .* (?:to be equal to|at dimension)|are not equal to|"
        r"must be (?:equal|specialized)",
        "the model's code asks for a size that the example or the dynamic range does not have",
        "give example inputs of the size that forward expects",
    ),
    Failure(
        "unknown-container",
        r"Unsupported input type|unsupported (?:input|output) type|not a registered pytree|"
        r"Expected a pytree|not known to pytree|is not supported as (?:an? )?(?:input|output)",
        "forward takes or returns an object that torch.export cannot take apart",
        "torch.export.register_dataclass(Class), or return tensors, tuples and dicts",
    ),
    Failure(
        "numpy-in-forward",
        r"\.numpy\(\) is not supported|numpy\(\) (?:is|was) called|"
        r"can't convert .*[Tt]ensor.* to numpy|FakeTensor.*numpy|__array__",
        "forward goes through NumPy, where tracing cannot follow",
        "use the torch function of the same name, or move the NumPy part out of the model",
    ),
    Failure(
        "rnn-length",
        r"(?:LSTM|GRU|RNN).*(?:dynamic|not supported)|does not support RNN|lstm.*data.dependent",
        "a recurrent layer was asked for a sequence length that changes",
        "fix the length: one engine for each length bucket, and pad up to it",
    ),
    Failure(
        "scriptmodule",
        r"ScriptModule|TorchScript|ScriptFunction|"
        r"forward\(\) takes \d+ positional arguments but \d+ were given",  # torch calls it wrongly
        "part of the model is TorchScript, which torch.export does not enter",
        "build that part from its Python class",
    ),
    Failure(
        "autograd-function",
        r"autograd\.Function|torch\.autograd\.function",
        "a custom autograd.Function cannot be traced",
        "call its forward directly when not training",
    ),
    Failure(
        "custom-operator",
        r"(?:fake|meta) (?:impl|kernel|implementation)|no fake impl|UnsupportedOperatorException|"
        r"Cannot access data pointer of Tensor|There was no fake",
        "a custom operator has no rule for the shape of its result",
        "torch.library.register_fake(name), with a function that returns an empty tensor",
    ),
    Failure(
        "device-mismatch",
        r"Expected all tensors to be on the same device|found at least two devices",
        "tensors of the model are on different devices",
        "model.cpu(), and make new tensors with device=x.device",
    ),
    Failure(
        "side-effect",
        r"mutat(?:ed|ion)|assign(?:ed|ing) .*attribute|assigned during export|buffer.*assigned|"
        r"copy__default.*missing nn_module_stack",  # a buffer that was replaced
        "forward changes the module's own attributes",
        "return the new value, or register_buffer and change it in place with copy_",
    ),
    Failure(
        "random-control-flow",
        r"unsupported.*random|Generator",
        "forward draws from Python's random numbers or a Generator",
        "pass the random tensor in as an input",
    ),
    Failure(
        "context-manager",
        r"set_grad_enabled|autocast.*(?:unsupported|not supported)|context manager",
        "a context manager in forward cannot be captured",
        "move autocast or grad mode to the caller",
    ),
    Failure(
        "complex-numbers",
        r"complex(?:64|128|\s+tensor|\s+number|\s+dtypes|.*not supported)",
        "the model computes with complex numbers, which most compilers lack",
        "write the real and imaginary parts as two real tensors",
    ),
    Failure(
        "sparse-or-quantized",
        r"[Ss]parse\w* |quantized::|QuantizedCPU|torch\.qu?int8|layout.*sparse|to_sparse",
        "the model uses sparse or eager-mode quantized tensors",
        "densify with to_dense(), or quantize after export",
    ),
    Failure(
        "not-enough-disk-or-home",
        r"getpwuid|No space left on device|Permission denied",
        "the exporter could not write its temporary files",
        "set TMPDIR and HOME to folders that can be written",
    ),
    Failure(
        "shape-in-forward",
        r"shapes? .* (?:cannot be multiplied|invalid for input)|size of tensor a|mat1 and mat2|"
        r"shape '\[.*\]' is invalid",
        "the shapes inside forward do not fit together",
        "run model(*example_inputs) by hand and mend the line below",
    ),
)


def explain(error: BaseException, stage: str, program: ExportedProgram | None = None) -> Note:
    """A note about a failed export: its class, the user's line, what to write instead.

    Args:
        stage: "torch.export" or "torch.onnx.export".
        program: what was being translated; its nodes remember the user's lines.

    Example:
        >>> explain(RuntimeError("complex numbers"), "torch.export").hint
        'write the real and imaginary parts as two real tensors'
    """
    chain = chain_of(error)
    text = "\n".join(f"{type(one).__name__}: {one}" for one in chain)
    node = _NODE.search(text)
    where = user_line(chain, text) or _line_of(program, node[1] if node else "")
    for failure in FAILURES:
        match = re.search(failure.pattern, text, re.DOTALL)
        if match:
            groups = match.groupdict()
            name = groups.get("op") or groups.get("op2") or ""
            what = failure.what.format(op=name).replace(" ()", "")
            return Note(f"{stage} failed: {what}", where or _line_of(program, name), failure.hint)
    last = next((line for line in str(chain[-1]).splitlines() if line.strip()), "")
    return Note(
        f"{stage} failed: {type(chain[-1]).__name__}: {last.strip()[:300]}",
        where,
        "the backends inside PyTorch go on without it",
    )


def classify(error: BaseException) -> str | None:
    """The id of the class that an exception falls into, or None."""
    text = "\n".join(f"{type(one).__name__}: {one}" for one in chain_of(error))
    found = (failure.id for failure in FAILURES if re.search(failure.pattern, text, re.DOTALL))
    return next(found, None)


def chain_of(error: BaseException) -> list[BaseException]:
    """The exception and what caused it, the outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def user_line(chain: list[BaseException], text: str) -> str:
    """The innermost line that is the user's: from the tracebacks, else from the text."""
    for error in reversed(chain):
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if _is_users(frame.filename):
                return _spell(frame.filename, frame.lineno or 0, frame.name)
    for file, line, name in reversed(_FRAME.findall(text)):
        if _is_users(file):
            return _spell(file, int(line), name)
    return ""


def _line_of(program: ExportedProgram | None, operator: str) -> str:
    """The user's line that the first node of an operator came from."""
    core = operator.rpartition(".")[2].lstrip("_")  # aten._linalg_svd is made of aten.linalg_svd
    for node in program.graph.nodes if program is not None and operator else ():
        if core in str(node.target):
            for file, line, name in reversed(_FRAME.findall(node.meta.get("stack_trace") or "")):
                if _is_users(file):
                    return _spell(file, int(line), name)
    return ""


def line_above() -> str:
    """The user's line that is running now, seen from a callback inside the libraries."""
    for frame in reversed(traceback.extract_stack()[:-2]):
        if _is_users(frame.filename):
            return _spell(frame.filename, frame.lineno or 0, frame.name)
        if _is_ours(frame.filename):
            break
    return ""


def _is_users(file: str) -> bool:
    return not _LIBRARIES.search(file) and not _is_ours(file)


def _is_ours(file: str) -> bool:
    return _OURS in Path(file).resolve().parents


def _spell(file: str, line: int, name: str) -> str:
    shown, code = f"{Path(file).name}:{line} in {name}", linecache.getline(file, line).strip()
    return f"{shown}: {code}" if code else shown
