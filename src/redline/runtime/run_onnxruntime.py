"""Runs a part with ONNX Runtime on the CPU; also the portable part of every engine with a graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnxruntime

from redline.engine.manifest import Part
from redline.engine.store import Store
from redline.errors import RunError, UnknownNameError
from redline.runtime.settings import closed, failed, input_order, threads
from redline.signature import Signature

LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_ERRORS_ONLY = 3


class OnnxRuntimeRunner:
    """An InferenceSession, which many threads may call at once."""

    def __init__(
        self, part: Part, session: onnxruntime.InferenceSession, inputs: Sequence[str]
    ) -> None:
        self._part = part
        self._session = session
        self._inputs = inputs
        self._outputs = [node.name for node in session.get_outputs()]

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        # Naming the outputs spares a look-up; run() with a dict measured faster for small networks
        # than an IOBinding made per call, and OrtValues cost seven times as much.
        try:
            result: list[np.ndarray] = self._session.run(
                self._outputs, dict(zip(self._inputs, inputs, strict=True))
            )
        except Exception as error:
            raise (
                closed(self._part) if self._session is None else failed(self._part, error)
            ) from error
        return result

    def close(self) -> None:
        self._session = None


def open_part(part: Part, store: Store, signature: Signature) -> OnnxRuntimeRunner:
    """Open "graph.onnx", or the part's own "model.onnx".

    Setting: threads (int), level ("all", "extended", "basic", "disabled"), spin (bool).

    Raises:
        RunError: ONNX Runtime cannot read or prepare the graph.
    """
    graph = bytes(store.read("graph.onnx" if part.uses_graph else "model.onnx"))
    session = open_session(part, graph)
    names = [node.name for node in session.get_inputs()]
    return OnnxRuntimeRunner(part, session, input_order(part, names, signature))


def open_session(part: Part, graph: bytes | str) -> onnxruntime.InferenceSession:
    """ONNX Runtime's session with the part's setting; `graph` is a model, or a file's path.

    Raises:
        RunError: ONNX Runtime cannot read or prepare the graph.
    """
    level = str(part.setting.get("level", "all"))
    if level not in LEVELS:
        raise UnknownNameError("graph level", level, LEVELS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads(part)
    options.inter_op_num_threads = 1
    options.graph_optimization_level = LEVELS[level]
    options.log_severity_level = _ERRORS_ONLY
    spin = "1" if part.setting.get("spin", True) else "0"
    options.add_session_config_entry("session.intra_op.allow_spinning", spin)
    # Exact kernels for 8-bit weights where a pair of products is added in 16 bits and saturates.
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise RunError(f"onnxruntime cannot open the graph: {str(error)[:500]}") from error
