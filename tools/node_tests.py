"""Runs ONNX's backend node tests against the native compiler and writes the list of results.

    python tools/node_tests.py            regenerate tests/native/node_tests.txt
    python tools/node_tests.py --check    fail where the list no longer holds
    python tools/node_tests.py --sanitize with the address and undefined-behaviour sanitizers
    python tools/node_tests.py test_gru   only what begins so, with its errors

Many models are compiled into one C++ file each time: a file for each would take an hour. A shape,
an axis or the like that a test feeds as an input, and that the compiler must know at build, is
bound as a constant; the list says which. No test has all its inputs bound.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx import numpy_helper

from redline import machine
from redline.errors import RefusedError
from redline.native import isa, toolchain
from redline.native.attention import fuse_attention
from redline.native.emit import Sources, emit
from redline.native.fuse import fuse
from redline.native.ir import Program
from redline.native.layout import Layouts
from redline.native.read import Unknown, read

LIST = Path(__file__).parent.parent / "tests" / "native" / "node_tests.txt"
# -fwrapv: whole numbers that wrap are meant, in models and in the bits of exp.
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fwrapv", "-g1")
PER_FILE = 40  # models in one C++ file
_EXPORTS = re.compile(r"\bredline_(describe|open|run|profile|times|close)\b")


@dataclass
class Case:
    """One node test: compiled or refused."""

    name: str
    model: onnx.ModelProto
    data: list[tuple[list[Any], list[Any]]]
    tolerance: tuple[float, float]
    bound: tuple[str, ...] = ()
    refused: str = ""
    sources: Sources | None = None
    program: Program | None = None
    error: str = field(default="", compare=False)

    def verdict(self) -> str:
        """The line of the list."""
        if self.error:
            return f"{self.name}: FAIL: {self.error}"
        if self.refused:
            return f"{self.name}: refused: {self.refused}"
        return f"{self.name}: pass" + (f" (bound: {', '.join(self.bound)})" if self.bound else "")


def cases(prefix: str = "") -> list[Case]:
    """ONNX's node tests, by name."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    made = [
        Case(c.name, c.model, [_arrays(pair) for pair in c.data_sets], (c.rtol, c.atol))
        for c in found
        if c.name.startswith(prefix)
    ]
    return sorted(made, key=lambda case: case.name)


def _arrays(pair: Any) -> tuple[list[Any], list[Any]]:
    """Inputs and outputs, those that come as protocol buffers as arrays."""
    inputs, outputs = (
        [numpy_helper.to_array(a) if isinstance(a, onnx.TensorProto) else a for a in side]
        for side in pair
    )
    return inputs, outputs


def lower(case: Case, target: isa.Isa) -> None:
    """Fill in `sources`, or `refused`."""
    if not all(isinstance(a, np.ndarray | np.generic) for a in case.data[0][0]):
        case.refused = "an input is not an array"
        return
    for _ in range(6):
        try:
            program = _program(case)
        except RefusedError as error:
            more = _to_bind(case, error)
            if not more:
                case.refused = _first_line(error)
                return
            case.bound += more
        else:
            program = Layouts(fuse_attention(fuse(program)), target.lanes).run()
            case.program, case.sources = program, emit(program, target, 1)
            return
    case.refused = "binding inputs led nowhere"


def _first_line(error: RefusedError) -> str:
    return str(error).splitlines()[0]


def _program(case: Case) -> Program:
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    arrays = dict(zip([i.name for i in model.graph.input], case.data[0][0], strict=True))
    for value in list(model.graph.input):
        if value.name in case.bound:
            model.graph.input.remove(value)
            array = np.asarray(arrays[value.name])
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
        elif value.type.HasField("tensor_type"):  # some tests declare names instead of sizes
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in np.shape(arrays[value.name]):
                shape.dim.add().dim_value = size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read(onnx_ir.serde.deserialize_model(model))


def _to_bind(case: Case, error: RefusedError) -> tuple[str, ...]:
    """Inputs that the compiler asks to know at build; empty where that would be all of them."""
    reason = error.__cause__
    if not isinstance(reason, Unknown):
        return ()
    names = [value.name for value in case.model.graph.input]
    left = [name for name in names if name not in case.bound]
    arrays = dict(zip(names, case.data[0][0], strict=True))
    more = tuple(name for name in left if name == reason.value.name)
    if not more:
        more = tuple(
            n for n in left if np.asarray(arrays[n]).dtype.kind in "iub" and np.ndim(arrays[n]) < 2
        )
    return more if 0 < len(more) < len(left) else ()


def together(batch: list[Case]) -> str:
    """One C++ file of all the cases' programs, each in a namespace and with names of its own."""
    lines, heads = [], []
    for number, case in enumerate(batch):
        assert case.sources is not None
        lines.append(f"namespace m{number} {{")
        for text in case.sources.files.values():
            own = _EXPORTS.sub(rf"m{number}_\1", text)
            for line in own.splitlines():
                (heads if line.startswith("#") else lines).append(line)
        lines.append("}")
    visible = "#pragma GCC visibility push(default)"
    return "\n".join([*dict.fromkeys(heads), visible, *lines, "#pragma GCC visibility pop", ""])


def build(ready: list[Case], target: isa.Isa, library: Path) -> list[tuple[int, int]]:
    """Compile all; the (file, place) of each case in the library."""
    batches = [ready[i : i + PER_FILE] for i in range(0, len(ready), PER_FILE)]
    files, places = {}, []
    for number, batch in enumerate(batches):
        text = _EXPORTS.sub(r"\1", together(batch))
        files[f"batch{number}.cpp"] = re.sub(r"\bm(\d+)(_|\b)", rf"b{number}m\1\2", text)
        places += [(number, i) for i in range(len(batch))]
    toolchain.build(files, target, library)
    return places


def run(case: Case, library: ctypes.CDLL, place: tuple[int, int]) -> None:
    """Fill in `error` where a result is wrong."""
    assert case.sources is not None
    assert case.program is not None
    prefix = f"b{place[0]}m{place[1]}_"
    opening = getattr(library, f"{prefix}open")
    opening.restype, opening.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    packed = case.sources.weights
    memory = np.zeros(len(packed) + 64, np.uint8)
    weights = memory[-memory.ctypes.data % 64 :][: len(packed)]
    weights[:] = np.frombuffer(packed, np.uint8)
    context = ctypes.c_void_p(opening(memory.ctypes.data + (-memory.ctypes.data % 64)))
    names = [value.name for value in case.model.graph.input]
    try:
        for inputs, wanted in case.data:
            given = [
                np.ascontiguousarray(a).reshape(np.shape(a))
                for name, a in zip(names, inputs, strict=True)
                if name not in case.bound
            ]
            found = _call(case, library, prefix, context, given)
            for got, want in zip(found, wanted, strict=True):
                compare(got, np.asarray(want), case.tolerance)
    except AssertionError as error:
        case.error = " ".join(str(error).split())[:300]
    finally:
        getattr(library, f"{prefix}close")(context)


def _call(
    case: Case, library: ctypes.CDLL, prefix: str, context: Any, given: list[np.ndarray]
) -> list[np.ndarray]:
    assert case.program is not None
    for value, array in zip(case.program.inputs, given, strict=True):
        assert (value.shape, value.dtype) == (array.shape, array.dtype), "an input's type"
    found = [np.empty(value.shape, value.dtype) for value in case.program.outputs]
    sources = (ctypes.c_void_p * max(1, len(given)))(*[a.ctypes.data for a in given])
    targets = (ctypes.c_void_p * max(1, len(found)))(*[a.ctypes.data for a in found])
    status = getattr(library, f"{prefix}run")(context, sources, targets)
    assert status == 0, f"status {status}"
    return found


def compare(got: np.ndarray, want: np.ndarray, tolerance: tuple[float, float]) -> None:
    """As ONNX's own runner does; its rule for bfloat16 holds for float16, too."""
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    assert got.dtype == want.dtype, f"type {got.dtype}, expected {want.dtype}"
    rtol, atol = tolerance
    if got.dtype.name in ("bfloat16", "float16"):  # two units in the last place
        rtol = max(rtol, 2.0 ** (-6 if got.dtype.name == "bfloat16" else -9))
        got, want = got.astype(np.float32), want.astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def fastest(*more: str) -> isa.Isa:
    """This machine's instruction set, compiled quickly."""
    found = isa.usable(sorted(machine.isa_flags()))[0]
    return replace(found, flags=(*found.flags, "-O1", *more))


def sanitized(arguments: list[str]) -> int:
    """This tool again in a process that has the sanitizers' libraries loaded before all others."""
    compiler = toolchain.compiler() or "g++"
    named = [f"-print-file-name=lib{name}.so" for name in ("asan", "ubsan")]
    libraries = [
        subprocess.run([compiler, n], capture_output=True, text=True, check=True).stdout.strip()
        for n in named
    ]
    environment = dict(os.environ, LD_PRELOAD=" ".join(libraries), REDLINE_SANITIZED="1")
    environment["ASAN_OPTIONS"] = "detect_leaks=0"  # Python itself keeps memory to the end
    return subprocess.run(
        [sys.executable, __file__, *arguments], env=environment, check=False
    ).returncode


def results(chosen: Iterable[Case], target: isa.Isa, *, verbose: bool = False) -> Iterator[Case]:
    """Every case with its verdict."""
    chosen = list(chosen)
    for case in chosen:
        try:
            lower(case, target)
        except Exception as error:  # a bug of ours: the list must not hide it
            if verbose:
                raise
            case.error = f"{type(error).__name__}: {str(error)[:200]}"
    ready = [case for case in chosen if case.sources is not None]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all.so"
        places = build(ready, target, path)
        library = ctypes.CDLL(str(path))
        for case, place in zip(ready, places, strict=True):
            run(case, library, place)
    yield from chosen


def stored() -> list[str]:
    """The lines of the committed list."""
    return [line for line in LIST.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]


def summary(done: list[Case]) -> str:
    """How many passed, were refused, failed; and how many operators passed."""
    passed = [case for case in done if case.sources is not None and not case.error]
    operators = {n.op_type for case in passed for n in case.model.graph.node}
    refused, failed = sum(bool(c.refused) for c in done), sum(bool(c.error) for c in done)
    counts = f"{len(passed)} pass, {refused} refused, {failed} fail"
    return f"{counts}; {len(operators)} operators in those that pass"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("prefix", nargs="?", default="")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--sanitize", action="store_true")
    asked = parser.parse_args()
    if asked.sanitize and "REDLINE_SANITIZED" not in os.environ:
        return sanitized(sys.argv[1:])
    target = fastest(*(SANITIZE if asked.sanitize else ()))
    done = list(results(cases(asked.prefix), target, verbose=bool(asked.prefix)))
    lines = [case.verdict() for case in done]
    for line in lines:
        if asked.prefix or ": FAIL" in line:
            print(line)
    print(summary(done))
    if asked.prefix or asked.sanitize:
        return any(case.error for case in done)
    if asked.check:
        wrong = sorted(set(lines) ^ set(stored()))
        print(*wrong, sep="\n")
        return bool(wrong)
    head = f"# ONNX {onnx.__version__} node tests; made by tools/node_tests.py\n# {summary(done)}\n"
    LIST.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")
    return any(case.error for case in done)


if __name__ == "__main__":
    sys.exit(main())
