"""Builds a native part of a model that has operators which the compiler lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from redline.backends.base import Candidate
from redline.engine.manifest import Part
from redline.native.ir import Node
from redline.native.isa import Isa

if TYPE_CHECKING:
    import onnx_ir


def lacking(operators: Sequence[str]) -> list[str]:
    """The operator types that the compiler has no way to take."""
    from redline.native import partition

    return partition.lacking(operators)


def segments(model: onnx_ir.Model, target: Isa, candidate: Candidate, folder: Path) -> Part:
    """Compile what can be compiled; the rest stays ONNX, in the order of "plan.json".

    Raises:
        RefusedError: nothing needs to be cut, or a cut is not worth it.
        BuildError: the C++ compiler failed.
    """
    import onnx_ir

    from redline.native.compile import compile_graph
    from redline.native.partition import Cut
    from redline.native.winograd import tolerance_class

    cut = Cut(model)
    threads, winograd = int(candidate.setting["threads"]), bool(candidate.setting["winograd"])
    kinds: Counter[str] = Counter()
    compiled: list[Node] = []
    files = ["plan.json"]
    for place, part in enumerate(cut.segments):
        proto = cut.model(part)
        if part.foreign:
            files.append(f"graph-{place}.onnx")
            (folder / files[-1]).write_bytes(proto.SerializeToString())
            kinds.update(node.op_type for node in part.nodes)
            continue
        piece = onnx_ir.serde.deserialize_model(proto)
        made = compile_graph(piece, target, threads, folder, winograd=winograd)
        kinds.update(node.kind for node in made.program.nodes)
        compiled += made.program.nodes
        for name in ("model.so", "weights.bin"):
            files.append(name.replace(".", f"-{place}."))
            (folder / name).replace(folder / files[-1])
    plan = {
        "steps": [
            {"foreign": part.foreign, "inputs": part.inputs, "outputs": part.outputs}
            for part in cut.segments
        ],
        "inputs": [v.name for v in model.graph.inputs if v.name not in model.graph.initializers],
        "outputs": [value.name for value in model.graph.outputs],
        "left": cut.left,
    }
    (folder / "plan.json").write_bytes(msgspec.json.encode(plan))
    return Part(
        "native",
        candidate.setting,
        files=tuple(files),
        code=True,
        isa=target.needs,
        needs={"onnxruntime": version("onnxruntime")},
        operators=dict(kinds),
        tolerance_class=tolerance_class(compiled),
    )
