"""Write docs/operators.md from the compiler's registry, so that the page says what it does.

python tools/operators_reference.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from redline.native import operators  # noqa: F401  (fills OPERATORS)
from redline.native.dtypes import ALL, FLOATS, HALVES, INTS
from redline.native.registry import NEVER, OPERATORS, Operator

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operators.md"
INTRODUCTION = """\
# Operators of the native compiler

Written by `make docs` from the compiler's registry; a test compares the two. What each of ONNX's
own node tests says is in `tests/native/node_tests.txt`, one line for each: `pass`, or `refused`
with its reason. `python tools/node_tests.py` writes that list anew; `--check` fails where it no
longer holds, `--sanitize` runs all of it under ASan and UBSan.

* Types are those of the operator's main input. float16 and bfloat16 are computed in float32 and
  rounded after each operator. A division of whole numbers by zero gives 0.
* What shapes depend on (shapes, axes, pads, sizes, k, depth) must be known at build: initializers,
  or computed from shapes. So must the weights of LSTM, GRU and RNN. Weights of a convolution may
  come at run, on a slower kernel; so may those over three axes.
* If, Loop and Scan are unrolled where their course is known at build, up to 64 turns.
* An operator without a row that ONNX defines by a function is expanded into that function. So it
  is where a row does not cover a type or an option and ONNX has a function.
* Anything else refuses the model, with the operator's name and the reason.
"""


def types(entry: Operator) -> str:
    """The types in a few words."""
    every = set(entry.types) | (set(HALVES) if entry.widens else set())
    if every == set(ALL):
        return "all"
    words = []
    for name, group in (("floats", (*FLOATS, *HALVES)), ("whole numbers", INTS)):
        if set(group) <= every:
            words.append(name)
            every -= set(group)
    return ", ".join([*words, *(name for name in ALL if name in every)])


def functions() -> list[str]:
    """Operators that only ONNX's function bodies stand for."""
    newest: dict[str, Any] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        known = newest.get(schema.name)
        if not schema.domain and (known is None or known.since_version < schema.since_version):
            newest[schema.name] = schema
    return sorted(
        name
        for name, schema in newest.items()
        if (schema.has_function or schema.has_context_dependent_function)
        and name not in OPERATORS
        and name not in NEVER
    )


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION, "| operator | types | refused |", "|---|---|---|"]
    for name in sorted(OPERATORS):
        entry = OPERATORS[name]
        lines.append(f"| {name} | {types(entry)} | {entry.note} |")
    lines += ["", "## By ONNX's functions", "", ", ".join(functions()) + ".", ""]
    lines += [
        "## Never",
        "",
        "The compiler knows every size at build, and a run repeats itself.",
        "",
    ]
    reasons: dict[str, list[str]] = {}
    for name, reason in NEVER.items():
        reasons.setdefault(reason, []).append(name)
    lines += [f"* {reason}: {', '.join(sorted(names))}" for reason, names in reasons.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
