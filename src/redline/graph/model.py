"""What capture hands to everyone else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from redline.signature import Signature

if TYPE_CHECKING:
    import onnx_ir
    import torch


@dataclass(frozen=True)
class Note:
    """Something the user should know: what happened, where in their code, what to write."""

    what: str
    where: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Model:
    """A captured model. At least one of `graph` and `module` is there.

    Attributes:
        name: the class or file it came from, for people.
        origin: "module", "exported-program", "torchscript", "huggingface" or "onnx".
        signature: inputs, outputs, dynamic dims.
        example: one array for each of signature.inputs, at the opt sizes.
        graph: the ONNX graph, weights inside; None where export failed (see notes).
        graph_hash: SHA-256 of the graph without names of people and paths; of the
            module's weights and code where there is no graph.
        program: the ExportedProgram, where torch.export succeeded.
        module: the torch module in eval mode (for an ExportedProgram: its .module()).
        notes: what the user should know; empty when all went well.
    """

    name: str
    origin: str
    signature: Signature
    example: tuple[np.ndarray, ...]
    graph_hash: str
    graph: onnx_ir.Model | None = None
    program: torch.export.ExportedProgram | None = None
    module: torch.nn.Module | None = None
    notes: tuple[Note, ...] = field(default=())
