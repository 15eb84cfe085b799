"""What an ONNX graph should give, by two implementations that share no code."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

import numpy as np
import onnx_ir

from redline.errors import ModelError
from redline.graph.widen import widen

Arrays = tuple[np.ndarray, ...]


def run_onnx(
    graph: bytes, inputs: Sequence[Sequence[np.ndarray]], *, optimize: bool = False
) -> list[Arrays]:
    """The outputs of ONNX Runtime for each set of inputs, without any graph optimisation.

    Args:
        graph: a whole ONNX message.
        inputs: for each case, one array per graph input, in order.
        optimize: leave the graph optimiser on.

    Raises:
        ModelError: ONNX Runtime cannot load or run the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return [
            tuple(np.asarray(y) for y in session.run(None, dict(zip(names, case, strict=True))))
            for case in inputs
        ]
    except Exception as error:  # its errors share no base class
        raise ModelError(f"ONNX Runtime cannot run this graph: {one_line(error)}") from error


def evaluate_in_float64(
    graph: onnx_ir.Model, inputs: Sequence[Sequence[np.ndarray]], *, budget: float
) -> list[Arrays] | None:
    """The outputs of onnx's reference evaluator with every float widened to float64.

    Args:
        budget: seconds; None is returned where the first case says that all would take longer.

    Raises:
        ModelError: the evaluator lacks an operator, or fails.
    """
    from onnx.reference import ReferenceEvaluator

    start, results = time.monotonic(), []
    try:
        evaluator = ReferenceEvaluator(onnx_ir.serde.serialize_model(widen(graph)))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for case in inputs:
                feed = dict(zip(evaluator.input_names, map(_wide, case), strict=True))
                results.append(tuple(np.asarray(y) for y in evaluator.run(None, feed)))
                if (time.monotonic() - start) * len(inputs) > budget * len(results):
                    return None
    except Exception as error:  # operators are Python functions; anything may come
        raise ModelError(f"onnx's reference evaluator cannot run it: {one_line(error)}") from error
    return results


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


def one_line(error: Exception) -> str:
    """The first line of what an error says, for a sentence of ours."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
