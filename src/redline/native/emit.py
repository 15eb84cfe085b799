"""The whole model as C++: a function per group, and the program that calls them in order."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redline.native import emit_anchors as anchors
from redline.native import (
    emit_any_rows,
    emit_attention,
    emit_calls,
    emit_conv,
    emit_rnn,
    expand,
    winograd,
)
from redline.native import emit_loops as loops
from redline.native import emit_windows as windows
from redline.native.code import Code
from redline.native.ir import Node, Program, Value
from redline.native.isa import Isa
from redline.native.plan import Plan, floats, plan

_EMIT: dict[str, Callable[[Code, Node], str]] = {
    "loop": loops.loop,
    "gather": loops.gather,
    "block": loops.reorder,
    "unblock": loops.reorder,
    "gemm": anchors.gemm,
    "matmul": anchors.matmul,
    "attention": emit_attention.emit,
    "conv": emit_conv.conv,
    "depthwise": windows.depthwise,
    "pool": windows.pool,
    "winograd": winograd.emit,
    "expand": expand.emit,
    "lstm": emit_rnn.lstm,
    "call": emit_calls.call,
    "reduce": loops.reduce,
}
_ANY: dict[str, Callable[[Code, Node], str]] = {  # instead, where sizes are free
    "gemm": emit_any_rows.gemm,
    "matmul": emit_any_rows.matmul,
}
_SCRATCH: dict[str, Callable[[Code, Node], int]] = {
    "gemm": anchors.gemm_scratch,
    "matmul": anchors.matmul_scratch,
    "attention": emit_attention.scratch,
    "winograd": winograd.scratch,
    "expand": expand.scratch,
    "call": emit_calls.scratch,
}
_ANY_SCRATCH: dict[str, Callable[[Code, Node], int]] = {
    "gemm": lambda code, node: emit_any_rows.gemm_scratch(node),
    "matmul": emit_any_rows.matmul_scratch,
}
_UNIT = 12  # groups in a file, so that two compilers share the work


@dataclass(frozen=True)
class Sources:
    """C++ files by name, the packed weights, and what each group is."""

    files: dict[str, str]
    weights: bytes
    groups: tuple[dict[str, object], ...]
    plan: Plan


def emit(program: Program, isa: Isa, threads: int) -> Sources:
    """Emit a program whose layouts are assigned."""
    code = Code(program, Plan(), isa, threads)
    arrange(code)
    texts = bodies(code)
    groups = tuple(group(code, node) for node in program.nodes)
    files = unit_texts(program, texts)
    files["program.cpp"] = program_text(code, program, texts, groups)
    return Sources(files, code.weights.to_bytes(), groups, code.plan)


def arrange(code: Code) -> None:
    """Give every intermediate and every scratch its place in the arena."""
    nodes = code.program.nodes
    scratch = {place: size for place, node in enumerate(nodes) if (size := _scratch(code, node))}
    code.plan, places = plan(code.program, code.lanes, scratch)
    for place, offset in places.items():
        nodes[place].attrs["scratch"] = offset


def bodies(code: Code) -> list[str]:
    """The body of each group's function."""
    emitters = _EMIT | _ANY if code.free else _EMIT
    return [
        emitters.get(node.kind, loops.rows)(code, node) if node.out.size else "if (t) return;\n"
        for node in code.program.nodes
    ]


def unit_texts(program: Program, texts: Sequence[str], sizes: int = 0) -> dict[str, str]:
    """The groups' functions in files of _UNIT; `sizes` of them are free, S0 and S1."""
    files = {}
    for start in range(0, len(texts), _UNIT):
        part = range(start, min(start + _UNIT, len(texts)))
        files[f"groups{start // _UNIT}.cpp"] = _unit(program, texts, part, sizes)
    return files


def _scratch(code: Code, node: Node) -> int:
    """Bytes that a node needs only while it runs."""
    if not node.out.size:
        return 0
    if code.free and node.kind in _ANY_SCRATCH:
        return _ANY_SCRATCH[node.kind](code, node)
    if node.attrs.get("scaled"):
        return emit_conv.scaled_scratch(code, node)
    if node.kind in _SCRATCH:
        return _SCRATCH[node.kind](code, node)
    return 0 if node.kind in _EMIT else loops.row_scratch(node, code.threads)


def group(code: Code, node: Node) -> dict[str, object]:
    """What describe() tells of a group; bytes are what it must read and write at least once."""
    moved = sum(floats(value, code.lanes) * value.dtype.itemsize for value in _touched(node))
    weights = node.attrs.get("weights")
    if isinstance(weights, np.ndarray):
        moved += weights.nbytes
    kernel = node.attrs["kernel"] if node.kind == "call" else node.attrs.get("code", node.kind)
    if node.whole:
        kernel = f"int8 {kernel}"
    return {"name": "+".join(node.names), "kernel": kernel, "flops": node.flops, "bytes": moved}


def _touched(node: Node) -> list[Value]:
    """Its arrays, each once; of a view only what it shows."""
    found = {
        (value.root, value.offset, value.shape): value for value in [*node.writes(), *node.reads()]
    }
    return list(found.values())


_HEADER = """#define RL_SPIN_NS 100000
#include "runtime.hpp"
#include "attention.hpp"
#include "rnn.hpp"
#include "rows.hpp"
#include "winograd.hpp"
"""


def _unit(program: Program, texts: Sequence[str], part: range, sizes: int) -> str:
    headers = {program.nodes[i].attrs.get("header", "") for i in part} - {""}
    lines = [_HEADER, *(f'#include "{header}"' for header in sorted(headers))]
    known = "".join(f"const long S{i} = c.sizes[{i}]; (void)S{i};\n" for i in range(sizes))
    for i in part:
        node = program.nodes[i]
        lines.append(f"// {node.kind}: {'+'.join(node.names)} -> {list(node.out.shape)}")
        lines.append(
            f"void group{i}(rl::Context& c, int t) {{\n(void)c, (void)t;\n{known}{texts[i]}}}\n"
        )
    return "\n".join(lines)


def program_text(
    code: Code,
    program: Program,
    texts: Sequence[str],
    groups: tuple[dict[str, object], ...],
    more: Mapping[str, object] | None = None,
) -> str:
    """The program that calls the groups, and the C ABI; describe() tells of `more`, too."""
    told: dict[str, Any] = {
        "abi": 1,
        "isa": list(code.isa.needs),
        "threads": code.threads,
        "inputs": [spec(value) for value in program.inputs],
        "outputs": [spec(value) for value in program.outputs],
        "workspace": code.plan.size,
        "weights": code.weights.size,
        "groups": groups,
        "missed": program.notes,
        **(more or {}),
    }
    lines = [_HEADER, '#include "abi.h"', *_calls(code, texts)]
    if sizes := told.get("sizes"):
        lines.append(
            'extern "C" void redline_sizes(void* c, const long* sizes) '
            f"{{ memcpy(((rl::Context*)c)->sizes, sizes, {8 * len(sizes)}); }}"
        )
    lines.append(
        f'extern "C" {{\n'
        f'const char* redline_describe(void) {{ return R"json({json.dumps(told)})json"; }}\n'
        f"void* redline_open(const void* weights) {{ return rl::open(weights, {code.plan.size}, "
        f"{len(texts)}, {code.threads}, program); }}\n"
        f"int redline_run(void* c, const void* const* in, void* const* out) "
        f"{{ return rl::run(*(rl::Context*)c, in, out); }}\n"
        f"void redline_profile(void* c, int on) {{ ((rl::Context*)c)->profile = on; }}\n"
        f"const uint64_t* redline_times(void* c) {{ return ((rl::Context*)c)->times; }}\n"
        f"void redline_close(void* c) {{ rl::close((rl::Context*)c); }}\n}}\n"
    )
    return "\n".join(lines)


def _calls(code: Code, texts: Sequence[str]) -> list[str]:
    """The function that calls the groups in order, a barrier between those of several threads."""
    lines = [f"void group{i}(rl::Context&, int);" for i in range(len(texts))]
    lines.append("static void program(rl::Context& c, int t) {")
    lines.append("uint64_t since = c.profile && !t ? rl::now_ns() : 0; (void)since;")
    alone = True
    for i, (node, body) in enumerate(zip(code.program.nodes, texts, strict=True)):
        mine = (
            code.threads == 1 or body.startswith("if (t) return;") or "if (t >= 1) return;" in body
        )
        if dealt := node.attrs.get("dealt"):
            lines.append(f"rl::barrier(c, {dealt});")
        elif not (alone and mine) and i:
            lines.append("rl::barrier(c);")
        alone = mine
        lines.append(f"group{i}(c, t);")
        lines.append(
            f"if (__builtin_expect(c.profile, 0) && !t) {{ const uint64_t n = rl::now_ns(); "
            f"c.times[{i}] = n - since; since = n; }}"
        )
    lines.append("}")
    if code.threads == 1:
        lines = [line for line in lines if line != "rl::barrier(c);"]
    return lines


def spec(value: Value) -> dict[str, object]:
    """What describe() tells of an input or output."""
    return {"dtype": np.dtype(value.dtype).name, "shape": list(value.shape)}
