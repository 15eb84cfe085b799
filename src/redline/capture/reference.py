"""What the model should give on every case, and how far its own float32 is from that."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from redline import machine, tree
from redline.capture.cases import Case
from redline.capture.onnx_reference import evaluate_in_float64, one_line, run_onnx
from redline.errors import ModelError, SignatureError
from redline.graph.cost import cost
from redline.graph.model import Model
from redline.graph.serialize import to_bytes
from redline.signature import Signature

if TYPE_CHECKING:
    import onnx_ir
    import torch

Arrays = tuple[np.ndarray, ...]

# Above these, float32's rounding no longer explains a difference from float64: the two took another
# way, so float64 is no yardstick for float32. Relative to the rms of the output.
_NOISE = 1e-2
_REPEATS = 1e-4
_INTEGERS_DIFFER = 5e-3  # a class on the fence may flip by rounding, but not from call to call

_COPIES = 4  # times the model's bytes: a copy, the same in float64, and room for activations

# The reference evaluator is NumPy: about 5 GFLOP/s, and Python loops in some operators.
_EVALUATOR_FLOPS = 5e10
_EVALUATOR_SECONDS = 15.0


@dataclass(frozen=True)
class Reference:
    """The outputs that candidates are held against.

    Attributes:
        expected: for each case, the outputs; floats as float64 where that could be computed.
        baseline: for each case, what the framework gives in float32; its distance from `expected`
            is the yardstick for every candidate.
        how: one or two sentences for the report.
    """

    expected: tuple[Arrays, ...]
    baseline: tuple[Arrays, ...]
    how: str


def make_reference(model: Model, cases: Sequence[Case]) -> Reference:
    """Run the model in float64 and in its own precision on every case.

    The user's module, random state, grad mode and default dtype are left as they are.

    Raises:
        ModelError: the model fails on a case, or gives other outputs when called again.

    Example:
        >>> make_reference(model, make_cases(model.signature, model.example)).how
        'the model in float64 on 3 cases'
    """
    if model.module is not None:
        return _from_module(model.module, model.signature, cases)
    return _from_graph(model, cases)


def _from_module(module: torch.nn.Module, signature: Signature, cases: Sequence[Case]) -> Reference:
    import torch

    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices), torch.no_grad(), torch.autocast("cpu", enabled=False):
        if _COPIES * _nbytes(module) > machine.memory_available():
            baseline = _eager(module, signature, cases)
            return _float32(baseline, "there is no memory for a second one in float64")
        try:
            own = _copy(module)
        except Exception as error:  # whatever the user's __deepcopy__ or tensors raise
            baseline = _eager(module, signature, cases)
            return _float32(baseline, f"the model cannot be copied ({one_line(error)})")
        baseline = _eager(own, signature, cases)
        try:
            expected = _in_float64(own, signature, cases)
        except Exception as error:  # any operator of the user's model may lack float64
            return _float32(baseline, f"it cannot run in float64 ({one_line(error)})")
    gap = _largest_gap(baseline, expected)
    if not gap <= _noise(baseline):
        return _float32(baseline, f"float64 takes another way in it (apart by {gap:.1g} rms)")
    return Reference(expected, baseline, f"the model in float64 on {len(cases)} cases")


def _eager(
    module: torch.nn.Module, signature: Signature, cases: Sequence[Case]
) -> tuple[Arrays, ...]:
    """The module as it is on every case, and twice on the first to see that it repeats itself."""
    results = []
    for case in (cases[0], *cases):
        try:
            results.append(_call(module, signature, case.inputs))
        except SignatureError:
            raise
        except Exception as error:
            raise ModelError(
                f"the model fails on case {case.name!r}: {one_line(error)}",
                where=", ".join(f"{array.dtype}{list(array.shape)}" for array in case.inputs),
                hint="give an example, and dynamic sizes, whose like forward accepts",
            ) from error
    if not _largest_gap(results[:1], results[1:2]) <= _REPEATS:
        raise ModelError(
            "the model gives other outputs when it is called again with the same inputs",
            hint="write F.dropout(x, training=self.training), draw random numbers outside the "
            "model and pass them as an input, and keep no state between calls",
        )
    return tuple(results[1:])


def _in_float64(
    module: torch.nn.Module, signature: Signature, cases: Sequence[Case]
) -> tuple[Arrays, ...]:
    """Parameters, inputs and every operator in float64; module is a copy of ours, and is widened.

    Widening each operator reaches what `.double()` does not: tensors that are no buffers, and
    casts to float32 written in forward.
    """
    from redline.capture.widening import Widening

    results = []
    module = module.double()
    for case in cases:
        inputs = [_wide(array) for array in case.inputs]
        with Widening():  # type: ignore[no-untyped-call]
            results.append(_call(module, signature, inputs))
    return tuple(results)


def _call(module: torch.nn.Module, signature: Signature, inputs: Sequence[np.ndarray]) -> Arrays:
    import torch

    tensors = [torch.from_numpy(np.array(array)) for array in inputs]  # forward may write to them
    args, kwargs = tree.as_call(tree.unflatten(signature.input_tree, tensors))
    outputs = module(*args, **kwargs)
    return tuple(_numpy(leaf) for leaf in tree.flatten(signature.output_tree, outputs))


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    import torch

    if tensor.dtype == torch.bfloat16:  # NumPy has none
        tensor = tensor.float()
    return np.array(tensor.detach().cpu().resolve_conj().resolve_neg().numpy())


def _nbytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _copy(module: torch.nn.Module) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an exported module's tree specs warn of their own age
        return copy.deepcopy(module)


def _float32(baseline: tuple[Arrays, ...], reason: str) -> Reference:
    how = f"the model as it is on {len(baseline)} cases, because {reason}"
    return Reference(baseline, baseline, how)


def _from_graph(model: Model, cases: Sequence[Case]) -> Reference:
    assert model.graph is not None, "a Model has a graph or a module"
    graph, inputs = to_bytes(model.graph), [case.inputs for case in cases]
    try:
        plain = run_onnx(graph, inputs)
    except ModelError as error:
        return _by_evaluator_alone(model.graph, inputs, error)
    expected, reason = None, "it is too large for onnx's reference evaluator"
    if cost(model.graph, model.signature, "max").flops * len(cases) <= _EVALUATOR_FLOPS:
        try:
            expected = evaluate_in_float64(model.graph, inputs, budget=_EVALUATOR_SECONDS)
        except ModelError as error:
            reason = error.what
    if expected is not None:
        gap = _largest_gap(plain, expected)
        if gap <= _noise(plain):
            how = f"onnx's reference evaluator in float64 on {len(cases)} cases"
            return Reference(tuple(expected), tuple(plain), how)
        reason = f"onnx's reference evaluator gives something else (apart by {gap:.1g} rms)"
    how = f"ONNX Runtime without optimisation on {len(cases)} cases, because {reason}"
    # Its own optimised run stands in for float32's distance from the truth, which is not known.
    return Reference(tuple(plain), tuple(run_onnx(graph, inputs, optimize=True)), how)


def _by_evaluator_alone(
    graph: onnx_ir.Model, inputs: Sequence[Arrays], refused: ModelError
) -> Reference:
    try:
        expected = evaluate_in_float64(graph, inputs, budget=float("inf"))
    except ModelError as error:
        raise ModelError(
            f"nothing here can run this graph: {refused.what}; {error.what}",
            hint="export it without operators of its own domain, or give the torch module",
        ) from error
    assert expected is not None, "an endless budget is never spent"
    how = f"onnx's reference evaluator in float64 on {len(inputs)} cases, because {refused.what}"
    rounded = (tuple(_narrow(y) for y in case) for case in expected)
    return Reference(tuple(expected), tuple(rounded), how)


def _largest_gap(outputs: Sequence[Arrays], expected: Sequence[Arrays]) -> float:
    """The largest max|y - ref| / rms(ref) over float outputs, inf where one only is not finite."""
    largest = 0.0
    for case, wanted in zip(outputs, expected, strict=True):
        for y, reference in zip(case, wanted, strict=True):
            largest = max(largest, _gap(y, reference))
    return largest


def _gap(y: np.ndarray, reference: np.ndarray) -> float:
    if y.shape != reference.shape:
        return float("inf")
    if reference.dtype.kind not in "fc":
        return 0.0 if np.array_equal(y, reference) else _INTEGERS_DIFFER
    finite = np.isfinite(reference)
    if not np.array_equal(finite, np.isfinite(y)):
        return float("inf")
    if not finite.any():
        return 0.0
    known = reference[finite].astype(np.complex128 if reference.dtype.kind == "c" else np.float64)
    scale = float(np.sqrt(np.mean(np.abs(known) ** 2)))
    return float(np.max(np.abs(y[finite] - known))) / (scale or 1.0)


def _noise(outputs: Sequence[Arrays]) -> float:
    """What rounding can explain: more where outputs are in half precision."""
    half = any(y.dtype == np.float16 for case in outputs for y in case)
    return _NOISE * (20 if half else 1)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _narrow(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array
